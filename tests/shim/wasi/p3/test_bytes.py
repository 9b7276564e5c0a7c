"""Streams of bytes over descriptors that others share."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import monotonic_ns

from shim.component.streams import COMPLETED, HostBuffer, SharedStream
from shim.component.types import U8, Result
from shim.wasi.descriptors import inherited
from shim.wasi.p3.bytes import Reading, Writing
from shim.wasi.reactor import Reactor
from tests.shim.engines.conftest import in_child

CAPACITY = 1 << 16


def test_nobody_reads_yet(tmp_path: Path) -> None:
    """A pipe that is full keeps who writes from nothing but writing."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)

    def work() -> None:
        signal.alarm(10)
        writing = Writing(Reactor(), inherited(pipe), Result(None, None), repr)
        writing.drain(SharedStream(U8))
        buffer = HostBuffer(is_bytes=True, length=3 * CAPACITY)
        buffer.write(bytes(3 * CAPACITY))
        buffer.turn()
        assert writing.take(buffer) == COMPLETED
        assert (writing.take(buffer), buffer.progress) == (None, CAPACITY)
        os.read(pipe, CAPACITY - 1)  # in the page of the last byte there is no more room for all
        assert writing.take(buffer) == COMPLETED
        assert CAPACITY < buffer.progress < 2 * CAPACITY

    assert in_child(work).status == 0
    os.close(pipe)


def test_what_never_ends_lets_others_run() -> None:
    zero, null = os.open("/dev/zero", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY)

    def work() -> None:
        signal.alarm(10)
        reactor, called = Reactor(), list[str]()
        reading = Reading(reactor, inherited(zero), Result(None, None), repr)
        writing = Writing(reactor, inherited(null), Result(None, None), repr)
        writing.drain(reading.shared)
        reactor.at(monotonic_ns(), lambda: called.append("timer"))
        while not called:
            assert reactor.wait(block=True)
        for _ in range(5):
            assert reactor.wait(block=True)
        reading.close()
        writing.close()
        assert not reactor.wait(block=True)

    assert in_child(work).status == 0
    os.close(zero)
    os.close(null)
