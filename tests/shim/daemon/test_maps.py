"""No page of a process of ours is writable and executable, nor writable for others who execute it.

And those who come from one zygote share no page that one of them could write to.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto import task_v2_pb2 as api
from shim.engines import engines
from shim.ttrpc import Code, RpcError
from tests.guests.build import build
from tests.shim.compiler.test_process import SLOW
from tests.shim.daemon.patience import until
from tests.shim.task_api import POD, Container, Shim, call, processes

SANDBOX = {"io.kubernetes.cri.container-type": "sandbox"}


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("idle",))
    yield started
    await started.close()


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


def code_that_can_be_written(pid: int) -> list[str]:
    """Its mappings that are both, or shared and writable."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    assert lines
    flags = [line.split()[1] for line in lines]
    return [
        line
        for line, may in zip(lines, flags, strict=True)
        if {"w", "x"} <= set(may) or {"w", "s"} <= set(may)
    ]


@pytest.mark.parametrize("engine", [engine.name for engine in engines()])
async def test_functions_of_other_types_are_made_before(shim: Shim, engine: str) -> None:
    """Which a guest chooses when it knows its module; to make a callback then would be its end."""
    shutil.copy(build("http_wasmedge"), shim.rootfs / "server.wasm")
    await shim.create("x", "/server.wasm", annotations={"dev.pywasm.engine": engine})


async def test_of_whatever_runs(shim: Shim) -> None:
    bundle = shim.bundle("sandbox", annotations={**SANDBOX, **POD})
    sandbox = await Container.create(shim, "sandbox")
    started = await call(sandbox.client, "Start", api.StartRequest(id="sandbox"), api.StartResponse)
    await until(lambda: name(started.pid) == "pywasm-sandbox")
    for engine in engines():
        annotations = {"dev.pywasm.engine": engine.name, **POD}
        shim.bundle(engine.name, "/idle.wasm", annotations=annotations)
        guest = await Container.create(shim, engine.name, sandbox.client)
        await guest.start()
    shim.bundle("logged", "/idle.wasm", annotations=POD)
    request = shim.create_request("logged", stdout=f"file://{bundle}/log.txt")
    await call(sandbox.client, "Create", request, api.CreateTaskResponse)

    # The sandbox was executed, with an environment of its own.
    running = {pid: name(pid) for pid in (*processes(shim.env), started.pid)}
    parts = ("zygote", "warmer", "shim", "log", "sandbox")
    assert set(running.values()) == {"idle.wasm", *(f"pywasm-{part}" for part in parts)}
    for pid, who in running.items():
        assert (who, code_that_can_be_written(pid)) == (who, [])


@pytest.mark.parametrize("engine", [engine.name for engine in engines()])
async def test_of_a_compiler(shim: Shim, engine: str) -> None:
    """As long as it lives: what it generates it does not execute."""
    (shim.rootfs / "slow.wasm").write_bytes(SLOW[engine])
    shim.bundle("x", "/slow.wasm", annotations={"dev.pywasm.engine": engine})
    creating = asyncio.create_task(Container.create(shim, "x"))
    pid = 0
    while not pid:
        await asyncio.sleep(0.01)
        assert not creating.done()
        pid = next((pid for pid in processes(shim.env) if name(pid) == "pywasm-compiler"), 0)
    found = set()
    for _ in range(20):
        found.update(code_that_can_be_written(pid))
        await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RpcError, match="the compiler failed") as caught:
        await creating
    assert caught.value.code == Code.UNAVAILABLE  # another time it may be left alone
    assert found == set()
