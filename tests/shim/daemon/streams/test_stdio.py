"""A guest here is whatever reads and writes the descriptors that Stdio.open returns."""

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.daemon.streams import writers
from shim.daemon.streams.stdio import Stdio
from tests.shim.daemon.native import Guest, start
from tests.shim.daemon.patience import patiently


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[list[str]]:
    names = [str(tmp_path / name) for name in ("in", "out", "err")]
    for name in names:
        os.mkfifo(name)
    before = open_files()
    yield names
    assert open_files() == before


def open_files() -> int:
    """Count descriptors, but for the loop's one inotify."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum("inotify" not in name for name in found)


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


async def test_streams_are_the_fifos(paths: list[str]) -> None:
    stdio = Stdio(*paths)
    stdin, stdout, stderr = stdio.open()
    writer = os.open(paths[0], os.O_WRONLY)
    readers = [os.open(path, os.O_RDONLY) for path in paths[1:]]
    os.write(writer, b"question")
    assert os.read(stdin, 100) == b"question"
    os.write(stdout, b"answer")
    os.write(stderr, b"doubt")
    assert [os.read(reader, 100) for reader in readers] == [b"answer", b"doubt"]
    close([stdin, stdout, stderr, writer, *readers])
    stdio.close()


async def test_opening_waits_for_nobody(paths: list[str]) -> None:
    stdio = Stdio(*paths)
    close(stdio.open())
    stdio.close()


async def test_no_end_of_input_before_a_writer_came(paths: list[str]) -> None:
    stdio = Stdio(*paths)
    fds = stdio.open()
    os.set_blocking(fds[0], False)
    with pytest.raises(BlockingIOError):
        os.read(fds[0], 1)
    close(fds)
    stdio.close()


async def test_close_input_is_the_end_of_input(paths: list[str]) -> None:
    stdio = Stdio(*paths)
    fds = stdio.open()
    stdio.close_input()
    assert os.read(fds[0], 1) == b""
    close(fds)
    stdio.close()


async def test_the_writers_close_is_the_end_of_input(paths: list[str]) -> None:
    stdio = Stdio(*paths)
    fds = stdio.open()
    writer = os.open(paths[0], os.O_WRONLY)
    os.write(writer, b"last words")
    os.close(writer)
    await asyncio.sleep(0.05)
    assert os.read(fds[0], 100) == b"last words"
    assert os.read(fds[0], 100) == b""
    close(fds)
    stdio.close()


async def test_input_where_somebody_has_taken_every_inotify(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any container's root can: the kernel counts them for the whole node."""

    def taken() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(writers, "Inotify", taken)
    stdio = Stdio(*paths)
    fds = stdio.open()
    with open(paths[0], "wb", 0) as writer:
        writer.write(b"last words")
    stdio.close_input()
    assert os.read(fds[0], 100) == b"last words"
    assert os.read(fds[0], 100) == b""
    close(fds)
    stdio.close()


async def test_a_missing_reader_does_not_kill_the_writer(paths: list[str]) -> None:
    stdio = Stdio("", paths[1], paths[2])
    fds = stdio.open()
    reader = os.open(paths[1], os.O_RDONLY)
    os.close(reader)
    assert os.write(fds[1], b"still here") == 10
    close(fds)
    stdio.close()


async def test_a_late_reader_gets_what_a_guest_left(paths: list[str]) -> None:
    stdio = Stdio("", paths[1], paths[2])
    fds = stdio.open()
    os.write(fds[1], b"left behind")
    close(fds)
    stdio.guest_ended()
    reader = os.open(paths[1], os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b"left behind"
    while True:  # end of file, once the shim has noticed that it is not needed any more
        try:
            assert os.read(reader, 100) == b""
            break
        except BlockingIOError:
            await asyncio.sleep(0.01)
    os.close(reader)
    stdio.close()


async def test_a_present_reader_gets_its_end_of_file_at_once(paths: list[str]) -> None:
    stdio = Stdio("", paths[1], paths[2])
    fds = stdio.open()
    reader = os.open(paths[1], os.O_RDONLY)
    os.write(fds[1], b"all")
    close(fds)
    stdio.guest_ended()
    assert os.read(reader, 100) == b"all"
    assert os.read(reader, 100) == b""
    os.close(reader)
    stdio.close()


async def test_empty_paths_are_dev_null() -> None:
    stdio = Stdio("", "", "")
    fds = stdio.open()
    assert [os.fstat(fd).st_rdev for fd in fds] == [os.stat("/dev/null").st_rdev] * 3
    close(fds)
    stdio.close()


async def test_fifos_may_be_uris(paths: list[str]) -> None:
    stdio = Stdio(*(f"fifo://{path}" for path in paths))
    stdin, stdout, stderr = stdio.open()
    reader = os.open(paths[1], os.O_RDONLY)
    os.write(stdout, b"answer")
    assert os.read(reader, 100) == b"answer"
    close([stdin, stdout, stderr, reader])
    stdio.close()


async def test_one_fifo_for_both_outputs(paths: list[str]) -> None:
    stdio = Stdio("", paths[1], paths[1])
    fds = stdio.open()
    reader = os.open(paths[1], os.O_RDONLY)
    os.write(fds[2], b"doubt")
    os.write(fds[1], b"answer")
    close(fds)
    stdio.guest_ended()
    assert os.read(reader, 100) == b"doubtanswer"
    assert os.read(reader, 100) == b""
    os.close(reader)
    stdio.close()


@pytest.mark.parametrize("target", ["{}/missing", "{}", "fifo://{}/regular", "file://relative"])
@pytest.mark.parametrize("terminal", [False, True])
async def test_what_cannot_be_opened_is_named(tmp_path: Path, target: str, terminal: bool) -> None:
    (tmp_path / "regular").touch()
    target = target.format(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:
        Stdio("", target, "", terminal=terminal).open()
    assert caught.value.filename == target.removeprefix("fifo://")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_input_that_is_no_fifo(tmp_path: Path) -> None:
    path = tmp_path / "regular"
    path.touch()
    with pytest.raises(OSError, match="not a FIFO"):
        Stdio(str(path), "", "").open()


async def test_flood_to_a_slow_reader_beside_a_fast_one(tmp_path: Path) -> None:
    """Two guests of one shim, which is in neither's way."""
    guests = []
    for name, chunk in (("slow", 5_000), ("fast", 1 << 20)):
        path = tmp_path / name
        os.mkfifo(path)
        stdio = Stdio("", str(path), "")
        fds = stdio.open()
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        guest = start(fds, "stdio", "8")
        guests.append(asyncio.create_task(drained(stdio, guest, reader, chunk)))
    for amount, _ in [await guest for guest in guests]:
        assert amount == 8 << 20
    turns = [turns for _, turns in [guest.result() for guest in guests]]
    assert turns[0] > turns[1]


async def drained(stdio: Stdio, guest: Guest, reader: int, chunk: int) -> tuple[int, int]:
    """Read to the end; return the bytes, numbered lines without a gap, and how often we read."""
    data, turns, open_ = b"", 0, True
    async for _ in patiently():
        if not open_:
            break
        if guest.poll() is not None:
            stdio.guest_ended()
        try:
            got = os.read(reader, chunk)
        except BlockingIOError:
            continue
        turns += 1
        data += got
        open_ = bool(got)
    os.close(reader)
    stdio.close()
    assert [int(line) for line in data.splitlines()] == list(range(len(data) // 64))
    return len(data), turns
