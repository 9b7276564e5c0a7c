"""A module, root or not, does not write to its own memory: that would be native code of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shim.engines import engines
from shim.linux.mounts import mount, umount
from tests.shim.task_api import Container, Shim


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("probe",))
    (started.rootfs / "proc").mkdir()
    (tmp_path / "tree/proc").mkdir(parents=True)
    mount("proc", str(tmp_path / "tree/proc"), "proc")
    yield started
    await started.close()
    umount(str(tmp_path / "tree/proc"))


@pytest.mark.parametrize("engine", [engine.name for engine in engines()])
@pytest.mark.parametrize("way", ["mount", "bind", "tree"])
async def test_no_way_to_its_own_memory(shim: Shim, way: str, engine: str) -> None:
    kind, source, destination, options = {
        "mount": ("proc", "proc", "/proc", []),
        "bind": ("bind", "/proc", "/proc", ["rbind", "rw"]),
        "tree": ("bind", str(shim.directory / "tree"), "/tree", ["rbind", "rw"]),
    }[way]
    proc = "/tree/proc" if way == "tree" else "/proc"
    shim.bundle(
        "x",
        *("/probe.wasm", "read", f"{proc}/self/comm", "write", f"{proc}/self/mem"),
        mounts=[{"destination": destination, "type": kind, "source": source, "options": options}],
        annotations={"dev.pywasm.kernel-filesystems": "proc", "dev.pywasm.engine": engine},
        # Its number in the /proc that it sees.
        linux={"namespaces": [{"type": "pid"}, {"type": "mount"}][way != "mount" :]},
    )
    ended = await (await Container.create(shim, "x")).run()
    assert ended == (0, "probe.wasm\nEROFS\n", "")
