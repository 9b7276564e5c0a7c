"""A machine that runs out of something, a bundle that vanishes, calls that race: with a real shim.

Each fault is answered in one line that names the culprit, leaves nothing behind, and is over when
its cause is.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from proto import task_v2_pb2 as api
from proto.envelope_pb2 import Envelope
from proto.events_pb2 import TaskExit
from proto.task_pb2 import Status
from shim.linux.cgroups import hierarchies
from shim.ttrpc import Client, Code, RpcError
from tests.shim.daemon.patience import patiently
from tests.shim.launching import zygotes
from tests.shim.task_api import (
    POD,
    LaunchError,
    Shim,
    call,
    end,
    events_taken,
    processes,
    refused,
    status,
)

GUESTS = ("exit3", "idle")


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, GUESTS)
    async with events_taken(started):
        yield started
        await started.close()


async def live(shim: Shim, id: str, client: Client | None = None) -> None:
    """A whole life in a shim, or one of its own, of a bundle that is there or is made."""
    if not (shim.directory / id).exists():
        shim.bundle(id, "/exit3.wasm", annotations=POD)
    client = client or await shim.start(id)
    await call(client, "Create", shim.create_request(id), Empty)
    await call(client, "Start", api.StartRequest(id=id), Empty)
    ended = await call(client, "Wait", api.WaitRequest(id=id), api.WaitResponse)
    assert ended.exit_status == 3
    await call(client, "Delete", api.DeleteRequest(id=id), Empty)
    await end(client, id)


async def running(shim: Shim, **spec: Any) -> tuple[Client, int]:
    """Start a pod with one container, `x`; return its shim's pid, too."""
    client = await shim.create("x", "/idle.wasm", annotations=POD, **spec)
    await call(client, "Start", api.StartRequest(id="x"), Empty)
    answer = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
    return client, answer.shim_pid


def holdings(pid: int) -> tuple[list[str], list[str]]:
    """Descriptors and children of a shim."""
    open_files = Path(f"/proc/{pid}/fd").iterdir()
    names = map(os.readlink, open_files)
    # Without the numbers of sockets, since a client may have connected anew, and without the one
    # inotify that a shim has from the first stdin on.
    targets = (name.partition(":")[0] for name in names if "inotify" not in name)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sorted(targets), children


async def restored(pid: int, before: tuple[list[str], list[str]]) -> None:
    """Wait until a shim holds what it held `before`: a child is reaped a moment later."""
    now = before
    with contextlib.suppress(AssertionError):
        async for _ in patiently(0.005):
            now = holdings(pid)
            if now == before:
                break
    assert now == before


async def failure(answer: Awaitable[object]) -> RpcError | None:
    """Return the error that a call ends with, if it does."""
    try:
        await answer
    except RpcError as error:
        return error
    return None


async def nothing_runs(shim: Shim) -> None:
    """Wait until there is no process of ours but zygotes, and no socket of a shim's."""
    comms: list[str] = []
    async for _ in patiently(0.01):
        comms = []
        for pid in processes(shim.env):
            with contextlib.suppress(OSError):
                comms.append(Path(f"/proc/{pid}/comm").read_text().strip())
        left = [comm for comm in comms if comm not in ("pywasm-zygote", "pywasm-warmer")]
        sockets = list(shim.directory.glob("run/s/*"))
        if not left and not sockets:
            break


async def not_started(shim: Shim, id: str) -> str:
    """Start a shim, which must fail in one line; return that."""
    with pytest.raises(LaunchError) as error:
        await shim.start(id)
    await nothing_runs(shim)
    program, _, reason = str(error.value).partition(": ")
    assert program == "containerd-shim-pywasm-v1"
    assert "\n" not in reason
    return reason


# --- no space -------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Have a filesystem at `path` that is soon full."""
    path.mkdir(exist_ok=True)
    options = "size=64k,nr_inodes=40,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(path: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(path)], check=True)


def fill(path: Path) -> None:
    """Leave neither a block nor an inode."""
    with contextlib.suppress(OSError), open(path / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with contextlib.suppress(OSError):
        for number in range(100):
            (path / f"filler{number}").touch()


def clear(path: Path) -> None:
    """Make room again."""
    for file in path.glob("filler*"):
        file.unlink()


async def test_no_space_in_the_run_directory(shim: Shim) -> None:
    run = shim.directory / "run"
    shim.bundle("x", "/exit3.wasm")
    with small_disk(run):
        fill(run)
        assert await not_started(shim, "x") == (
            f"[Errno 28] No space left on device: '{run}/zygote.log'"
        )
        clear(run)
        await live(shim, "x")
        await nothing_runs(shim)

        shim.bundle("y", "/exit3.wasm")
        fill(run)
        reason = await not_started(shim, "y")  # now there is a zygote
        assert reason.startswith(f"{run}/s/")
        assert reason.endswith(": No space left on device")
        clear(run)
        await live(shim, "y")


async def test_no_space_in_the_bundle(shim: Shim) -> None:
    bundle = shim.directory / "x"
    shim.bundle("elsewhere", "/exit3.wasm")
    with small_disk(bundle):
        shutil.move(shim.directory / "elsewhere" / "config.json", bundle)
        (bundle / "rootfs").mkdir()
        fill(bundle)
        assert await not_started(shim, "x") == f"{bundle}/address: No space left on device"

        clear(bundle)
        client = await shim.start("x")
        fill(bundle)
        code, message = await refused(client, "Create", shim.create_request("x"))
        assert (code, message) == (Code.UNKNOWN, f"{bundle}/init.pid: No space left on device")
        answer = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
        assert holdings(answer.shim_pid)[1] == []

        clear(bundle)
        await live(shim, "x", client)


async def test_no_space_in_the_state_directory(shim: Shim) -> None:
    state = shim.directory / "state"
    bundle = shim.bundle("x", "/exit3.wasm")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    with small_disk(state):
        fill(state)
        assert await not_started(shim, "x") == f"{state}/artifacts: No space left on device"

        clear(state)
        client = await shim.start("x")
        fill(state)
        await live(shim, "x", client)  # without a cache, then
        assert os.listdir(state / "artifacts") == []
        assert b"No space left on device" in os.read(log, 1 << 16)

        clear(state)
        await live(shim, "y")
        assert len(os.listdir(state / "artifacts")) == 1
    os.close(log)


async def test_a_read_only_state_directory(shim: Shim) -> None:
    state = shim.directory / "state"
    shim.bundle("x", "/exit3.wasm")
    with small_disk(state):
        remount(state, "ro")
        assert await not_started(shim, "x") == f"{state}/artifacts: Read-only file system"
        remount(state, "rw")
        await live(shim, "x")
        (artifact,) = (state / "artifacts").iterdir()
        remount(state, "ro")
        await live(shim, "with")
        remount(state, "rw")
        artifact.unlink()
        remount(state, "ro")
        await live(shim, "without")


# --- no descriptors, memory, processes ------------------------------------------------------------


@contextlib.contextmanager
def limited(pid: int, what: int, limit: int) -> Iterator[None]:
    """Bound what a process may have."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


@contextlib.contextmanager
def childless(pid: int) -> Iterator[None]:
    """Keep a process from making others, by a cgroup."""
    tree = next(tree for tree in hierarchies() if "pids" in tree.controllers)
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    home = next(line for line in lines if "pids" in line.split(":")[1].split(",")).split(":")[2]
    group = Path(f"{tree.mount}/pywasm-childless-{pid}")
    group.mkdir()
    try:
        (group / "pids.max").write_text("1")
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        Path(f"{tree.mount}{home}/cgroup.procs").write_text(str(pid))
        group.rmdir()


def streams(bundle: Path, kind: str) -> dict[str, Any]:
    """What Create is told of its streams; those that are FIFOs are made."""
    if kind == "log":
        return {name: f"file://{bundle}/{name}.log" for name in ("stdout", "stderr")}
    names = ("stdin", "stdout") if kind == "terminal" else ("stdin", "stdout", "stderr")
    for name in names:
        os.mkfifo(bundle / name)
    return {"terminal": kind == "terminal"} | {name: str(bundle / name) for name in names}


@pytest.mark.parametrize("kind", ["fifos", "terminal", "log"])
async def test_no_descriptors(shim: Shim, kind: str) -> None:
    client, pid = await running(shim)
    bundle = shim.bundle("y", "/exit3.wasm", annotations=POD)
    request = shim.create_request("y", **streams(bundle, kind))
    before = holdings(pid)
    highest = max(int(fd) for fd in os.listdir(f"/proc/{pid}/fd"))
    refusals = 0
    for spare in range(40):
        with limited(pid, resource.RLIMIT_NOFILE, highest + 1 + spare):
            assert await status(client, "x") == Status.RUNNING
            error = await failure(call(client, "Create", request, Empty))
        if error is None:
            break
        assert "Too many open files" in error.message, spare
        assert "\n" not in error.message
        refusals += 1
        await restored(pid, before)
    assert refusals > 5
    await call(client, "Delete", api.DeleteRequest(id="y"), Empty)
    await restored(pid, before)


async def test_no_descriptors_for_an_exec(shim: Shim) -> None:
    client, pid = await running(shim)
    before = holdings(pid)
    highest = max(int(fd) for fd in os.listdir(f"/proc/{pid}/fd"))
    process = AnyMessage(value=b'{"args": ["/exit3.wasm"], "cwd": "/"}')
    await call(client, "Exec", api.ExecProcessRequest(id="x", exec_id="e", spec=process), Empty)
    added = holdings(pid)  # with the file of its process
    start = api.StartRequest(id="x", exec_id="e")
    refusals = 0
    for spare in range(40):
        with limited(pid, resource.RLIMIT_NOFILE, highest + 1 + spare):
            error = await failure(call(client, "Start", start, Empty))
        if error is None:
            break
        assert "Too many open files" in error.message, spare
        refusals += 1
        await restored(pid, added)
    assert refusals > 1
    ended = await call(client, "Wait", api.WaitRequest(id="x", exec_id="e"), api.WaitResponse)
    assert ended.exit_status == 3
    await call(client, "Delete", api.DeleteRequest(id="x", exec_id="e"), Empty)
    assert holdings(pid) == before


async def test_no_descriptors_for_a_connection(shim: Shim) -> None:
    client, pid = await running(shim)
    with limited(pid, resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{pid}/fd"))):
        waiting = asyncio.create_task(shim.start("x"))
        await asyncio.sleep(0.3)
        assert await status(client, "x") == Status.RUNNING
    assert await status(await waiting, "x") == Status.RUNNING


async def test_no_memory(shim: Shim) -> None:
    client, pid = await running(shim)
    before = holdings(pid)
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    shim.bundle("y", "/exit3.wasm", annotations=POD)
    with limited(pid, resource.RLIMIT_AS, pages * resource.getpagesize()):
        code, message = await refused(client, "Create", shim.create_request("y"))
        assert (code, message) == (Code.UNKNOWN, "Cannot allocate memory")
        assert await status(client, "x") == Status.RUNNING
    assert holdings(pid) == before
    await live(shim, "y", client)
    assert holdings(pid) == before


async def test_no_processes(shim: Shim) -> None:
    client, pid = await running(shim)
    before = holdings(pid)
    shim.bundle("y", "/exit3.wasm", annotations=POD)
    with childless(pid):
        code, message = await refused(client, "Create", shim.create_request("y"))
        assert code == Code.UNKNOWN
        assert message.endswith("clone3: Resource temporarily unavailable")
        assert holdings(pid) == before
    await live(shim, "y", client)
    assert holdings(pid) == before


async def test_no_processes_of_the_zygote(shim: Shim) -> None:
    await live(shim, "x")
    (zygote,) = zygotes(shim.directory / "run")
    with childless(zygote):
        await live(shim, "y")  # without it
    await live(shim, "z")
    assert zygotes(shim.directory / "run") == [zygote]


async def test_a_zygote_without_its_warmer(shim: Shim) -> None:
    await live(shim, "x")
    (zygote,) = zygotes(shim.directory / "run")
    await nothing_runs(shim)
    (warmer,) = Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
    os.kill(int(warmer), signal.SIGKILL)
    for id in ("y", "z"):
        client = await shim.create(id, "/exit3.wasm")
        answer = await call(client, "Connect", api.ConnectRequest(id=id), api.ConnectResponse)
        assert Path(f"/proc/{answer.shim_pid}/stat").read_text().split()[3] == str(zygote)


# --- containerd -----------------------------------------------------------------------------------


async def test_events_of_lives_while_containerd_is_away(tmp_path: Path) -> None:
    """Each comes once, and in order."""
    shim = Shim(tmp_path, GUESTS)
    seen: list[Envelope] = []
    async with events_taken(shim) as first:
        client, _ = await running(shim)
        await live(shim, "a", client)
    seen += first
    await live(shim, "b", client)
    async with events_taken(shim) as second:
        living = asyncio.create_task(live(shim, "c", client))
        async for _ in patiently():
            if second:
                break
    seen += second
    await living
    await live(shim, "d", client)
    async with events_taken(shim) as third:
        await call(client, "Kill", api.KillRequest(id="x", signal=signal.SIGKILL), Empty)
        await call(client, "Wait", api.WaitRequest(id="x"), Empty)
        await call(client, "Delete", api.DeleteRequest(id="x"), Empty)
        async for _ in patiently():
            if third and TaskExit.FromString(third[-1].event.value).container_id == "x":
                break
        await end(client, "x")
        await nothing_runs(shim)
        await shim.close()
    seen += third
    for id in "abcd":
        mine = [one for one in seen if TaskExit.FromString(one.event.value).container_id == id]
        topics = [one.topic.removeprefix("/tasks/") for one in mine]
        assert topics == ["create", "start", "exit", "delete"], id
    times = [one.timestamp.ToNanoseconds() for one in seen]
    assert times == sorted(times)
    assert [one.topic for one in seen][-2:] == ["/tasks/exit", "/tasks/delete"]
    assert len(seen) == 4 * 5


# --- the bundle -----------------------------------------------------------------------------------


async def test_a_bundle_that_vanishes(shim: Shim) -> None:
    cgroup = f"/pywasm-vanishing-{os.getpid()}"
    namespaces = [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}]
    linux = {"namespaces": namespaces, "cgroupsPath": cgroup}
    client, _ = await running(shim, linux=linux)
    groups = [Path(tree.mount + cgroup) for tree in hierarchies()]
    assert any(group.exists() for group in groups)
    shutil.rmtree(shim.directory / "x")
    assert await status(client, "x") == Status.RUNNING
    process = AnyMessage(value=b'{"args": ["/exit3.wasm"], "cwd": "/"}')
    await call(client, "Exec", api.ExecProcessRequest(id="x", exec_id="e", spec=process), Empty)
    _, message = await refused(client, "Start", api.StartRequest(id="x", exec_id="e"))
    assert message.startswith("config.json: No such file or directory")  # who it would run as
    await call(client, "Kill", api.KillRequest(id="x", signal=signal.SIGKILL), Empty)
    ended = await call(client, "Wait", api.WaitRequest(id="x"), api.WaitResponse)
    assert ended.exit_status == 137
    await call(client, "Delete", api.DeleteRequest(id="x"), Empty)
    assert not any(group.exists() for group in groups)
    await live(shim, "y", client)
    await nothing_runs(shim)
    # containerd then calls this in a directory that holds nothing.
    (shim.directory / "x").mkdir()
    done = shim.launch("x", "delete")
    assert api.DeleteResponse.FromString(done.stdout).exit_status == 137
    assert (done.returncode, done.stderr) == (0, b"")


# --- at the same time -----------------------------------------------------------------------------


async def test_two_creates_of_one_id(shim: Shim) -> None:
    client, pid = await running(shim)
    before = holdings(pid)
    other = await shim.start("x")
    for number in range(5):
        id = f"y{number}"
        shim.bundle(id, "/exit3.wasm", annotations=POD)
        request = shim.create_request(id)
        answers = await asyncio.gather(
            *(call(one, "Create", request, api.CreateTaskResponse) for one in (client, other)),
            return_exceptions=True,
        )
        (won,) = (a for a in answers if isinstance(a, api.CreateTaskResponse))
        (lost,) = (a for a in answers if isinstance(a, RpcError))
        assert lost.code == Code.ALREADY_EXISTS
        state = await call(client, "State", api.StateRequest(id=id), api.StateResponse)
        assert (state.status, state.pid) == (Status.CREATED, won.pid)
        await call(client, "Delete", api.DeleteRequest(id=id), Empty)
    await other.close()
    await restored(pid, before)


async def test_many_lives_of_a_pod_at_once(shim: Shim) -> None:
    client, pid = await running(shim)
    await live(shim, "warm", client)
    before = holdings(pid)
    await asyncio.gather(*(live(shim, f"y{number}", client) for number in range(50)))
    assert holdings(pid) == before


async def test_a_pod_that_ends_while_another_container_joins(shim: Shim) -> None:
    """`start` has said where the shim is, and only then the last container's task is shut down."""
    client = await shim.create("x", "/exit3.wasm", annotations=POD)
    shim.bundle("y", "/exit3.wasm", annotations=POD)
    address = shim.launch("y", "start").stdout.decode()
    await call(client, "Delete", api.DeleteRequest(id="x"), Empty)
    await end(client, "x")
    await asyncio.sleep(0.1)
    await live(shim, "y", await shim.connect("y", address))
    await nothing_runs(shim)


async def test_a_container_that_joins_a_pod_before_its_first_is_created(shim: Shim) -> None:
    shim.bundle("x", "/exit3.wasm", annotations=POD)
    client = await shim.start("x")
    await live(shim, "y")
    await live(shim, "x", client)
    await nothing_runs(shim)


async def test_a_pod_that_ends_as_another_begins(shim: Shim) -> None:
    """The same at any moment: whoever is told of a shim finds one."""
    client = await shim.create("x0", "/exit3.wasm", annotations=POD)
    for number in range(1, 20):
        last, id = f"x{number - 1}", f"x{number}"
        await call(client, "Delete", api.DeleteRequest(id=last), Empty)
        shim.bundle(id, "/exit3.wasm", annotations=POD)
        starting = asyncio.create_task(asyncio.to_thread(shim.launch, id, "start"))
        await asyncio.sleep(number * 0.0005)
        await end(client, last)
        client = await shim.connect(id, (await starting).stdout.decode())
        await call(client, "Create", shim.create_request(id), Empty)
    await call(client, "Delete", api.DeleteRequest(id=id), Empty)
    await end(client, id)
    await nothing_runs(shim)


async def test_a_shim_that_is_killed_before_containerd_has_dialled(shim: Shim) -> None:
    """containerd executes no `delete` for it then; the next one that it does execute tidies up."""
    name = f"pywasm-test-{os.getpid()}"
    places = [f"{tree.mount}/{name}" for tree in hierarchies()]
    shim.bundle("x", "/idle.wasm", linux={"cgroupsPath": f"/{name}"})
    shim.bundle("y", "/idle.wasm")
    assert shim.launch("x", "start").returncode == 0
    sockets = shim.directory / "run" / "s"
    assert len(os.listdir(sockets)) == 2
    async for _ in patiently(0.005):
        if any(map(os.path.isdir, places)):
            break
    for pid in processes(shim.env):
        if pid not in zygotes(shim.directory / "run"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    async for _ in patiently(0.005):
        assert shim.launch("y", "delete").returncode == 0
        if not os.listdir(sockets):  # the guest may still have been about to end
            break
    assert not any(map(os.path.isdir, places))
