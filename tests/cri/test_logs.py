"""Logs of containers in CRI's format: `TIME STREAM TAG TEXT`."""

from __future__ import annotations

import os
import re

from tests.cri.conftest import IMAGE, Kind
from tests.cri.kubelet import Kubelet, Line
from tests.cri.node import Node
from tests.integration.versions import version_of


def test_format(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    container = pod.run(IMAGE, kind.program("hello"))
    container.finish()
    (line,) = container.lines()
    assert line[1:] == ("stdout", "F", "hello from pywasm")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+([+-]\d\d:\d\d|Z)", line.time)


def test_both_streams(kubelet: Kubelet, kind: Kind, node: Node) -> None:
    pod = kubelet.run_pod(kind.handler)
    container = pod.run(IMAGE, kind.program("stdio"), "1", "both")
    container.finish()
    for stream in ("stdout", "stderr"):
        found = [line.text.strip() for line in container.lines() if line.stream == stream]
        expected = [str(number) for number in range(16384)]
        if version_of(node.bin_dir or "").startswith("1.6"):
            # It closes its end when it hears of the exit, and may not have read the last pipeful.
            assert len(found) >= 16384 - 2048, stream
            expected = expected[: len(found)]
        assert found == expected, stream


def test_rotation(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    container = pod.run(IMAGE, kind.program("tty"), stdin=True)
    container.until_says("tty 0 0 0")
    with container.attach() as stream:
        stream.send(b"one\n")
        stream.until(b"got 'one'\n")
        container.until_says("got 'one'")
        os.rename(container.log, container.log + ".1")
        container.reopen_log()
        stream.send(b"two\n")
        container.until_says("got 'two'")
        assert container.output() == "got 'two'\n"
        with open(container.log + ".1") as file:
            old = [Line(*line.rstrip("\n").split(" ", 3)).text for line in file]
        assert old == ["tty 0 0 0", "got 'one'"]
