"""Pumps between pipes, which are the sources and sinks that they have in a shim."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from shim.daemon.streams.pump import Pump
from tests.shim.daemon.patience import patiently

BUFFER = 1 << 16
PIPE = 1 << 16  # the kernel's default


@dataclass
class Line:
    """A pump, something to write to on the one side and to read from on the other."""

    fds: list[int] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self, trailer: Callable[[int], bytes] = lambda _: b"") -> None:
        self.fds = [*os.pipe(), *os.pipe()]
        for fd in self.fds:
            os.set_blocking(fd, False)
        self.source, self.give, self.take, self.sink = self.fds
        self.pump = Pump(self.source, self.sink, self.ended.set, trailer)

    def close(self, fd: int) -> None:
        self.fds.remove(fd)
        os.close(fd)

    async def offer(self, data: bytes) -> int:
        """Write until the pump takes no more; return how much it took."""
        given = 0
        for _ in range(50):
            await asyncio.sleep(0)
            try:
                while given < len(data):
                    given += os.write(self.give, data[given:])
            except BlockingIOError:
                pass
        return given

    def taken(self) -> bytes:
        try:
            return os.read(self.take, 1 << 20)
        except BlockingIOError:
            return b""


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    made = Line()
    yield made
    made.pump.stop()
    for fd in made.fds:
        os.close(fd)


def numbered(size: int) -> bytes:
    return b"".join(b"%07d\n" % number for number in range(size // 8))


async def test_everything_in_order_to_the_end(line: Line) -> None:
    line.start()
    data, got, given = numbered(1 << 20), b"", 0
    async for _ in patiently():
        if len(got) == len(data):
            break
        if given < len(data):
            try:
                given += os.write(line.give, data[given : given + 50_000])
            except BlockingIOError:
                pass
        got += line.taken()
    assert not line.ended.is_set()
    line.close(line.give)
    await line.ended.wait()
    assert got == data


async def test_what_is_between_is_bounded(line: Line) -> None:
    line.start()
    data = numbered(1 << 20)
    given = await line.offer(data)
    assert given <= PIPE + BUFFER + PIPE
    got = b""
    async for _ in patiently():
        if len(got) == given:
            break
        got += line.taken()
    assert got == data[:given]


async def test_a_blocked_sink_wakes_nobody(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.start()
    await line.offer(numbered(1 << 20))
    calls = []
    monkeypatch.setattr(os, "write", lambda *_: calls.append("write"))
    monkeypatch.setattr(os, "readv", lambda *_: calls.append("readv"))
    await asyncio.sleep(0.05)
    assert calls == []


@pytest.mark.parametrize("size", [0, 8, BUFFER, 3 * BUFFER])
async def test_the_trailer_comes_last_and_knows_what_was_before(line: Line, size: int) -> None:
    asked = []

    def trailer(last: int) -> bytes:
        asked.append(last)
        return b"trailer!"

    line.start(trailer)
    data, got = numbered(size), b""
    given = os.write(line.give, data) if data else 0
    line.close(line.give) if given == len(data) else None
    async for _ in patiently():
        if line.ended.is_set():
            break
        got += line.taken()
        if given < len(data):
            try:
                given += os.write(line.give, data[given:])
            except BlockingIOError:
                pass
            if given == len(data):
                line.close(line.give)
    got += line.taken()
    assert got == data + b"trailer!"
    assert asked == [data[-1] if data else -1]


@pytest.mark.parametrize("size", [0, 8, BUFFER])
async def test_finish_takes_what_is_there_and_does_not_wait_for_more(line: Line, size: int) -> None:
    line.start()
    data = numbered(size)
    if data:
        os.write(line.give, data)
    line.pump.finish()
    got = b""
    async for _ in patiently():
        if line.ended.is_set():
            break
        got += line.taken()
    assert got + line.taken() == data  # although the writer is still there


async def test_finish_while_the_sink_is_full(line: Line) -> None:
    line.start()
    given = await line.offer(numbered(1 << 20))
    line.pump.finish()
    await asyncio.sleep(0)
    assert not line.ended.is_set()
    got = b""
    async for _ in patiently():
        if line.ended.is_set():
            break
        got += line.taken()
    assert len(got + line.taken()) == given


async def test_a_sink_that_is_gone_does_not_stop_the_source(line: Line) -> None:
    line.start()
    line.close(line.take)
    data = numbered(1 << 20)
    given = 0
    async for _ in patiently():
        if given == len(data):
            break
        given += await line.offer(data[given:])
    line.close(line.give)
    await line.ended.wait()


async def test_stop_is_the_end_of_it(line: Line) -> None:
    line.start()
    line.pump.stop()
    os.write(line.give, b"more")
    line.close(line.give)
    await asyncio.sleep(0.01)
    assert not line.ended.is_set()
    assert line.taken() == b""
