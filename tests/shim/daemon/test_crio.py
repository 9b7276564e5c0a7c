"""What the shim does for CRI-O, which takes no events; scripts/crio has the real one."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.shim.task_api import Container, Shim

CRIO = {"io.kubernetes.cri-o.ContainerType": "container", "io.container.manager": "cri-o"}
LIMITED = {"resources": {"memory": {"limit": 64 << 20, "swap": 64 << 20}}}


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("bombs",))
    started.env["TTRPC_ADDRESS"] = ""
    yield started
    await started.close()


async def end_of(shim: Shim, name: str, *args: str, **spec: Any) -> tuple[int, bool]:
    """A container's exit status, and whether CRI-O sees that its memory was not enough."""
    group = f"/pywasm-test-{os.getpid()}-{name}"
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts")]
    linux = {"namespaces": namespaces, "cgroupsPath": group} | LIMITED
    bundle = shim.bundle(name, "/bombs.wasm", *args, linux=linux, **spec)
    container = await Container.create(shim, name)
    await container.start()
    status = (await container.ended()).status
    return status, (bundle / "oom").exists()


async def test_a_file_tells_of_out_of_memory(shim: Shim) -> None:
    assert await end_of(shim, "a", "memory", "200", annotations=CRIO) == (137, True)
    assert not (await end_of(shim, "b", "no such bomb", annotations=CRIO))[1]
    assert await end_of(shim, "c", "memory", "200") == (137, False)
