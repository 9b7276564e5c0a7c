"""What a life costs in things that can be counted: page faults, private memory, modules.

The bounds are a tenth above what was counted; a change that exceeds one has made starts slower, or
pods larger. Where it has to, the bound is raised in the same commit, which says why.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from proto import task_v2_pb2 as api
from tests.shim.launching import ROOT
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
        return Footprint(850, 2000), Footprint(830, 2600)
    return Footprint(2030, 5200), Footprint(1520, 5900)


async def test_of_a_shim_and_an_idle_guest(tmp_path: Path) -> None:
    shim = Shim(tmp_path, ["idle"])
    shim.python = sys.executable  # not one that looks for blocking calls, which takes memory, too
    try:
        processes = []
        for number in range(LIVES):
            client = await shim.create(f"c{number}", "/idle.wasm")
            request = api.StartRequest(id=f"c{number}")
            started = await call(client, "Start", request, api.StartResponse)
            about = api.ConnectRequest(id=request.id)
            connected = await call(client, "Connect", about, api.ConnectResponse)
            processes.append((connected.shim_pid, started.pid))
        await asyncio.sleep(0.5)  # what the guest does after Start's answer
        counted = [(footprint(shim), footprint(guest)) for shim, guest in processes[2:]]
    finally:
        await shim.close()
    for kind, bound in enumerate(bounds()):
        least = Footprint(*map(min, zip(*(each[kind] for each in counted), strict=True)))
        assert least.faults <= bound.faults, counted
        assert least.private <= bound.private, counted


def test_of_a_zygote() -> None:
    """What it imports is mapped by every process of every pod."""
    program = (
        "from shim.zygote import main, rehearsal; main._preload(); "
        "print(*(name for name, module in sys.modules.items() if module)); "
        "sys.stdout.flush(); os._exit(0)"
    )
    begin = f"import os, sys; sys.path.insert(0, {ROOT!r}); "
    command = [sys.executable, "-I", "-c", begin + program]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    modules = told.stdout.split()
    needless = {"ssl", "grpc", "http", "email", "xml", "unittest", "multiprocessing", "tests"}
    assert not needless & set(modules)
    assert len(modules) < 480
