"""No shim keeps a container's secrets, so no guest that it clones later has a copy of them.

Everything that a process could read of a shim's memory is searched, and of a guest made afterwards.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from proto import task_v2_pb2 as api
from proto import ttrpc_pb2
from shim.ttrpc.frames import REQUEST, encode
from tests.guests.build import build
from tests.shim.daemon.containers.test_native import spec
from tests.shim.daemon.patience import patiently
from tests.shim.task_api import POD, Output, Shim, call

_CHUNK = 1 << 22
LARGE = 100_000  # bytes: more than a read of the server, a packet of the channel, a pool


def found(pid: int, markers: Iterable[bytes]) -> set[bytes]:
    """Return those that are in the memory of a process: all that it can read itself."""
    seen = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            tail = b""
            for at in range(start, end, _CHUNK):
                try:
                    memory.seek(at)
                    data = tail + memory.read(min(_CHUNK, end - at))
                except (OSError, OverflowError):
                    break  # not readable: [vvar], a guard page
                seen |= {marker for marker in markers if marker in data}
                tail = data[-64:]
    return seen


class Pod:
    """A shim with a wasm container, `x`, and a native one, `n`; and what they were told."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        self.markers: dict[bytes, str] = {}
        self._later = 0

    def marker(self, what: str) -> str:
        made = f"s3cr3t-{secrets.token_hex(16)}"
        self.markers[made.encode()] = what
        return made

    async def begin(self) -> None:
        process = {
            "args": ["/idle.wasm", self.marker("argument of x")],
            "env": [f"A={self.marker('environment of x')}", "B=" + self.many("environment of x")],
            "cwd": "/",
        }
        self.client = await self.shim.create("x", annotations=POD, process=process)
        process = {"env": ["PATH=/", f"A={self.marker('environment of n')}"]}
        native = spec("/idle", self.marker("argument of n"), process=process, annotations=POD)
        self.shim.bundle("n", **native)
        await self.shim.start("n")  # which joins the pod, and ends n with it
        await call(self.client, "Create", self.shim.create_request("n"), api.CreateTaskResponse)
        for id in ("x", "n"):
            await call(self.client, "Start", api.StartRequest(id=id), Empty)
        answer = await call(self.client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
        self.pid = answer.shim_pid

    def many(self, what: str) -> str:
        return self.marker(what) * (LARGE // 40)

    async def execute(self, id: str, exec_id: str, *args: str, **request: Any) -> None:
        """Run a program with secrets to its end, the size of the document as its name says."""
        secret = self.many if exec_id.endswith("large") else self.marker
        process = {
            "args": [*args, secret(f"argument of {exec_id}")],
            "env": ["PATH=/", f"A={secret(f'environment of {exec_id}')}"],
            "cwd": "/",
        }
        value = AnyMessage(value=json.dumps(process).encode())
        message = api.ExecProcessRequest(id=id, exec_id=exec_id, spec=value, **request)
        await call(self.client, "Exec", message, Empty)
        start = api.StartRequest(id=id, exec_id=exec_id)
        await call(self.client, "Start", start, api.StartResponse)

    async def exited(self, id: str, exec_id: str) -> int:
        wait = api.WaitRequest(id=id, exec_id=exec_id)
        status = (await call(self.client, "Wait", wait, api.WaitResponse)).exit_status
        await call(self.client, "Delete", api.DeleteRequest(id=id, exec_id=exec_id), Empty)
        return status

    def kept(self, pid: int) -> set[str]:
        return {self.markers[marker] for marker in found(pid, self.markers)}

    async def check(self) -> None:
        """Neither the shim nor a guest made now has anything."""
        assert self.kept(self.pid) == set()
        await self.check_later()

    async def check_later(self) -> None:
        """A guest made now has nothing."""
        self._later += 1
        id = f"later-{self._later}"
        self.shim.bundle(id, "/idle.wasm", annotations=POD)
        request = self.shim.create_request(id)
        made = await call(self.client, "Create", request, api.CreateTaskResponse)
        assert self.kept(made.pid) == set()
        kill = api.KillRequest(id=id, signal=signal.SIGKILL)
        await call(self.client, "Kill", kill, Empty)
        await call(self.client, "Wait", api.WaitRequest(id=id), Empty)
        await call(self.client, "Delete", api.DeleteRequest(id=id), Empty)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    shim = Shim(tmp_path, ("idle", "hello", "tty"))
    for name in ("idle", "hello", "tty"):
        shutil.copy(build(name, native=True), shim.rootfs / name)
    made = Pod(shim)
    try:
        await made.begin()
        yield made
    finally:
        await shim.close()


async def test_the_search_finds_what_is_there(pod: Pod) -> None:
    state = await call(pod.client, "State", api.StateRequest(id="x"), api.StateResponse)
    assert pod.kept(state.pid) == {"argument of x", "environment of x"}


async def test_containers(pod: Pod) -> None:
    await pod.check()


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize(
    ("id", "program"),
    [("x", "/hello.wasm"), ("x", "/hello"), ("n", "/hello")],
    ids=["wasm", "native in wasm", "native"],
)
async def test_execs(pod: Pod, id: str, program: str, size: str) -> None:
    await pod.execute(id, f"exec-{size}", program)
    assert await pod.exited(id, f"exec-{size}") == 0
    await pod.check()


async def test_an_exec_that_is_not_started_yet(pod: Pod) -> None:
    """Of a document that came in parts, and of one that is refused."""
    process = json.dumps({"args": ["/hello.wasm", pod.many("waiting")], "cwd": "/"}).encode()
    wrong = json.dumps({"args": [pod.marker("refused")], "cwd": 1, "user": None}).encode()
    request = api.ExecProcessRequest(id="x", exec_id="e", spec=AnyMessage(value=process))
    await call(pod.client, "Exec", request, Empty)
    request = api.ExecProcessRequest(id="x", exec_id="f", spec=AnyMessage(value=wrong))
    with pytest.raises(Exception, match="cwd: expected str, got int"):
        await call(pod.client, "Exec", request, Empty)
    request = api.ExecProcessRequest(id="nobody", exec_id="f", spec=AnyMessage(value=process))
    with pytest.raises(Exception, match="not found"):
        await call(pod.client, "Exec", request, Empty)
    await pod.check()
    await call(pod.client, "Start", api.StartRequest(id="x", exec_id="e"), api.StartResponse)
    assert await pod.exited("x", "e") == 0
    await pod.check()


@pytest.mark.parametrize("id", ["x", "n"])
async def test_what_is_typed(pod: Pod, id: str, tmp_path: Path) -> None:
    stdin = tmp_path / "in"
    os.mkfifo(stdin)
    out = Output(tmp_path / "out")
    program = "/tty.wasm" if id == "x" else "/tty"
    streams = {"stdin": str(stdin), "stdout": str(out.path), "terminal": True}
    await pod.execute(id, "small", program, **streams)
    with open(stdin, "wb", 0) as keyboard:
        keyboard.write(f"{pod.marker('typed')}\n".encode())
        typed = next(marker for marker, what in pod.markers.items() if what == "typed")
        async for _ in patiently(0.01):
            if out._data.count(typed) == 2:  # the echo, and the answer
                break
        await pod.check()
    request = api.CloseIORequest(id=id, exec_id="small", stdin=True)
    await call(pod.client, "CloseIO", request, Empty)
    assert await pod.exited(id, "small") == 7
    await pod.check()
    out.close()


async def test_half_a_request(pod: Pod) -> None:
    """A guest that is made while a secret is still on its way does not have what has come."""
    value = AnyMessage(value=pod.many("half").encode())
    request = api.ExecProcessRequest(id="x", exec_id="e", spec=value)
    wire = ttrpc_pb2.Request(
        service="containerd.task.v2.Task", method="Exec", payload=request.SerializeToString()
    ).SerializeToString()
    _, writer = await asyncio.open_unix_connection(pod.client._transport.get_extra_info("peername"))
    writer.write(encode(1, REQUEST, 0, wire)[:-1])
    async for _ in patiently(0.01):
        if pod.kept(pod.pid) == {"half"}:  # it is there, since it has to be
            break
    await pod.check_later()
    writer.close()
