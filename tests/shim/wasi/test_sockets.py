from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from shim.wasi.program import Program
from shim.wasi.sockets import UdpSocket
from tests.shim.wasi.drivers import no_descriptors_left


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield from no_descriptors_left()


@pytest.mark.parametrize(
    ("family", "host", "any_host"),
    [(socket.AF_INET, "127.0.0.1", "0.0.0.0"), (socket.AF_INET6, "::1", "::")],
)
def test_a_port_outlives_a_peer(family: int, host: str, any_host: str) -> None:
    made = UdpSocket.open(Program(), family)
    first, second = (
        (host, port) if family == socket.AF_INET else (host, port, 0, 0) for port in (9, 10)
    )
    made.connect(first)
    port = made.sock.getsockname()[1]
    made.connect(second)
    assert made.sock.getsockname()[:2] == (host, port)
    made.disconnect()
    assert made.sock.getsockname()[:2] == (any_host, port)
    with socket.socket(family, socket.SOCK_DGRAM) as other:
        other.sendto(b"still there", (host, port))
    assert made.receive()[0] == b"still there"
