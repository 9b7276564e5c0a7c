from __future__ import annotations

import fcntl
import os
import select
import threading
import time
from typing import Any

import pytest

from shim.component.errors import Trap
from shim.wasi.descriptors import inherited
from shim.wasi.p2.io import Error, InputStream, OutputStream, Pollable
from tests.shim.wasi.drivers import Failed

from .conftest import Calls, Pipe


def stream(calls: Calls, name: str, *args: Any) -> Any:
    return calls("io/streams", f"[method]{name}", *args)


def failure(calls: Calls, name: str, *args: Any) -> Any:
    with pytest.raises(Failed) as raised:
        stream(calls, name, *args)
    return raised.value.args[0]


CLOSED = ("closed", None)


def test_reading_does_not_block(calls: Calls, pipe: Pipe) -> None:
    assert stream(calls, "input-stream.read", pipe.input, 10) == b""
    os.write(pipe.writer, b"hello")
    assert stream(calls, "input-stream.read", pipe.input, 0) == b""
    assert stream(calls, "input-stream.read", pipe.input, 2) == b"he"
    assert stream(calls, "input-stream.skip", pipe.input, 1) == 1
    assert stream(calls, "input-stream.blocking-read", pipe.input, 1 << 60) == b"lo"
    assert not fcntl.fcntl(pipe.reader, fcntl.F_GETFL) & os.O_NONBLOCK  # which others share


def test_the_end_of_input(calls: Calls, pipe: Pipe) -> None:
    os.write(pipe.writer, b"x")
    pipe.hang_up()
    assert stream(calls, "input-stream.blocking-read", pipe.input, 9) == b"x"
    assert failure(calls, "input-stream.read", pipe.input, 9) == CLOSED
    for name in ("read", "blocking-read", "skip", "blocking-skip"):
        assert failure(calls, f"input-stream.{name}", pipe.input, 0) == CLOSED


def test_blocking_where_somebody_has_made_it_not_block(calls: Calls, pipe: Pipe) -> None:
    os.set_blocking(pipe.reader, False)
    assert stream(calls, "input-stream.read", pipe.input, 9) == b""
    later = threading.Timer(0.05, os.write, (pipe.writer, b"late"))
    later.start()
    assert stream(calls, "input-stream.blocking-read", pipe.input, 9) == b"late"
    later.join()


def test_writing(calls: Calls, pipe: Pipe) -> None:
    permit = stream(calls, "output-stream.check-write", pipe.output)
    assert permit >= 4096
    assert stream(calls, "output-stream.write", pipe.output, memoryview(b"hello")) is None
    assert stream(calls, "output-stream.flush", pipe.output) is None
    assert os.read(pipe.reader, 99) == b"hello"
    stream(calls, "output-stream.blocking-write-and-flush", pipe.output, memoryview(b"one"))
    stream(calls, "output-stream.blocking-write-zeroes-and-flush", pipe.output, 2)
    stream(calls, "output-stream.check-write", pipe.output)
    stream(calls, "output-stream.write-zeroes", pipe.output, 1)
    assert os.read(pipe.reader, 99) == b"one\0\0\0"


def test_a_write_that_was_not_permitted(calls: Calls, pipe: Pipe) -> None:
    with pytest.raises(Trap):
        stream(calls, "output-stream.write", pipe.output, memoryview(b"x"))
    stream(calls, "output-stream.check-write", pipe.output)
    stream(calls, "output-stream.write", pipe.output, memoryview(b"x"))
    with pytest.raises(Trap):
        stream(calls, "output-stream.write", pipe.output, memoryview(b"x"))


def test_a_full_pipe_blocks_nobody(calls: Calls, pipe: Pipe) -> None:
    fcntl.fcntl(pipe.writer, 1031, 4096)  # F_SETPIPE_SZ
    written = b""
    for letter in b"ab":
        permit = stream(calls, "output-stream.check-write", pipe.output)
        if permit:
            data = bytes([letter]) * permit
            stream(calls, "output-stream.write", pipe.output, memoryview(data))
            written += data
    assert len(written) > 4096
    assert stream(calls, "output-stream.check-write", pipe.output) == 0
    pollable = stream(calls, "output-stream.subscribe", pipe.output)
    assert not calls("io/poll", "[method]pollable.ready", pollable)
    arrived = b""
    while len(arrived) < len(written):
        stream(calls, "output-stream.flush", pipe.output)
        arrived += os.read(pipe.reader, 1 << 16)
    assert arrived == written
    assert calls("io/poll", "[method]pollable.ready", pollable)
    assert stream(calls, "output-stream.check-write", pipe.output) > 0


def test_what_was_kept_is_written_in_the_end(calls: Calls, pipe: Pipe) -> None:
    fcntl.fcntl(pipe.writer, 1031, 4096)
    permit = stream(calls, "output-stream.check-write", pipe.output)
    stream(calls, "output-stream.write", pipe.output, memoryview(bytes(permit)))
    found: list[int] = []

    def read() -> None:
        while sum(found) < permit:
            found.append(len(os.read(pipe.reader, 1 << 16)))

    reader = threading.Thread(target=read)
    reader.start()
    pipe.output.close()
    reader.join(10)
    assert sum(found) == permit


def test_nobody_reads(calls: Calls, pipe: Pipe) -> None:
    pipe.stop_reading()
    write = "output-stream.blocking-write-and-flush"
    assert failure(calls, write, pipe.output, memoryview(b"x")) == CLOSED
    assert failure(calls, "output-stream.check-write", pipe.output) == CLOSED
    assert failure(calls, "output-stream.flush", pipe.output) == CLOSED


def test_what_has_failed_is_closed(calls: Calls) -> None:
    with open("/dev/full", "wb") as full:
        output = OutputStream(inherited(os.dup(full.fileno())))
        write = "output-stream.blocking-write-and-flush"
        label, error = failure(calls, write, output, memoryview(b"x"))
        assert label == "last-operation-failed"
        assert isinstance(error, Error)
        assert calls("filesystem/types", "filesystem-error-code", error) == "insufficient-space"
        assert "space" in calls("io/error", "[method]error.to-debug-string", error)
        assert failure(calls, write, output, memoryview(b"x")) == CLOSED
        output.close()


def test_splicing(calls: Calls, pipe: Pipe) -> None:
    other = Pipe()
    splice = "output-stream.splice"
    assert stream(calls, splice, other.output, pipe.input, 9) == 0
    os.write(pipe.writer, b"hello")
    assert stream(calls, splice, other.output, pipe.input, 2) == 2
    assert stream(calls, "output-stream.blocking-splice", other.output, pipe.input, 99) == 3
    assert os.read(other.reader, 99) == b"hello"
    pipe.hang_up()
    assert failure(calls, splice, other.output, pipe.input, 9) == CLOSED


def test_pollables(calls: Calls, pipe: Pipe) -> None:
    forever = calls("clocks/monotonic-clock", "subscribe-instant", (1 << 64) - 1)
    past = calls("clocks/monotonic-clock", "subscribe-instant", 0)
    readable = stream(calls, "input-stream.subscribe", pipe.input)
    writable = stream(calls, "output-stream.subscribe", pipe.output)
    every = [forever, readable, past, writable, readable]
    assert calls("io/poll", "poll", every) == [2, 3]
    os.write(pipe.writer, b"x")
    assert calls("io/poll", "poll", every) == [1, 2, 3, 4]
    assert calls("io/poll", "poll", [forever, readable]) == [1]
    calls("io/poll", "[method]pollable.block", readable)
    assert not calls("io/poll", "[method]pollable.ready", forever)
    with pytest.raises(Trap):
        calls("io/poll", "poll", [])


def test_a_pollable_waits_for_a_clock(calls: Calls, pipe: Pipe) -> None:
    readable = stream(calls, "input-stream.subscribe", pipe.input)
    soon = calls("clocks/monotonic-clock", "subscribe-duration", 5_000_000)
    before = time.monotonic_ns()
    assert calls("io/poll", "poll", [readable, soon]) == [1]
    assert time.monotonic_ns() - before >= 5_000_000


def test_what_has_ended_is_ready(calls: Calls, pipe: Pipe) -> None:
    readable = stream(calls, "input-stream.subscribe", pipe.input)
    pipe.hang_up()
    assert calls("io/poll", "poll", [readable]) == [0]
    assert failure(calls, "input-stream.read", pipe.input, 9) == CLOSED
    assert calls("io/poll", "poll", [readable]) == [0]


def test_a_descriptor_lasts_as_long_as_its_streams_and_pollables(calls: Calls) -> None:
    reader, writer = os.pipe()
    descriptor = inherited(reader)
    source = InputStream(descriptor)
    pollable = stream(calls, "input-stream.subscribe", source)
    assert isinstance(pollable, Pollable)
    source.close()
    os.write(writer, b"x")
    assert calls("io/poll", "poll", [pollable]) == [0]
    pollable.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)
    os.close(writer)


def test_select_is_what_a_pollable_asks_for(calls: Calls, pipe: Pipe) -> None:
    pollable = stream(calls, "output-stream.subscribe", pipe.output)
    assert pollable.interest() == (pipe.output.descriptor.fd, select.POLLOUT)
