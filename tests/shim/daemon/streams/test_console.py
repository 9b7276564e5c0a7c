"""Terminals of native guests, whose session has them as controlling terminal, over real FIFOs."""

import asyncio
import contextlib
import os
import signal
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shim.daemon.streams import stdio
from shim.daemon.streams.pump import Pump
from shim.daemon.streams.stdio import Stdio
from tests.shim.daemon.native import Guest, ended, start
from tests.shim.daemon.patience import patiently

LINE = 65  # bytes of the guest `stdio`'s lines of 64, since newline becomes CR LF


class Session:
    """A guest on a terminal, and the client at the other ends of the FIFOs."""

    def __init__(self, directory: Path) -> None:
        self.stdin, self.stdout = str(directory / "in"), str(directory / "out")
        for path in (self.stdin, self.stdout):
            os.mkfifo(path)
        self.stdio = Stdio(self.stdin, self.stdout, "", terminal=True)
        self.fds = self.stdio.open()
        self.stdio.connect()
        self.guest: Guest | None = None
        self.reader = self.writer = -1
        self.output = b""

    def clear(self, output: int = 0, local: int = 0) -> None:
        """Take these out of the terminal's modes."""
        modes = termios.tcgetattr(self.fds[0])
        modes[1] &= ~output
        modes[3] &= ~local
        termios.tcsetattr(self.fds[0], termios.TCSANOW, modes)

    def run(self, name: str, *args: str) -> None:
        self.guest = start(self.fds, name, *args, terminal=True)
        self.fds = []

    def close_slaves(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def attach(self) -> None:
        self.reader = os.open(self.stdout, os.O_RDONLY | os.O_NONBLOCK)
        self.writer = os.open(self.stdin, os.O_WRONLY | os.O_NONBLOCK)

    def detach(self) -> None:
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)
        self.reader = self.writer = -1

    def type(self, text: bytes) -> None:
        assert os.write(self.writer, text) == len(text)

    async def until(self, words: bytes) -> bytes:
        """Return the output from where we were until after `words`."""
        async for _ in patiently(0.002):
            if words in self.output:
                break
            self.read()
        got, self.output = self.output.split(words, 1)
        return got + words

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.output += os.read(self.reader, 1 << 20)

    async def ended(self) -> int:
        """Wait for the guest's end, as its pidfd tells it to the shim."""
        assert self.guest is not None
        status = await ended(self.guest)
        self.stdio.guest_ended()
        return status

    async def to_the_end(self, chunk: int = 1 << 20) -> bytes:
        """Return all output, which ends a while after the guest has."""
        got = [self.output]
        async for _ in patiently():
            if len(got) > 1 and not got[-1]:
                break
            if self.guest is not None and self.guest.poll() is not None:
                self.stdio.guest_ended()
                self.guest = None
            with contextlib.suppress(BlockingIOError):
                got.append(os.read(self.reader, chunk))
        return b"".join(got)

    def close(self) -> None:
        if self.guest is not None and self.guest.poll() is None:
            self.guest.kill()
            self.guest.wait()
        self.close_slaves()
        self.detach()
        self.stdio.close()


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[Session]:
    before = len(os.listdir("/proc/self/fd"))
    made = Session(tmp_path)
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one each time that a pump is woken."""
    woken: list[None] = []
    go_on = Pump._go_on

    def counted(pump: Pump) -> None:
        woken.append(None)
        go_on(pump)

    monkeypatch.setattr(Pump, "_go_on", counted)
    return woken


async def settled(turns: list[None]) -> None:
    """Wait until the pumps rest, which they must."""
    for _ in range(100):
        before = len(turns)
        await asyncio.sleep(0.05)
        if len(turns) == before > 0:
            return
    raise AssertionError("the pumps do not rest")


async def test_a_conversation(session: Session) -> None:
    session.attach()
    session.run("tty")
    assert await session.until(b"tty 1 1 1\r\n") == b"tty 1 1 1\r\n"
    session.type(b"one\r")  # as the key sends it
    assert await session.until(b"'\r\n") == b"one\r\ngot 'one'\r\n"
    session.type(b"tpyo\x7f\x7f\x7fypo\n")  # the line is the terminal's until its end
    assert (await session.until(b"'\r\n")).endswith(b"got 'typo'\r\n")
    session.stdio.close_input()
    assert await session.to_the_end() == b"end\r\n"


async def test_the_interrupt_key_is_a_signal(session: Session) -> None:
    session.attach()
    session.run("tty")
    await session.until(b"tty")
    session.type(b"\3")
    assert await session.ended() == -signal.SIGINT


async def test_size_and_its_changes(session: Session) -> None:
    session.attach()
    session.stdio.resize(132, 43)
    session.run("tty", "size")
    await session.until(b"size 132 43\r\n")
    session.stdio.resize(80, 25)
    await session.until(b"size 80 25\r\n")
    session.stdio.resize(1 << 20, 1 << 31)  # fields of a request have 32 bits
    await session.until(b"size 65535 65535\r\n")


async def test_a_size_that_comes_before_the_terminal() -> None:
    streams = Stdio("", "", "", terminal=True)
    streams.resize(80, 25)
    fds = streams.open()
    streams.connect()
    assert os.get_terminal_size(fds[0]) == (80, 25)
    for fd in fds:
        os.close(fd)
    streams.close()


async def test_no_size_without_a_terminal() -> None:
    streams = Stdio("", "", "")
    for fd in streams.open():
        os.close(fd)
    streams.resize(80, 25)
    streams.close()


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (b"", b""),
        (b"whole\n", b"got 'whole'\r\n"),
        (b"part", b"got 'part'\r\n"),
        (b"whole\npart", b"got 'whole'\r\ngot 'part'\r\n"),
    ],
)
async def test_end_of_input_comes_after_the_input(
    session: Session, typed: bytes, answer: bytes
) -> None:
    session.attach()
    if typed:
        session.type(typed)
    session.stdio.close_input()
    session.run("tty")
    assert (await session.to_the_end()).endswith(answer + b"end\r\n")


async def test_end_of_input_in_raw_modes_is_what_readline_expects(session: Session) -> None:
    modes = termios.tcgetattr(session.fds[0])
    modes[3] &= ~(termios.ICANON | termios.ECHO)
    modes[6][termios.VEOF] = b"\0"
    termios.tcsetattr(session.fds[0], termios.TCSANOW, modes)
    session.attach()
    session.type(b"x\n")
    session.stdio.close_input()
    got = b""
    async for _ in patiently(0.002):
        if len(got) == 3:
            break
        os.set_blocking(session.fds[0], False)
        try:
            got += os.read(session.fds[0], 100)
        except BlockingIOError:
            pass
    assert got == b"x\n\4"


async def test_detach_and_attach_again(session: Session) -> None:
    session.attach()
    session.run("tty", "size")
    await session.until(b"size 0 0\r\n")
    session.detach()
    await asyncio.sleep(0.05)  # for an end of input, or a hang-up, to arrive
    session.stdio.resize(10, 10)
    session.attach()
    await session.until(b"size 10 10\r\n")
    session.type(b"back\n")
    assert await session.until(b"'\r\n") == b"back\r\ngot 'back'\r\n"
    session.stdio.close_input()
    assert await session.ended() == 7


async def test_flood_to_a_slow_reader(session: Session) -> None:
    session.attach()
    session.run("stdio", "2")
    data = await session.to_the_end(chunk=7919)
    assert len(data) == 2 * 16384 * LINE
    assert [int(line) for line in data.split(b"\r\n")[:-1]] == list(range(2 * 16384))


async def test_flood_without_a_reader_waits_for_one(turns: list[None], session: Session) -> None:
    """The guest stands still, the shim has nothing to do, and nothing is lost or hoarded."""
    session.run("stdio", "1")
    await settled(turns)
    assert session.guest is not None
    assert session.guest.poll() is None
    session.attach()
    data = await session.to_the_end()
    assert [int(line) for line in data.split(b"\r\n")[:-1]] == list(range(16384))


@pytest.mark.parametrize(("lines", "full"), [(1, False), (900, False), (1, True), (400, True)])
async def test_a_reader_that_comes_after_the_end(session: Session, lines: int, full: bool) -> None:
    """In a `full` FIFO there is no room: it waits in the pty, which the guest's end hangs up."""
    if full:
        other = os.open(session.stdout, os.O_RDWR | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(other, b"x" * 4096)
        os.close(other)
    session.clear(local=termios.ECHO)  # whose output may come in the middle of the guest's
    session.run("tty")
    session.writer = os.open(session.stdin, os.O_WRONLY | os.O_NONBLOCK)
    session.type(b"0123456789\n" * lines)
    session.stdio.close_input()
    assert await session.ended() == 7
    await asyncio.sleep(0.05)
    session.reader = os.open(session.stdout, os.O_RDONLY | os.O_NONBLOCK)
    data = await session.to_the_end()
    assert data.count(b"got '0123456789'\r\n") == lines
    assert data.endswith(b"end\r\n")


async def test_more_than_fits_for_a_reader_that_comes_after_the_end(session: Session) -> None:
    """All that can be written without a reader: FIFO, pump and pty are full then."""
    session.clear(output=termios.OPOST)
    os.set_blocking(session.fds[1], False)
    data, given = b"".join(b"%07d\n" % number for number in range(1 << 16)), 0
    for _ in range(100):
        await asyncio.sleep(0.001)
        with contextlib.suppress(BlockingIOError):
            while True:
                given += os.write(session.fds[1], data[given : given + 1000])
    session.close_slaves()
    session.stdio.guest_ended()
    session.reader = os.open(session.stdout, os.O_RDONLY | os.O_NONBLOCK)
    got = await session.to_the_end()
    assert given == len(got) > 1 << 16
    assert got == data[:given]


async def test_delete_waits_for_a_slow_reader(
    turns: list[None], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "_DRAIN_PATIENCE", 1000)
    session.attach()
    session.run("stdio", "1")
    await settled(turns)
    assert session.guest is not None
    session.guest.kill()
    await session.ended()
    draining = asyncio.create_task(session.stdio.drain())
    await asyncio.sleep(0.01)
    assert not draining.done()  # the FIFO is full, the pump is not empty
    async for _ in patiently():
        if draining.done():
            break
        session.read()
    data = await session.to_the_end()
    assert b"".join(b"%-63d\r\n" % number for number in range(16384)).startswith(data)


@pytest.mark.parametrize("attached", [False, True])
async def test_delete_does_not_wait_for_nobody(
    turns: list[None], session: Session, monkeypatch: pytest.MonkeyPatch, attached: bool
) -> None:
    monkeypatch.setattr(stdio, "_DRAIN_PATIENCE", 1000)
    if attached:
        session.attach()
    session.run("stdio", "1")
    await settled(turns)
    assert session.guest is not None
    session.guest.kill()
    await session.ended()
    draining = asyncio.create_task(session.stdio.drain())
    await asyncio.sleep(0.01)
    session.detach()
    await draining


async def test_much_input_to_a_slow_guest(session: Session) -> None:
    session.attach()
    session.clear(termios.OPOST, termios.ICANON | termios.ECHO)
    session.run("cat")
    data = b"".join(b"%07d\n" % number for number in range(1 << 16))
    given, got = 0, b""
    async for _ in patiently():
        if len(got) == len(data):
            break
        try:
            given += os.write(session.writer, data[given : given + 60_000])
        except BlockingIOError:
            pass
        session.read()
        got, session.output = got + session.output[:1000], session.output[1000:]
    assert got == data


async def test_a_guest_that_closes_its_terminal_is_not_a_busy_loop(
    turns: list[None], session: Session
) -> None:
    session.attach()
    session.close_slaves()  # as if it had closed 0, 1 and 2, and went on
    session.type(b"anybody?\n")
    await settled(turns)
    session.stdio.say("nobody\n")  # the terminal is still there for who opens it
    await session.until(b"nobody\r\n")


async def test_what_the_runtime_says_comes_after_what_the_guest_said(session: Session) -> None:
    session.attach()
    os.write(session.fds[1], b"guest\n")
    session.stdio.say("runtime\n")
    assert await session.until(b"runtime\r\n") == b"guest\r\nruntime\r\n"


async def test_other_work_goes_on_during_a_flood(session: Session) -> None:
    session.attach()
    session.run("stdio", "4")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(other())
    data = await session.to_the_end()
    task.cancel()
    assert len(data) == 4 * 16384 * LINE
    assert turns > len(data) // (2 << 16)  # no more than a buffer or two at a time


async def test_no_streams_at_all() -> None:
    streams = Stdio("", "", "", terminal=True)
    fds = streams.open()
    streams.connect()
    assert [os.isatty(fd) for fd in fds] == [True] * 3
    os.set_blocking(fds[1], False)
    for _ in range(100):  # to nobody, who takes more than a pty holds
        await asyncio.sleep(0)
        with contextlib.suppress(BlockingIOError):
            os.write(fds[1], b"x" * 1000)
    for fd in fds:
        os.close(fd)
    streams.guest_ended()
    await streams.drain()
    streams.close()
