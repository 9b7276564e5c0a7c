"""Programs and files that take a guest's output; the programs are shell scripts."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from shim.daemon.streams import log_driver
from shim.daemon.streams.stdio import Stdio
from tests.shim.daemon.native import ended, start

ENV = {"CONTAINER_ID": "c", "CONTAINER_NAMESPACE": "n"}
LOGGER = """
cd {directory}
printf '%s\\n' "$@" >arguments
env >environment
ls -l /proc/self/fd >descriptors
printf x >&5; exec 5>&-
cat <&3 >stdout & cat <&4 >stderr; wait
touch done
"""


@pytest.fixture(autouse=True)
async def _nothing_left() -> AsyncIterator[None]:
    others, before = children(), len(os.listdir("/proc/self/fd"))
    yield
    for _ in range(200):  # what was killed at the end is reaped by the loop
        if children() <= others:
            break
        await asyncio.sleep(0.01)
    assert children() <= others
    assert len(os.listdir("/proc/self/fd")) == before


def children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Makes a script; returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "a logger"
        path.write_text("#!/bin/sh\n" + text.replace("{directory}", str(tmp_path)))
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture
def logger(program: Callable[[str], str]) -> str:
    return "binary://" + quote(program(LOGGER))


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
async def test_a_program_gets_both_streams(tmp_path: Path, logger: str, scheme: str) -> None:
    uri = logger.replace("binary", scheme, 1)
    stdio = Stdio("", uri, uri, logger_env=ENV)
    fds = stdio.open()
    await stdio.ready()
    os.write(fds[1], b"answer\n")
    os.write(fds[2], b"doubt\n")
    close(fds)
    stdio.guest_ended()
    await stdio.drain()
    stdio.close()
    assert (tmp_path / "stdout").read_text() == "answer\n"
    assert (tmp_path / "stderr").read_text() == "doubt\n"
    assert (tmp_path / "done").exists()


async def test_what_a_program_is_given(tmp_path: Path, logger: str) -> None:
    uri = f"{logger}?key=value&empty=&again=1&again=2&odd=a%20%26%3Db"
    stdio = Stdio("", uri, "", logger_env=ENV)
    stray = os.memfd_create("stray", 0)
    close(stdio.open())
    await stdio.ready()
    os.close(stray)
    stdio.guest_ended()
    await stdio.drain()
    stdio.close()
    assert (tmp_path / "arguments").read_text().split("\n") == [
        *("key", "value", "empty", "", "again", "1", "odd", "a &=b", "")
    ]
    names = {line.partition("=")[0] for line in (tmp_path / "environment").read_text().split()}
    shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert names - shell == set(ENV)
    assert "CONTAINER_ID=c\n" in (tmp_path / "environment").read_text()
    listed = [line.split() for line in (tmp_path / "descriptors").read_text().splitlines()[1:]]
    targets = {words[8]: words[10] for words in listed}
    assert {targets["0"], targets["2"]} == {"/dev/null"}
    assert all(targets[number].startswith("pipe:") for number in "345")
    # Beyond 5 the shell has its script, and ls what it lists.
    assert not [
        t for n, t in targets.items() if int(n) > 5 and not t.startswith(("/proc/", "/tmp"))
    ]


async def test_closing_is_readiness_enough_for_the_older_kind(
    tmp_path: Path, program: Callable[[str], str]
) -> None:
    path = quote(program("exec 5>&-; exec cat <&3 >{directory}/out"))
    stdio = Stdio("", f"binary://{path}", "")
    fds = stdio.open()
    await stdio.ready()
    os.write(fds[1], b"answer")
    close(fds)
    stdio.guest_ended()
    await stdio.drain()
    stdio.close()
    assert (tmp_path / "out").read_text() == "answer"
    stdio = Stdio("", f"binary-v2://{path}", "")
    close(stdio.open())
    with pytest.raises(OSError, match="before it was ready"):
        await stdio.ready()
    stdio.close()


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
async def test_a_program_that_crashes(program: Callable[[str], str], scheme: str) -> None:
    stdio = Stdio("", f"{scheme}://{quote(program('exit 3'))}", "")
    close(stdio.open())
    with pytest.raises(OSError, match="before it was ready"):
        await stdio.ready()
    stdio.close()


async def test_a_program_that_does_not_exist(tmp_path: Path) -> None:
    stdio = Stdio("", f"binary://{tmp_path}/none?x=y", "")
    close(stdio.open())
    with pytest.raises(FileNotFoundError) as caught:
        await stdio.ready()
    assert caught.value.filename == f"{tmp_path}/none"
    stdio.close()


async def test_a_program_that_cannot_be_executed(tmp_path: Path) -> None:
    (tmp_path / "text").touch()
    stdio = Stdio("", f"binary://{tmp_path}/text", "")
    close(stdio.open())
    with pytest.raises(PermissionError):
        await stdio.ready()
    stdio.close()


async def test_a_program_that_is_never_ready(
    program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_driver, "_READY_PATIENCE", 0.05)
    stdio = Stdio("", "binary://" + quote(program("exec sleep 1000")), "")
    close(stdio.open())
    with pytest.raises(OSError, match="not ready") as caught:
        await stdio.ready()
    assert caught.value.errno == errno.ETIMEDOUT
    stdio.close()


@pytest.mark.parametrize("trap", ["", "trap '' TERM"])
async def test_a_program_that_does_not_end_is_ended(
    program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.setattr(log_driver, "_END_PATIENCE", 0.05)
    monkeypatch.setattr(log_driver, "_TERM_PATIENCE", 0.05)
    stdio = Stdio("", "binary://" + quote(program(f"{trap}\necho >&5\nexec sleep 1000")), "")
    close(stdio.open())
    await stdio.ready()
    stdio.guest_ended()
    await stdio.drain()
    stdio.close()


async def test_a_guest_whose_logger_dies_gets_an_error(program: Callable[[str], str]) -> None:
    stdio = Stdio("", "binary://" + quote(program("echo >&5")), "")
    fds = stdio.open()
    await stdio.ready()
    await stdio.drain()
    with pytest.raises(BrokenPipeError):
        os.write(fds[1], b"x")
    close(fds)
    stdio.close()


async def test_a_terminals_logger(tmp_path: Path, logger: str) -> None:
    stdio = Stdio("", logger, logger, terminal=True, logger_env=ENV)
    fds = stdio.open()
    await stdio.ready()
    stdio.connect()
    os.write(fds[2], b"line\n")
    close(fds)
    stdio.guest_ended()
    await stdio.drain()
    stdio.close()
    assert (tmp_path / "stdout").read_bytes() == b"line\r\n"


async def test_a_terminal_whose_logger_dies_goes_on(program: Callable[[str], str]) -> None:
    stdio = Stdio("", "binary://" + quote(program("echo >&5")), "", terminal=True)
    fds = stdio.open()
    await stdio.ready()
    stdio.connect()
    assert await ended(start(fds, "stdio", "1")) == 0
    stdio.guest_ended()
    await stdio.drain()
    stdio.close()


@pytest.mark.parametrize("terminal", [False, True])
async def test_a_file_is_appended_to(tmp_path: Path, terminal: bool) -> None:
    path = tmp_path / "new" / "directory" / "a log"
    for words in (b"first\n", b"second\n"):
        stdio = Stdio("", f"file://{quote(str(path))}", "", terminal=terminal)
        fds = stdio.open()
        await stdio.ready()
        stdio.connect()
        os.write(fds[1], words)
        close(fds)
        stdio.guest_ended()
        await stdio.drain()
        stdio.close()
    assert path.read_text().split() == ["first", "second"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


async def test_both_streams_in_one_file_are_in_order(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/log"
    stdio = Stdio("", uri, uri)
    fds = stdio.open()
    for number in range(100):
        os.write(fds[1 + number % 2], b"%d\n" % number)
    stdio.say("pywasm: said\n")
    close(fds)
    stdio.guest_ended()
    await stdio.drain()
    stdio.close()
    numbers = (tmp_path / "log").read_text().split("\n")
    assert numbers == [*map(str, range(100)), "pywasm: said", ""]


async def test_a_guest_does_not_hold_the_file(tmp_path: Path) -> None:
    stdio = Stdio("", f"file://{tmp_path}/out", f"file://{tmp_path}/err")
    fds = stdio.open()
    assert [stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in fds[1:]] == [True, True]
    os.write(fds[2], b"x")
    close(fds)
    stdio.guest_ended()
    await stdio.drain()
    stdio.close()
    assert [(tmp_path / name).read_text() for name in ("out", "err")] == ["", "x"]


async def test_an_existing_file_needs_no_uri(tmp_path: Path) -> None:
    path = tmp_path / "100% regular?"
    path.write_text("before ")
    stdio = Stdio("", str(path), str(path))
    fds = stdio.open()
    os.write(fds[2], b"after")
    close(fds)
    stdio.guest_ended()
    await stdio.drain()
    stdio.close()
    assert path.read_text() == "before after"


async def test_a_full_disk_costs_the_log_and_not_the_guest() -> None:
    stdio = Stdio("", "file:///dev/full", "")
    fds = stdio.open()
    assert await ended(start(fds, "stdio", "1")) == 0
    stdio.guest_ended()
    await stdio.drain()
    stdio.close()


async def test_flood_into_a_file(tmp_path: Path) -> None:
    stdio = Stdio("", f"file://{tmp_path}/log", "")
    fds = stdio.open()
    assert await ended(start(fds, "stdio", "16")) == 0
    stdio.guest_ended()
    await stdio.drain()
    stdio.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [int(line) for line in lines] == list(range(16 * 16384))


@pytest.mark.parametrize("uri", ["npipe:///x", "binary://host/x", "binary:relative", "binary://x"])
async def test_anything_else_is_refused_by_name(uri: str) -> None:
    with pytest.raises(OSError) as caught:
        Stdio("", uri, "").open()
    assert uri in str(caught.value)
