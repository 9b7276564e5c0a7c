"""The shim's log, through the bundle's FIFO into containerd's own."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.integration import images
from tests.integration.conftest import IMAGE
from tests.integration.containerd import PYWASM, Containerd

LOGRUS = re.compile(
    r'^time="[^"]+" level=\w+ msg=("([^"\\]|\\.)*"|\S+)( [\w.]+=("([^"\\]|\\.)*"|\S*))*$'
)


@pytest.fixture(params=[False, True], ids=["info", "debug"])
def own(
    request: pytest.FixtureRequest, containerd: Containerd, image: images.Image
) -> Iterator[Containerd]:
    """A containerd with and without debug logs."""
    with Containerd(containerd.bin_dir, debug=request.param) as daemon:
        daemon.load(image.tar)
        yield daemon
        assert daemon.leftovers() == []


def test_lines(own: Containerd) -> None:
    name = own.new_name()
    assert own.run(PYWASM, IMAGE, "/hello.wasm", name=name).returncode == 0
    # containerd copies our lines as they are, between its own.
    lines = [line for line in own.read_log().splitlines() if f" id={name}" in line]
    ours = [line for line in lines if f"runtime={PYWASM}" in line]
    assert ours
    assert all(LOGRUS.match(line) for line in ours), ours
    levels = {line.partition("level=")[2].split()[0] for line in ours}
    assert ("debug" in levels) == own.debug, lines
