"""Orphans of real processes; in a child, since a subreaper is one for ever."""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from shim.daemon.containers.process import Process
from shim.daemon.containers.reaper import Reaper
from shim.linux import clone
from tests.shim.daemon.patience import until


def in_child(test: Callable[[], Awaitable[None]]) -> None:
    child = clone.clone(lambda: asyncio.run(test()))  # type: ignore[arg-type]
    try:
        assert clone.wait(child.pidfd) == 0
    finally:
        os.close(child.pidfd)


def orphan(status: int, seconds: float = 0.0) -> int:
    """Have a child make a child of its own, and end; return the pid of the latter."""
    read, write = os.pipe()

    def end() -> None:
        time.sleep(seconds)
        sys.exit(status)

    def make() -> None:
        os.write(write, b"%d" % clone.clone(end).pid)

    parent = clone.clone(make)
    clone.wait(parent.pidfd)
    os.close(parent.pidfd)
    pid = int(os.read(read, 16))
    os.close(read)
    os.close(write)
    return pid


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_process_that_is_expected_is_adopted_and_waited_for() -> None:
    async def test() -> None:
        reaper = Reaper()
        with reaper.expecting():
            pid = orphan(7)
            await until(lambda: is_zombie(pid))
            await asyncio.sleep(0.05)  # in which it must not be reaped
            process = Process(clone.adopt(pid))
            process.watch()
        assert await process.exited == 7
        assert not exists(pid)

    in_child(test)


def test_orphans_are_reaped() -> None:
    async def test() -> None:
        reaper = Reaper()
        with reaper.expecting():
            first = orphan(1)
            await until(lambda: is_zombie(first))
        assert not exists(first)
        later = [orphan(1, 0.02) for _ in range(5)]
        await until(lambda: not any(map(exists, later)))

    in_child(test)


def test_children_that_somebody_waits_for_are_left_alone() -> None:
    async def test() -> None:
        reaper = Reaper()
        with reaper.expecting():
            pass
        children = [clone.clone(lambda: sys.exit(3)) for _ in range(3)]
        await until(lambda: all(is_zombie(child.pid) for child in children))
        pid = orphan(1)
        await asyncio.sleep(0.05)
        assert [clone.wait(child.pidfd) for child in children] == [3, 3, 3]
        await until(lambda: not exists(pid))

    in_child(test)
