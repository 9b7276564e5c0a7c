from __future__ import annotations

import socket
from collections.abc import Callable

from shim.linux.clone import CLONE_NEWNET
from shim.linux.network import bring_up_loopback


def reachable(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(family) as client:
        try:
            listener.bind((address, 0))
            listener.listen()
            client.settimeout(10)
            client.connect(listener.getsockname())
        except OSError:
            return False
        return True


def test_loopback_comes_up(in_child: Callable[..., None]) -> None:
    def check() -> None:
        assert not reachable("127.0.0.1")
        bring_up_loopback()
        assert reachable("127.0.0.1")
        assert reachable("::1")
        bring_up_loopback()  # where it is up already
        assert reachable("127.0.0.1")

    in_child(check, CLONE_NEWNET)
