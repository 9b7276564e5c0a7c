"""Streams of bytes over descriptors that others share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from shim.component.streams import COMPLETED, HostBuffer, SharedStream
from shim.component.types import U8, Result
from shim.wasi.descriptors import inherited
from shim.wasi.p3.bytes import Writing
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
