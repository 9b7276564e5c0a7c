"""A guest here is whatever reads and writes the descriptors that Stdio.open returns."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.daemon.stdio import Stdio


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[list[str]]:
    names = [str(tmp_path / name) for name in ("in", "out", "err")]
    for name in names:
        os.mkfifo(name)
    before = os.listdir("/proc/self/fd")
    yield names
    assert len(os.listdir("/proc/self/fd")) == len(before)


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
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == ["/dev/null"] * 3
    close(fds)
    stdio.close()


@pytest.mark.parametrize("what", ["binary:///bin/log?id=x", "regular", "missing"])
async def test_anything_else_is_refused_by_name(tmp_path: Path, what: str) -> None:
    path = what if "://" in what else str(tmp_path / what)
    if what == "regular":
        Path(path).touch()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:
        Stdio("", path, "").open()
    assert path in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before
