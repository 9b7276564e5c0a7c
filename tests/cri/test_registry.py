"""The registry that scripts/critest has images pulled from."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.cri import registry
from tests.integration import images
from tests.integration.containerd import eventually


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    image = images.build("localhost/any:1", {"file": b""})
    registry.add(str(tmp_path), "some/image", "1", image.tar)
    command = [sys.executable, "-ISE", registry.__file__, str(tmp_path), str(number)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: listens(number))
            yield number
        finally:
            process.kill()


def listens(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def test_a_client_that_takes_its_time_holds_nobody_up(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"GET /v2/some/image/")  # and no more
        with urlopen(f"http://127.0.0.1:{port}/v2/some/image/manifests/1", timeout=30) as answer:
            assert answer.headers["Content-Type"] == "application/vnd.oci.image.manifest.v1+json"
