"""Nothing that a pod's author writes acts on a terminal, or forges a line, where we repeat it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from proto import task_v2_pb2 as api
from proto.mount_pb2 import Mount
from shim.engines import engines
from shim.ttrpc import RpcError
from tests.guests.assemble import Function, leb, module
from tests.guests.build import build
from tests.integration.modules import EMPTY, importing
from tests.shim.task_api import Container, LaunchError, Shim, call, refused

EVIL = "\x1b]0;owned\x07\x9b2J\u202e\nlevel=error msg=forged\r"
LONG = "x" * 60_000


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("idle",))
    (started.rootfs / f"{EVIL}.wasm").write_bytes(importing("env", EVIL))
    (started.rootfs / f"{EVIL}-empty.wasm").write_bytes(EMPTY)
    yield started
    await started.close()


@pytest.fixture
def log(shim: Shim) -> int:
    """The reading end of what is the bundle's `log` for containers called `x`."""
    bundle = shim.bundle("x")
    os.mkfifo(bundle / "log")
    return os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)


def process(*args: str, **more: Any) -> dict[str, Any]:
    return {"process": {"args": list(args), "cwd": "/"} | more}


def mount(destination: str = "/x", type: str = "bind", source: str = "/", **more: Any) -> Any:
    options = more.get("options", ["bind"])
    entry = {"destination": destination, "type": type, "source": source, "options": options}
    return {"mounts": [entry]}


WRITTEN = {
    "annotation": {"annotations": {f"dev.pywasm.{EVIL}": ""}},
    "container": {"annotations": {f"dev.pywasm.engine/{EVIL}": "x", "dev.pywasm.engine": "y"}},
    "value": {"annotations": {"dev.pywasm.listen": EVIL}},
    "long": {"annotations": {f"dev.pywasm.{LONG}": ""}},
    "source": mount(source=f"/{EVIL}"),
    "destination": mount(destination=f"/{EVIL}\udc80", source="/none"),
    "long destination": mount(destination=f"/{LONG}"),
    "filesystem": mount(type=EVIL, options=[]),
    "option": mount(type="tmpfs", options=[EVIL]),
    "program": process(f"/none/{EVIL}"),
    "module": process(f"/{EVIL}.wasm"),
    "function": process(f"/{EVIL}-empty.wasm#{EVIL}"),
    "cwd": process("/idle.wasm", cwd=f"/idle.wasm/{EVIL}"),
    "limit": process("/idle.wasm", rlimits=[{"type": EVIL}]),
    "profile": process("/idle.wasm", apparmorProfile=EVIL),
    "cgroup": {"linux": {"cgroupsPath": f"/../{EVIL}"}},
    "namespace": {"linux": {"namespaces": [{"type": "network", "path": f"/{EVIL}"}]}},
    "device": {"linux": {"devices": [{"path": f"/{EVIL}", "type": EVIL}]}, **mount("/dev")},
    "sysctl": {"linux": {"sysctl": {EVIL: "1"}}},
    "seccomp": {"linux": {"seccomp": {"defaultAction": EVIL}}},
    "propagation": {"linux": {"rootfsPropagation": EVIL}},
    "hook": {"hooks": {"createContainer": [{"path": f"/{EVIL}"}]}},
    "native": {"annotations": {"dev.pywasm.handler": "native"}, **process(f"/{EVIL}")},
    "no spec": {"linux": {"namespaces": {EVIL: EVIL}}},
}


@pytest.mark.parametrize("what", WRITTEN)
async def test_in_a_spec(shim: Shim, what: str, log: int) -> None:
    config = shim.directory / "x" / "config.json"
    usual = json.loads(config.read_text())
    config.write_text(json.dumps(usual | process("/idle.wasm") | WRITTEN[what]))
    try:
        await Container.create(shim, "x")
    except RpcError as error:
        message = error.message
    except LaunchError as error:
        message = str(error)
    else:
        pytest.fail("nothing was refused")
    check(message, log)


def check(message: str, log: int) -> None:
    assert message
    assert message.isprintable()
    assert len(message) < 2100
    with open(log, newline="\n", errors="strict") as lines:
        for line in lines:
            assert line.startswith("time=")
            assert line[:-1].isprintable()


@pytest.mark.parametrize("field", ["source", "type", "target", "options"])
async def test_in_a_request(shim: Shim, log: int, field: str) -> None:
    value: Any = [f"\0{EVIL}"] if field == "options" else f"/\0{EVIL}"
    layer = Mount(**{"type": "bind", "source": "/none", field: value})
    with pytest.raises(RpcError) as caught:
        await Container.create(shim, "x", rootfs=[layer])
    check(caught.value.message, log)


async def test_in_an_exec(shim: Shim, log: int) -> None:
    shutil.copy(build("hello", native=True), shim.rootfs / "native")
    config = shim.directory / "x" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | process("/idle.wasm")))
    container = await Container.create(shim, "x")
    await container.start()
    for number, document in enumerate(
        (
            {"args": [f"/{EVIL}"], "cwd": "/"},
            {"args": [f"/{EVIL}.wasm"], "cwd": "/"},
            {"args": ["/native"], "cwd": f"/native/{EVIL}"},
            {"args": ["/native"], "cwd": "/", "rlimits": [{"type": EVIL}]},
        )
    ):
        spec = AnyMessage(value=json.dumps(document).encode())
        exec_id = f"e{number}"
        request = api.ExecProcessRequest(id="x", exec_id=exec_id, spec=spec)
        await call(container.client, "Exec", request, Empty)
        start = api.StartRequest(id="x", exec_id=exec_id)
        _, message = await refused(container.client, "Start", start)
        assert message.isprintable()
    await container.kill()
    await container.ended()
    check("-", log)


def named(name: str) -> bytes:
    """A module whose `_start` traps, and has this name in the section for debuggers."""
    encoded = name.encode()
    names = b"\1\0" + leb(len(encoded)) + encoded
    section = b"\4name\1" + leb(len(names)) + names
    start = Function(export="_start", body=b"\0")
    return module(start) + b"\0" + leb(len(section)) + section


@pytest.mark.parametrize("engine", [engine.name for engine in engines()])
async def test_in_a_backtrace(shim: Shim, engine: str) -> None:
    (shim.rootfs / "trap.wasm").write_bytes(named("\x1b[2J\u202e" + LONG))
    shim.bundle("t", "/trap.wasm", annotations={"dev.pywasm.engine": engine})
    ended = await (await Container.create(shim, "t")).run()
    assert ended.status == 134
    lines = ended.stderr.splitlines()
    assert lines[0] == "pywasm: wasm trap: unreachable"
    assert any("\\x1b[2J" in line for line in lines)
    for line in lines:
        assert line.isprintable()
        assert len(line) < 2100
