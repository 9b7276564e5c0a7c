"""Pause, Resume, Update, Stats and hooks of real containers, spoken to over ttrpc."""

import asyncio
import contextlib
import json
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from proto import cgroups_v1_pb2, cgroups_v2_pb2
from proto import task_v2_pb2 as api
from proto.task_pb2 import Status
from shim.linux.cgroups import Cgroup, hierarchies
from shim.linux.cgroups.files import read
from shim.ttrpc import Client, Code, RpcError
from tests.shim.daemon.patience import until
from tests.shim.task_api import Container, Shim, call, processes, refused, status

UNIFIED = all(tree.is_v2 for tree in hierarchies())


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("spin", "idle", "hello", "exit3"))
    yield started
    await started.close()


@pytest.fixture
def path() -> str:
    return f"/pywasm-test-{uuid.uuid4().hex[:12]}"


def limits(path: str, **resources: Any) -> dict[str, Any]:
    return {"namespaces": [{"type": "pid"}], "cgroupsPath": path, "resources": resources}


async def running(shim: Shim, program: str, **spec: Any) -> Client:
    client = await shim.create("x", program, **spec)
    await call(client, "Start", api.StartRequest(id="x"), Empty)
    return client


def cpu_time(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def pid_of(client: Client) -> int:
    return (await call(client, "State", api.StateRequest(id="x"), api.StateResponse)).pid


def memory_limit(cgroup: Cgroup) -> str:
    v1 = cgroup.directory("memory")
    file = f"{v1}/memory.limit_in_bytes" if v1 else f"{cgroup.directory('')}/memory.max"
    return read(file)


async def test_a_paused_program_stands_still(shim: Shim, path: str) -> None:
    client = await running(shim, "/spin.wasm", linux=limits(path))
    pid = await pid_of(client)
    await call(client, "Pause", api.PauseRequest(id="x"), Empty)
    assert await status(client, "x") == Status.PAUSED
    before = cpu_time(pid)
    await asyncio.sleep(0.2)
    assert cpu_time(pid) == before
    code, message = await refused(client, "Pause", api.PauseRequest(id="x"))
    assert (code, message) == (Code.FAILED_PRECONDITION, "cannot pause a paused container")
    code, _ = await refused(client, "Delete", api.DeleteRequest(id="x"))
    assert code == Code.FAILED_PRECONDITION
    await call(client, "Resume", api.ResumeRequest(id="x"), Empty)
    assert await status(client, "x") == Status.RUNNING
    deadline = time.monotonic() + 20
    while cpu_time(pid) == before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    code, message = await refused(client, "Resume", api.ResumeRequest(id="x"))
    assert (code, message) == (Code.FAILED_PRECONDITION, "cannot resume a running container")


async def test_a_paused_program_can_be_killed(shim: Shim, path: str) -> None:
    client = await running(shim, "/spin.wasm", linux=limits(path))
    await call(client, "Pause", api.PauseRequest(id="x"), Empty)
    await call(client, "Kill", api.KillRequest(id="x", signal=signal.SIGKILL), Empty)
    ended = await call(client, "Wait", api.WaitRequest(id="x"), api.WaitResponse)
    assert ended.exit_status == 137
    await call(client, "Delete", api.DeleteRequest(id="x"), Empty)
    assert not Cgroup.for_path(path).exists()


@pytest.mark.parametrize("method", ["Pause", "Stats", "Update"])
async def test_without_a_cgroup_of_its_own(shim: Shim, method: str) -> None:
    client = await running(shim, "/idle.wasm")
    empty = AnyMessage(value=b"{}")
    request = {
        "Pause": api.PauseRequest(id="x"),
        "Stats": api.StatsRequest(id="x"),
        "Update": api.UpdateTaskRequest(id="x", resources=empty),
    }[method]
    code, message = await refused(client, method, request)
    assert code == (Code.NOT_FOUND if method == "Stats" else Code.UNKNOWN)
    assert message == "cgroupsPath: the container has no cgroup of its own"


async def test_limits_and_their_update(shim: Shim, path: str) -> None:
    linux = limits(path, memory={"limit": 256 << 20}, pids={"limit": 30})
    client = await running(shim, "/idle.wasm", linux=linux)
    cgroup = Cgroup.for_path(path)
    assert memory_limit(cgroup) == str(256 << 20)
    pids = cgroup.directory("pids") or cgroup.directory("")
    assert read(f"{pids}/pids.max") == "30"

    async def update(document: object) -> None:
        resources = AnyMessage(value=json.dumps(document).encode())
        request = api.UpdateTaskRequest(id="x", resources=resources)
        await call(client, "Update", request, Empty)

    await update({"memory": {"limit": 128 << 20}})
    assert memory_limit(cgroup) == str(128 << 20)
    assert read(f"{pids}/pids.max") == "30"
    with pytest.raises(RpcError) as caught:
        await update({"memory": {"limit": "much"}})
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert caught.value.message.startswith("memory.limit: ")
    with pytest.raises(RpcError) as caught:
        await update({"cpu": {"cpus": "0-9999"}})
    assert "linux.resources.cpu.cpus" in caught.value.message


async def test_stats(shim: Shim, path: str) -> None:
    client = await running(shim, "/spin.wasm", linux=limits(path))
    answer = await call(client, "Stats", api.StatsRequest(id="x"), api.StatsResponse)
    metrics: Any = cgroups_v2_pb2.Metrics() if UNIFIED else cgroups_v1_pb2.Metrics()
    assert answer.stats.type_url == metrics.DESCRIPTOR.full_name
    metrics.ParseFromString(answer.stats.value)
    assert metrics.pids.current == 1
    usage = metrics.memory.usage if UNIFIED else metrics.memory.usage.usage
    assert usage > 100_000
    assert (metrics.cpu.usage_usec if UNIFIED else metrics.cpu.usage.total) > 0
    await call(client, "Kill", api.KillRequest(id="x", signal=signal.SIGKILL), Empty)
    await call(client, "Wait", api.WaitRequest(id="x"), Empty)
    answer = await call(client, "Stats", api.StatsRequest(id="x"), api.StatsResponse)
    metrics.ParseFromString(answer.stats.value)
    assert metrics.pids.current == 0


def noting(directory: Path, **fail: bool) -> dict[str, Any]:
    """Hooks of all kinds, each of which notes its turn and its state; some of them fail."""
    kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    found: dict[str, Any] = {}
    for kind in kinds:
        end = "echo no >&2; exit 1" if fail.get(kind) else "exit 0"
        text = f"echo {kind} >>{directory}/order; cat >{directory}/{kind}; {end}"
        found[kind] = [{"path": "/bin/sh", "args": ["sh", "-c", text]}]
    return found


def order(directory: Path) -> list[str]:
    return (directory / "order").read_text().split()


CREATED = ["prestart", "createRuntime", "createContainer"]


async def test_hooks_in_their_order(shim: Shim) -> None:
    notes = shim.directory
    client = await shim.create("x", "/idle.wasm", hooks=noting(notes), annotations={"a": "b"})
    assert order(notes) == CREATED
    pid = await pid_of(client)
    state = json.loads((notes / "createRuntime").read_text())
    assert state == {
        "ociVersion": "1.1.0",
        "id": "x",
        "status": "creating",
        "pid": pid,
        "bundle": str(shim.directory / "x"),
        "annotations": {"a": "b"},
    }
    assert json.loads((notes / "createContainer").read_text())["pid"] == 1
    await call(client, "Start", api.StartRequest(id="x"), Empty)
    assert order(notes) == [*CREATED, "poststart"]
    assert json.loads((notes / "poststart").read_text())["status"] == "running"
    await call(client, "Kill", api.KillRequest(id="x", signal=signal.SIGKILL), Empty)
    await call(client, "Wait", api.WaitRequest(id="x"), Empty)
    await call(client, "Delete", api.DeleteRequest(id="x"), Empty)
    assert order(notes) == [*CREATED, "poststart", "poststop"]
    assert json.loads((notes / "poststop").read_text())["status"] == "stopped"


@pytest.mark.parametrize("kind", CREATED)
async def test_a_hook_that_fails_keeps_the_container_from_being(
    shim: Shim, path: str, kind: str
) -> None:
    hooks = noting(shim.directory, **{kind: True})
    shim.bundle("x", "/idle.wasm", hooks=hooks, linux=limits(path))
    client = await shim.start("x")
    code, message = await refused(client, "Create", shim.create_request("x"))
    assert code == Code.UNKNOWN
    assert message == f"hooks.{kind}[0]: /bin/sh: ended with status 1: no"
    assert order(shim.directory) == CREATED[: CREATED.index(kind) + 1]
    assert not Cgroup.for_path(path).exists()


async def test_late_hooks_that_fail_are_only_logged(shim: Shim) -> None:
    hooks = noting(shim.directory, poststart=True, poststop=True)
    client = await running(shim, "/exit3.wasm", hooks=hooks)
    await call(client, "Wait", api.WaitRequest(id="x"), Empty)
    await call(client, "Delete", api.DeleteRequest(id="x"), Empty)
    assert order(shim.directory)[-2:] == ["poststart", "poststop"]


def busybox_root(shim: Shim, script: str) -> dict[str, Any]:
    """A hook inside the container, whose root gets the host's shell for it."""
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script]}
    mounts = [
        {"destination": f"/{name}", "type": "bind", "source": f"/{name}", "options": ["rbind"]}
        for name in ("bin", "lib", "lib64", "usr")
        if os.path.isdir(f"/{name}")
    ]
    return {"hooks": {"startContainer": [hook]}, "mounts": mounts}


async def test_a_hook_in_the_container(shim: Shim) -> None:
    spec = busybox_root(shim, "cat >/state; pwd >/cwd")
    shim.bundle("x", "/hello.wasm", **spec)
    container = await Container.create(shim, "x")
    assert not (shim.rootfs / "state").exists()
    ended = await container.run()
    assert (ended.status, ended.stdout) == (0, "hello from pywasm\n")
    state = json.loads((shim.rootfs / "state").read_text())
    assert (state["status"], state["pid"]) == ("created", 1)
    assert (shim.rootfs / "cwd").read_text() == "/\n"


async def test_a_hook_in_the_container_that_fails(shim: Shim) -> None:
    spec = busybox_root(shim, "exit 7")
    client = await shim.create("x", "/hello.wasm", **spec)
    code, message = await refused(client, "Start", api.StartRequest(id="x"))
    assert code == Code.UNKNOWN
    assert message == "hooks.startContainer[0]: /bin/sh: ended with status 7"
    await call(client, "Wait", api.WaitRequest(id="x"), Empty)
    await call(client, "Delete", api.DeleteRequest(id="x"), Empty)


async def test_poststop_also_when_the_shim_was_killed(shim: Shim) -> None:
    client = await running(shim, "/idle.wasm", hooks=noting(shim.directory))
    answer = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
    os.kill(answer.shim_pid, signal.SIGKILL)
    done = shim.launch("x", "delete")
    assert (done.returncode, done.stderr) == (0, b"")
    assert order(shim.directory)[-1] == "poststop"


@pytest.mark.parametrize("method", ["Delete", "Shutdown"])
async def test_who_gives_a_create_up_has_it_ended(shim: Shim, path: str, method: str) -> None:
    """As containerd does where its own client has gone: the shim would else stay for ever."""
    waits = shim.directory / "waits"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {waits}; exec sleep 60"]}
    shim.bundle("x", "/idle.wasm", hooks={"createRuntime": [hook]}, linux=limits(path))
    client = await shim.start("x")
    creating = asyncio.create_task(call(client, "Create", shim.create_request("x"), Empty))
    await until(waits.exists)
    if method == "Delete":
        assert (await refused(client, "Delete", api.DeleteRequest(id="x")))[0] == Code.NOT_FOUND
    await call(client, "Shutdown", api.ShutdownRequest(id="x"), Empty)
    with pytest.raises(RpcError) as raised:
        await creating
    assert raised.value.code == Code.CANCELLED
    await until(lambda: comms(shim) == ["pywasm-warmer", "pywasm-zygote"])
    assert not Cgroup.for_path(path).exists()


def comms(shim: Shim) -> list[str]:
    """The names of all its processes."""
    names = []
    for pid in processes(shim.env):
        with contextlib.suppress(OSError):  # it has ended since
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return sorted(names)
