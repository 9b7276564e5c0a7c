"""What a shim holds after many lives is what it held before them.

`PYWASM_LIVES=10000` repeats the long run.
"""

import asyncio
import os
import shutil
import signal
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from proto import task_v2_pb2 as api
from proto.events_service_pb2 import ForwardRequest
from shim.linux.cgroups import hierarchies
from shim.ttrpc import Client, Context, Method, Server
from tests.shim.task_api import POD, Shim, call, processes

LIVES = int(os.environ.get("PYWASM_LIVES", "150"))
WARM_UP = 50
CGROUP = f"pywasm-leak-{os.getpid()}-"


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("exit3", "idle"))
    # Somebody who takes the events, which are kept for as long as nobody does.
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(started.env["TTRPC_ADDRESS"])
    listener.listen()
    server = Server(
        {"containerd.services.events.ttrpc.v1.Events": {"Forward": Method(ForwardRequest, _take)}}
    )
    serving = asyncio.create_task(server.serve(listener))
    yield started
    await started.close()
    server.close()
    await server.wait_closed(1)
    await serving


async def _take(_: ForwardRequest, __: Context) -> Empty:
    return Empty()


def holdings(pid: int, shim: Shim) -> tuple[int, int, int, int]:
    """Descriptors, processes, mounts and cgroups of a shim and its containers.

    Of nobody else's: their numbers change as they like.
    """
    with open(f"/proc/{pid}/mountinfo") as file:
        mounts = sum(str(shim.directory) in line for line in file)
    cgroups = sum(
        name.startswith(CGROUP) for tree in hierarchies() for name in os.listdir(tree.mount)
    )
    return len(os.listdir(f"/proc/{pid}/fd")), len(processes(shim.env)), mounts, cgroups


def memory(pid: int) -> int:
    """Bytes that are a shim's own."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Private_"))


async def live(shim: Shim, client: Client) -> None:
    name = f"leak-{uuid.uuid4().hex[:12]}"
    linux = {"namespaces": [{"type": "pid"}], "cgroupsPath": f"/{CGROUP}{name}"}
    bundle = shim.bundle(name, "/exit3.wasm", linux=linux, annotations=POD)
    await call(client, "Create", shim.create_request(name), Empty)
    await call(client, "Start", api.StartRequest(id=name), Empty)
    ended = await call(client, "Wait", api.WaitRequest(id=name), api.WaitResponse)
    assert ended.exit_status == 3
    await call(client, "Delete", api.DeleteRequest(id=name), Empty)
    shutil.rmtree(bundle)


async def execute(client: Client, number: int) -> None:
    process = b'{"args": ["/exit3.wasm"], "cwd": "/"}'
    name = f"e{number}"
    request = api.ExecProcessRequest(id="x", exec_id=name, spec=AnyMessage(value=process))
    await call(client, "Exec", request, Empty)
    await call(client, "Start", api.StartRequest(id="x", exec_id=name), Empty)
    await call(client, "Wait", api.WaitRequest(id="x", exec_id=name), Empty)
    await call(client, "Delete", api.DeleteRequest(id="x", exec_id=name), Empty)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["containers", "execs"])
async def test_many_lives_in_one_shim(shim: Shim, kind: str) -> None:
    client = await shim.create("x", "/idle.wasm", annotations=POD)
    await call(client, "Start", api.StartRequest(id="x"), Empty)
    answer = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
    before, then = (0, 0, 0, 0), 0
    for number in range(WARM_UP + LIVES):
        if number == WARM_UP:  # what is allocated once is no leak
            before, then = holdings(answer.shim_pid, shim), memory(answer.shim_pid)
        if kind == "containers":
            await live(shim, client)
        else:
            await execute(client, number)
    after, now = holdings(answer.shim_pid, shim), memory(answer.shim_pid)
    print(f"{LIVES} {kind}: held {before}, {then >> 10} KiB; then {after}, {now >> 10} KiB")
    assert after == before
    assert now - then < 1 << 20
    await call(client, "Kill", api.KillRequest(id="x", signal=signal.SIGKILL), Empty)
