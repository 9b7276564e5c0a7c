"""Specs that are well-formed but extreme, to a real shim: a reason, or a container that works.

One section of the spec at a time, so that nothing else is refused before it.
"""

import asyncio
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from proto import task_v2_pb2 as api
from shim.ttrpc import Code, RpcError
from tests.oci.test_runtime import FULL, places
from tests.shim.daemon.test_task_fuzz import UNCAUGHT, Lab
from tests.shim.task_api import POD, call

# Of these a mistake hits nothing but the container: no hooks, no namespaces of others, no mounts.
PROCESS = (
    *("user", "env", "cwd", "args", "capabilities", "rlimits", "oomScoreAdj", "scheduler"),
    *("ioPriority", "consoleSize", "apparmorProfile", "selinuxLabel", "execCPUAffinity"),
)
LINUX = (
    *("sysctl", "resources", "devices", "netDevices", "seccomp", "rootfsPropagation"),
    *("maskedPaths", "readonlyPaths", "mountLabel", "intelRdt", "memoryPolicy", "personality"),
    *("timeOffsets", "uidMappings", "gidMappings"),
)
SECTIONS = [*(("process", name) for name in PROCESS), *(("linux", name) for name in LINUX)]
NEW = [{"type": kind} for kind in ("pid", "ipc", "uts", "network", "time")]

NUMBERS = st.sampled_from(
    (-1, 0, 1, 7, 2**16, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 10**30, -(2**63))
)
STRINGS = st.text(max_size=4) | st.sampled_from(
    ("", " ", "x", "\n", "..", "/", "../..", "é", "\ud7ff", "0-9", "%s", "x" * 300, "/x" * 3000)
)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    part, name = draw(st.sampled_from(SECTIONS))
    section = {name: deepcopy(FULL[part][name])}
    for place in draw(st.lists(st.sampled_from(places(section)), min_size=1, max_size=3)):
        inner: Any = section
        try:
            for step in place[:-1]:
                inner = inner[step]
            old = inner[place[-1]]
        except (LookupError, TypeError):
            continue
        if isinstance(old, bool):
            inner[place[-1]] = not old
        elif isinstance(old, int):
            inner[place[-1]] = draw(NUMBERS)
        elif isinstance(old, str):
            inner[place[-1]] = draw(STRINGS)
        elif isinstance(old, list):
            inner[place[-1]] = old * draw(st.sampled_from([0, 2, 70_000 // max(len(old), 1)]))
        elif isinstance(old, dict) and draw(st.booleans()):
            inner[place[-1]] = {draw(STRINGS): value for value in old.values()}
    process = {"args": ["/exit3.wasm"], "cwd": "/"}
    linux = {"namespaces": NEW, "cgroupsPath": "cgroup"}
    return {
        "process": process | (section if part == "process" else {}),
        "linux": linux | (section if part == "linux" else {}),
    }


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


def test_any_well_formed_spec(lab: Lab) -> None:
    async def life(name: str) -> None:
        client = lab.client
        await call(client, "Create", lab.shim.create_request(name), Empty)
        await call(client, "Start", api.StartRequest(id=name), Empty)
        ended = await asyncio.wait_for(call(client, "Wait", api.WaitRequest(id=name), Empty), 10)
        assert ended is not None

    async def clean_up(name: str) -> None:
        for method, request in (
            ("Kill", api.KillRequest(id=name, signal=9)),
            ("Delete", api.DeleteRequest(id=name)),
        ):
            try:
                await call(lab.client, method, request, Empty)
            except RpcError:
                pass

    # An example costs a container, and the next one has another id: shrinking helps little.
    @settings(max_examples=60, phases=(Phase.generate,))
    @given(specs())
    def lives(spec: dict[str, Any]) -> None:
        lab.count += 1
        name = f"s{lab.count}"
        spec["linux"]["cgroupsPath"] = f"/{lab.cgroups}{name}"
        lab.shim.bundle(name, **spec, annotations=POD)
        try:
            lab.run(life(name))
        except RpcError as error:
            refusal = error
        else:
            return
        finally:
            lab.run(clean_up(name))
        assert refusal.code in (Code.INVALID_ARGUMENT, Code.UNKNOWN), refusal
        assert not UNCAUGHT.match(refusal.message), refusal
        assert "internal error" not in refusal.message
        assert "ended while it was set up" not in refusal.message

    lives()
    lab.wait_for_quiet()
