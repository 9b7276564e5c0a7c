"""What the kernel may merge: of a real shim and its guest, by what it says of their mappings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proto import task_v2_pb2 as api
from tests.shim.task_api import Shim, call


@pytest.mark.skipif(not os.path.exists("/sys/kernel/mm/ksm"), reason="the kernel has no KSM")
@pytest.mark.parametrize("settings", ["", "merge_pages = true\n"])
async def test_only_what_the_shim_had_can_be_merged(tmp_path: Path, settings: str) -> None:
    shim = Shim(tmp_path, ["idle"])
    (tmp_path / "config.toml").write_text(settings)
    shim.env["PYWASM_CONFIG"] = str(tmp_path / "config.toml")
    try:
        client = await shim.create("c", "/idle.wasm")
        started = await call(client, "Start", api.StartRequest(id="c"), api.StartResponse)
        connected = await call(client, "Connect", api.ConnectRequest(id="c"), api.ConnectResponse)
        for pid in started.pid, connected.shim_pid:
            mergeable = set()
            name = ""
            for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
                field, *values = line.split()
                if not field.endswith(":"):
                    name = " ".join([values[0], *values[4:5]])
                elif field == "VmFlags:" and "mg" in values:
                    mergeable.add(name)
            assert mergeable == ({"rw-p"} if settings else set())
    finally:
        await shim.close()
