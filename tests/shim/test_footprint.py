"""What a life costs in things that can be counted: page faults, memory, system calls, modules.

The bounds are a tenth above what was counted; a change that exceeds one has made starts slower, or
pods larger. Where it has to, the bound is raised in the same commit, which says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from proto import task_v2_pb2 as api
from tests.shim.launching import ROOT, zygotes
from tests.shim.task_api import Shim, call

LIVES = 6


class Footprint(NamedTuple):
    """Of one process, or a bound for that: faults without a disk, and KiB of its own."""

    faults: int
    private: int


def footprint(pid: int) -> Footprint:
    faults = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7]
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    private = next(line.split()[1] for line in rollup if line.startswith("Private_Dirty:"))
    return Footprint(int(faults), int(private))


def bounds() -> tuple[Footprint, Footprint]:
    """For a shim and a guest of this interpreter."""
    if sys.version_info >= (3, 12):
        return Footprint(590, 1200), Footprint(500, 1450)
    return Footprint(2030, 5200), Footprint(1520, 5900)


class Started(NamedTuple):
    """A container that runs: its shim and its guest."""

    shim: int
    guest: int


@contextlib.asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Shim]:
    shim = Shim(directory, ["idle", "hello"])
    shim.python = sys.executable  # not one that looks for blocking calls, which takes memory, too
    try:
        yield shim
    finally:
        await shim.close()


async def start(shim: Shim, id: str) -> Started:
    client = await shim.create(id, "/idle.wasm")
    started = await call(client, "Start", api.StartRequest(id=id), api.StartResponse)
    connected = await call(client, "Connect", api.ConnectRequest(id=id), api.ConnectResponse)
    return Started(connected.shim_pid, started.pid)


async def test_of_a_shim_and_an_idle_guest(tmp_path: Path) -> None:
    async with running(tmp_path) as shim:
        processes = [await start(shim, f"c{number}") for number in range(LIVES)]
        await asyncio.sleep(0.5)  # what the guest does after Start's answer
        counted = [tuple(map(footprint, started)) for started in processes[2:]]
    for kind, bound in enumerate(bounds()):
        least = Footprint(*map(min, zip(*(each[kind] for each in counted), strict=True)))
        assert least.faults <= bound.faults, counted
        assert least.private <= bound.private, counted


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace counts system calls")
async def test_of_system_calls(tmp_path: Path) -> None:
    """From the zygote's fork to an idle guest; the end is not in it."""
    trace = tmp_path / "trace"
    async with running(tmp_path) as shim:
        for number in range(2):
            await start(shim, f"c{number}")
        (zygote,) = zygotes(tmp_path / "run")
        strace = await asyncio.create_subprocess_exec(
            *("strace", "-f", "-o", str(trace), "-p", str(zygote)), stderr=subprocess.PIPE
        )
        try:
            assert strace.stderr is not None
            await strace.stderr.readline()  # it is attached
            started = await start(shim, "traced")
            await asyncio.sleep(0.2)
        finally:
            strace.send_signal(signal.SIGINT)
            await strace.communicate()
    counted = Counter(
        line.split(maxsplit=1)[0]
        for line in trace.read_text().splitlines()
        if " resumed>" not in line
    )
    # A guest is numbered as its shim sees it, and is the zygote's grandchild.
    assert 0 < counted[str(started.shim)] <= (225 if sys.version_info >= (3, 12) else 265), counted
    assert 0 < counted[str(started.guest)] <= 355, counted
    assert 0 < counted[str(zygote)] <= 20, counted


def test_of_a_launcher() -> None:
    """An interpreter starts for what the program in C does not do, and somebody waits for it."""
    modules = imported(
        "before = set(sys.modules); import shim.launcher.main; print(*set(sys.modules) - before)"
    )
    assert modules == {"shim", "shim.launcher", "shim.launcher.main"}


def test_of_a_zygote() -> None:
    """What it imports is mapped by every process of every pod."""
    modules = imported(
        "from shim.zygote import main, rehearsal; main._preload(); "
        "print(*(name for name, module in sys.modules.items() if module)); "
        "sys.stdout.flush(); os._exit(0)"
    )
    needless = {"ssl", "grpc", "http", "email", "xml", "unittest", "multiprocessing", "tests"}
    needless |= {"bz2", "lzma", "zlib"}
    assert not needless & modules
    assert len(modules) < 545


def imported(program: str) -> set[str]:
    """The words that a program prints."""
    begin = f"import os, sys; sys.path.insert(0, {ROOT!r}); "
    command = [sys.executable, "-I", "-c", begin + program]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(told.stdout.split())
