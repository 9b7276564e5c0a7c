"""Further programs of a running container, modules and native ones."""

import asyncio
import json
import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from proto import runc_options_pb2
from proto import task_v2_pb2 as api
from proto.events_pb2 import TaskExit
from proto.task_pb2 import Status
from shim.linux.cgroups import Cgroup
from shim.ttrpc import Client, Code, RpcError
from tests.guests.build import build
from tests.shim.daemon.patience import patiently, until
from tests.shim.task_api import POD, Ended, Output, Shim, call, events_taken, refused

NAMESPACES = [{"type": kind} for kind in ("pid", "ipc", "uts", "network", "mount", "cgroup")]


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("idle", "probe", "exit3", "spin", "hello", "cat"))
    shutil.copy(build("hello", native=True), started.rootfs / "native")
    shutil.copy(build("idle", native=True), started.rootfs / "native-idle")
    yield started
    await started.close()


class Running:
    """A started container `x`, and the programs executed in it."""

    def __init__(self, shim: Shim, client: Client) -> None:
        self.shim, self.client = shim, client

    async def add(self, exec_id: str, *args: str, stdin: str = "", **process: Any) -> None:
        out, err = (self.shim.directory / f"{exec_id}.{name}" for name in ("out", "err"))
        self.out, self.err = Output(out), Output(err)
        document = {"args": list(args), "cwd": "/"} | process
        request = api.ExecProcessRequest(
            id="x",
            exec_id=exec_id,
            stdin=stdin,
            stdout=str(out),
            stderr=str(err),
            spec=AnyMessage(value=json.dumps(document).encode()),
        )
        try:
            await call(self.client, "Exec", request, Empty)
        except RpcError:
            self.out.close()
            self.err.close()
            raise

    async def start(self, exec_id: str) -> int:
        request = api.StartRequest(id="x", exec_id=exec_id)
        try:
            return (await call(self.client, "Start", request, api.StartResponse)).pid
        except RpcError:
            self.out.close()
            self.err.close()
            raise

    async def state(self, exec_id: str) -> api.StateResponse:
        request = api.StateRequest(id="x", exec_id=exec_id)
        return await call(self.client, "State", request, api.StateResponse)

    async def kill(self, exec_id: str, signum: int, **more: bool) -> None:
        request = api.KillRequest(id="x", exec_id=exec_id, signal=signum, **more)
        await call(self.client, "Kill", request, Empty)

    async def wait(self, exec_id: str) -> int:
        request = api.WaitRequest(id="x", exec_id=exec_id)
        return (await call(self.client, "Wait", request, api.WaitResponse)).exit_status

    async def delete(self, exec_id: str) -> api.DeleteResponse:
        request = api.DeleteRequest(id="x", exec_id=exec_id)
        return await call(self.client, "Delete", request, api.DeleteResponse)

    async def run(self, exec_id: str, *args: str, **process: Any) -> Ended:
        await self.add(exec_id, *args, **process)
        await self.start(exec_id)
        status = await self.wait(exec_id)
        ended = Ended(status, await self.out.read(), await self.err.read())
        assert (await self.delete(exec_id)).exit_status == status
        return ended

    async def attempt(self, exec_id: str, *args: str, **process: Any) -> Ended | None:
        """Run it; None if it is refused."""
        try:
            return await self.run(exec_id, *args, **process)
        except RpcError:
            return None

    async def attempt_start(self, exec_id: str) -> int | None:
        """Start it; None if that is refused."""
        try:
            return await self.start(exec_id)
        except RpcError:
            return None


async def running(shim: Shim, **spec: Any) -> Running:
    cgroup = f"/pywasm-test-{uuid.uuid4().hex[:12]}"
    linux = {"namespaces": NAMESPACES, "cgroupsPath": cgroup} | spec.pop("linux", {})
    client = await shim.create("x", "/idle.wasm", linux=linux, **spec)
    await call(client, "Start", api.StartRequest(id="x"), Empty)
    return Running(shim, client)


async def test_a_module_of_the_same_rootfs(shim: Shim) -> None:
    container = await running(shim)
    ended = await container.run(
        "e", "/probe.wasm", "env", "A", "preopens", "write", "/new", env=["A=b c"]
    )
    assert ended == Ended(0, "b c\n/\nok\n", "")
    assert (shim.rootfs / "new").exists()
    assert (await container.run("f", "exit3.wasm")).status == 3
    assert (await container.state("")).status == Status.RUNNING


async def test_it_is_where_the_first_program_is(shim: Shim) -> None:
    container = await running(shim)
    first = (await container.state("")).pid
    await container.add("e", "/idle.wasm")
    pid = await container.start("e")
    for kind in ("pid", "ipc", "uts", "net", "mnt", "cgroup", "user", "time"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/{first}/ns/{kind}")
    assert Path(f"/proc/{pid}/cgroup").read_text() == Path(f"/proc/{first}/cgroup").read_text()
    assert os.stat(f"/proc/{pid}/root").st_ino == os.stat(f"/proc/{first}/root").st_ino
    listed = api.PidsResponse()
    # What it was before it was born into the PID namespace is still ending, maybe.
    while {process.pid for process in listed.processes} != {first, pid}:
        listed = await call(container.client, "Pids", api.PidsRequest(id="x"), api.PidsResponse)
    (info,) = (process.info for process in listed.processes if process.pid == pid)
    assert info.type_url == "containerd.runc.v1.ProcessDetails"
    assert runc_options_pb2.ProcessDetails.FromString(info.value).exec_id == "e"


async def test_its_paths_lead_where_those_of_the_container_do(shim: Shim) -> None:
    (shim.rootfs / "etc").mkdir()
    (shim.rootfs / "etc" / "file").write_text("here")
    (shim.rootfs / "link").symlink_to("/etc/file")
    container = await running(shim)
    ended = await container.run("e", "/probe.wasm", "read", "/link", "write", "/dev/fd/1")
    assert ended == Ended(0, "here\nwritten\nok\n", "")


async def test_its_own_user_and_limits(shim: Shim) -> None:
    container = await running(shim)
    limits = [{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 77}]
    user = {"uid": 4321, "gid": 4322, "additionalGids": [7]}
    await container.add(
        "e",
        "/idle.wasm",
        user=user,
        rlimits=limits,
        noNewPrivileges=True,
        oomScoreAdj=500,
        execCPUAffinity={"initial": "0", "final": "0"},
    )
    pid = await container.start("e")
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert status["Uid"].split() == ["4321"] * 4
    assert status["Gid"].split() == ["4322"] * 4
    assert status["Groups"].split() == ["7"]
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == 0
    assert "Max open files            77 " in Path(f"/proc/{pid}/limits").read_text()
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
    assert os.sched_getaffinity(pid) == {0}


@pytest.mark.parametrize("program", ["/idle.wasm", "/native-idle"])
async def test_what_is_no_id_is_not_root(shim: Shim, program: str) -> None:
    container = await running(shim)
    for field, user in (
        ("uid", {"uid": 2**32 - 1}),
        ("gid", {"uid": 1000, "gid": 2**32 - 1}),
        ("additionalGids[0]", {"uid": 1000, "additionalGids": [2**32 - 1]}),
    ):
        with pytest.raises(RpcError) as e:
            await container.add(f"e-{field[0]}", program, user=user)
        assert e.value.code == Code.INVALID_ARGUMENT
        assert f"user.{field}: out of range" in e.value.message


async def test_the_seccomp_profile_of_the_container(shim: Shim) -> None:
    denied = {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}
    container = await running(shim, linux={"seccomp": profile})
    await container.add("e", "/idle.wasm")
    pid = await container.start("e")
    assert "Seccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()


async def test_a_user_namespace(shim: Shim) -> None:
    mapping = [{"containerID": 0, "hostID": 200000, "size": 1000}]
    namespaces = [*NAMESPACES, {"type": "user"}]
    linux = {"namespaces": namespaces, "uidMappings": mapping, "gidMappings": mapping}
    container = await running(shim, linux=linux)
    first = (await container.state("")).pid
    await container.add("e", "/idle.wasm", user={"uid": 5, "gid": 6})
    pid = await container.start("e")
    assert os.readlink(f"/proc/{pid}/ns/user") == os.readlink(f"/proc/{first}/ns/user")
    assert "Uid:\t200005\t" in Path(f"/proc/{pid}/status").read_text()


async def test_a_native_program(shim: Shim) -> None:
    container = await running(shim)
    assert await container.run("e", "/native") == Ended(0, "hello from pywasm\n", "")
    await container.add("f", "native-idle", env=["PATH=/"])
    pid = await container.start("f")
    for _ in range(1000):  # it is started, but may not have come to executing
        if os.readlink(f"/proc/{pid}/exe").endswith("/native-idle"):
            break
        await asyncio.sleep(0.01)
    assert os.readlink(f"/proc/{pid}/exe").endswith("/native-idle")
    ignored = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigIgn" in line
    )
    real_time = 0b11 << 31  # two that belong to libc, which does not let anybody change them
    assert int(ignored.split()[1], 16) & ~real_time == 0
    await container.kill("f", signal.SIGTERM)
    assert await container.wait("f") in (128 + signal.SIGTERM, 0)


async def test_what_the_kernel_cannot_execute(shim: Shim) -> None:
    """Which shows only when it has been started."""
    (shim.rootfs / "broken").write_bytes(b"\x7fELF")
    (shim.rootfs / "broken").chmod(0o755)
    container = await running(shim)
    ended = await container.run("e", "/broken")
    assert ended == Ended(126, "", "pywasm: cannot execute '/broken': Exec format error\n")


async def test_input_reaches_it_and_ends(shim: Shim) -> None:
    container = await running(shim)
    fifo = shim.directory / "in"
    os.mkfifo(fifo)
    await container.add("e", "/cat.wasm", stdin=str(fifo))
    await container.start("e")
    with open(fifo, "wb") as pipe:
        pipe.write(b"to and fro")
    assert await container.wait("e") == 0
    assert await container.out.read() == "to and fro"


async def test_its_states(shim: Shim) -> None:
    container = await running(shim)
    await container.add("e", "/spin.wasm")
    state = await container.state("e")
    assert (state.id, state.exec_id, state.pid, state.status) == ("e", "e", 0, Status.CREATED)
    request = api.KillRequest(id="x", exec_id="e", signal=9)
    assert (await refused(container.client, "Kill", request))[0] == Code.FAILED_PRECONDITION
    waiting = asyncio.ensure_future(container.wait("e"))
    pid = await container.start("e")
    state = await container.state("e")
    assert (state.pid, state.status) == (pid, Status.RUNNING)
    again = api.StartRequest(id="x", exec_id="e")
    assert (await refused(container.client, "Start", again))[0] == Code.FAILED_PRECONDITION
    deleting = api.DeleteRequest(id="x", exec_id="e")
    assert (await refused(container.client, "Delete", deleting))[0] == Code.FAILED_PRECONDITION
    await container.kill("e", signal.SIGTERM)
    assert await waiting == 143
    assert (await container.state("e")).status == Status.STOPPED
    deleted = await container.delete("e")
    assert (deleted.pid, deleted.exit_status) == (pid, 143)
    gone = api.StateRequest(id="x", exec_id="e")
    assert (await refused(container.client, "State", gone))[0] == Code.NOT_FOUND


async def test_an_id_is_given_once(shim: Shim) -> None:
    container = await running(shim)
    await container.add("e", "/hello.wasm")
    container.out.close()
    container.err.close()
    request = api.ExecProcessRequest(id="x", exec_id="e", spec=AnyMessage(value=b"{}"))
    code, message = await refused(container.client, "Exec", request)
    assert (code, message) == (Code.ALREADY_EXISTS, "id e: already exists")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"args": []}, "process.args: expected at least one argument"),
    ({"args": ["sh"]}, "entrypoint 'sh': No such file or directory"),
    ({"args": ["/no.wasm"]}, "entrypoint '/no.wasm': No such file or directory"),
    ({"args": ["/text"]}, "/text: not a wasm module"),
    ({"args": ["/secret"]}, "entrypoint '/secret': Permission denied"),
    ({"args": ["/hello.wasm"], "rlimits": [{"type": "RLIMIT_X"}]}, "process.rlimits[0].type"),
    ({"args": ["/hello.wasm"], "cwd": "tmp"}, "process.cwd: expected an absolute path, got 'tmp'"),
    ({"args": ["/native"], "cwd": "."}, "process.cwd: expected an absolute path, got '.'"),
]


@pytest.mark.parametrize(("process", "reason"), BAD)
async def test_what_cannot_run(shim: Shim, process: dict[str, Any], reason: str) -> None:
    (shim.rootfs / "text").write_text("just text\n")
    (shim.rootfs / "secret").write_bytes(b"\x7fELF")
    container = await running(shim)
    args = process.pop("args")
    for _ in range(2):
        await container.add("e", *args, **process)
        with pytest.raises(RpcError) as caught:
            await container.start("e")
        assert caught.value.code == Code.INVALID_ARGUMENT
        assert caught.value.message.startswith(reason)
        assert "\n" not in caught.value.message
        await container.delete("e")
        for stream in (shim.directory / "e.out", shim.directory / "e.err"):
            stream.unlink()
    assert (await container.run("f", "/hello.wasm")).stdout == "hello from pywasm\n"


@pytest.mark.parametrize("program", ["/hello.wasm", "/native"])
async def test_a_working_directory_that_is_not_there_is_not_made(shim: Shim, program: str) -> None:
    container = await running(shim)
    before = sorted(os.listdir(shim.rootfs))
    with pytest.raises(RpcError, match=r"process\.cwd: /not/there: No such file or directory"):
        await container.run("e", program, cwd="/not/there")
    assert sorted(os.listdir(shim.rootfs)) == before


async def test_an_export_of_a_module(shim: Shim) -> None:
    shutil.copy(shim.rootfs / "native", shim.rootfs / "native#1")
    container = await running(shim)
    hello = Ended(0, "hello from pywasm\n", "")
    assert await container.run("e", "/hello.wasm#_start") == hello
    assert await container.run("f", "/native#1") == hello


async def test_a_document_that_is_none(shim: Shim) -> None:
    container = await running(shim)
    request = api.ExecProcessRequest(id="x", exec_id="e", spec=AnyMessage(value=b"{"))
    code, message = await refused(container.client, "Exec", request)
    assert code == Code.INVALID_ARGUMENT
    assert message.startswith("process: ")
    await container.add("e", "/exit3.wasm")  # the id is still free


@pytest.mark.parametrize("end", ["start", "delete"])
async def test_nobody_waits_for_what_never_runs(shim: Shim, end: str) -> None:
    container = await running(shim)
    await container.add("e", "/missing.wasm")
    waiting = asyncio.ensure_future(container.wait("e"))
    await asyncio.sleep(0)  # until it is sent
    if end == "start":
        with pytest.raises(RpcError):
            await container.start("e")
    else:
        await container.delete("e")
        container.out.close()
        container.err.close()
    assert await waiting == 0


@pytest.mark.parametrize("namespaces", [NAMESPACES, NAMESPACES[1:]])
async def test_it_ends_with_the_first_program(shim: Shim, namespaces: list[Any]) -> None:
    container = await running(shim, linux={"namespaces": namespaces})
    await container.add("e", "/spin.wasm")
    await container.start("e")
    await container.kill("", signal.SIGKILL)
    assert await container.wait("") == 137
    assert await container.wait("e") == 137
    request = api.ExecProcessRequest(id="x", exec_id="f", spec=AnyMessage(value=b"{}"))
    code, message = await refused(container.client, "Exec", request)
    assert (code, message) == (Code.FAILED_PRECONDITION, "cannot exec in a stopped container")
    await container.delete("")


async def test_a_signal_to_all(shim: Shim) -> None:
    container = await running(shim)
    await container.add("e", "/spin.wasm")
    await container.start("e")
    await container.kill("", signal.SIGTERM, all=True)
    assert {await container.wait(""), await container.wait("e")} <= {143, 137}


async def test_a_container_can_go_with_its_execs(shim: Shim) -> None:
    container = await running(shim)
    path = json.loads((shim.directory / "x" / "config.json").read_text())["linux"]["cgroupsPath"]
    await container.run("e", "/hello.wasm")
    await container.add("f", "/spin.wasm")
    await container.start("f")
    await container.kill("", signal.SIGKILL)
    await container.wait("")
    await container.delete("")
    assert not Cgroup.for_path(path).exists()


async def test_many_at_once(shim: Shim) -> None:
    container = await running(shim)

    async def one(number: int) -> Ended:
        mine = Running(shim, container.client)
        return await mine.run(f"e{number}", "/probe.wasm", "env", "N", env=[f"N={number}"])

    ended = await asyncio.gather(*(one(number) for number in range(20)))
    assert [e.stdout for e in ended] == [f"{number}\n" for number in range(20)]


async def test_the_exit_of_the_first_program_is_told_last(shim: Shim) -> None:
    async with events_taken(shim) as seen:
        container = await running(shim)
        for number in range(3):
            await container.add(f"e{number}", "/idle.wasm")
            await container.start(f"e{number}")
        await container.kill("", signal.SIGKILL)
        assert await container.wait("") == 137
        for number in range(3):
            assert await container.wait(f"e{number}") == 137
        await until(lambda: [e.topic for e in seen].count("/tasks/exit") == 4)
        exits = [TaskExit.FromString(e.event.value) for e in seen if e.topic == "/tasks/exit"]
        assert exits[-1].id == "x"


async def test_an_exec_that_is_not_there_yet_holds_no_exit_up(shim: Shim) -> None:
    """Its process is still in the shim's PID namespace, and stopped."""
    container = await running(shim)
    await container.add("e", "/idle.wasm")
    first = (await container.state("")).pid
    shim_pid = int(_parent(first))
    before = _children(shim_pid)
    starting = asyncio.create_task(container.attempt_start("e"))
    await until(lambda: _children(shim_pid) != before)
    (coming,) = _children(shim_pid) - before
    os.kill(coming, signal.SIGSTOP)
    await container.kill("", signal.SIGKILL)
    assert await container.wait("") == 137
    assert await starting is None
    assert not os.path.exists(f"/proc/{coming}")


def _children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


TURNING = {
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "annotations": {"dev.pywasm.kernel-filesystems": "proc"},
}


@pytest.mark.parametrize("uid", [0, 65532])
async def test_a_working_directory_that_is_turned_to_whoever_comes(shim: Shim, uid: int) -> None:
    """The first program points /w to the root of the newest process that it sees."""
    shutil.copy(build("cwd_turner"), shim.rootfs / "cwd_turner.wasm")
    (shim.rootfs / "w").symlink_to(".")
    shim.rootfs.chmod(0o777)
    secret = shim.directory / "secret"
    secret.write_text("of the host alone")
    user = {"uid": uid, "gid": uid}
    process = {"args": ["/cwd_turner.wasm", "/", "."], "cwd": "/w", "user": user}
    container = await running(shim, process=process, **TURNING)
    first = (await container.state("")).pid
    ended = []
    for number in range(30):
        pair = [Running(shim, container.client) for _ in range(2)]
        arguments = ("/probe.wasm", "read", f".{secret}", "write", f".{shim.directory}/made")
        ended += await asyncio.gather(
            *(one.attempt(f"e{number}-{i}", *arguments, cwd="/w") for i, one in enumerate(pair))
        )
    said = {line for one in ended if one for line in one.stdout.splitlines()}
    assert said <= {"ENOENT", "EACCES", "ENOTCAPABLE"}
    assert not (shim.directory / "made").exists()
    assert os.path.exists(f"/proc/{first}")


async def test_who_is_seen_in_the_container_has_left_the_host(shim: Shim) -> None:
    """Whatever is in its PID namespace has its root, its user and none but its capabilities."""
    container = await running(shim)
    first = (await container.state("")).pid
    namespace = os.stat(f"/proc/{first}/ns/pid").st_ino
    host, root = os.stat("/"), os.stat(f"/proc/{first}/root/.")
    seen: set[tuple[bool, bool, str, str]] = set()
    over = asyncio.Event()

    async def watch() -> None:
        while not over.is_set():
            await asyncio.sleep(0)
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    if os.stat(f"/proc/{pid}/ns/pid").st_ino != namespace or int(pid) == first:
                        continue
                    there = os.stat(f"/proc/{pid}/root/.")
                    cwd = os.readlink(f"/proc/{pid}/cwd")
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue
                words = status.split()
                who, capabilities = (words[words.index(n) + 1] for n in ("Uid:", "CapPrm:"))
                at_host = os.path.samestat(there, host)
                seen.add((at_host, os.path.samestat(there, root), who, capabilities))
                assert "artifacts" not in cwd or "(unreachable)" not in cwd

    watching = asyncio.create_task(watch())
    for number in range(8):
        program = ("/native", "/idle.wasm")[number % 2]
        await container.add(f"e{number}", program, user={"uid": 65532, "gid": 65532})
        await container.start(f"e{number}")
    over.set()
    await watching
    assert seen == {(False, True, "65532", "0000000000000000")}


async def test_a_process_of_another_is_not_taken_over(shim: Shim) -> None:
    """The pid of an exec is its own, in the container's namespace a new one."""
    container = await running(shim)
    await container.add("e", "/idle.wasm")
    pid = await container.start("e")
    status = Path(f"/proc/{pid}/status").read_text()
    assert next(line for line in status.splitlines() if line.startswith("NSpid")).split()[2] == "2"
    assert f"\nPPid:\t{_parent((await container.state('')).pid)}\n" in status
    session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3]
    assert int(session) == pid
    await container.kill("e", signal.SIGKILL)
    assert await container.wait("e") == 137


async def test_what_ends_on_its_way_to_others_does_not_keep_them(shim: Shim) -> None:
    """The kernel ends a PID namespace only when all that was in it has been reaped."""
    client = await shim.create("x", "/idle.wasm", annotations=POD)
    await call(client, "Start", api.StartRequest(id="x"), Empty)
    pid = (await Running(shim, client).state("")).pid
    joined = {"type": "pid", "path": f"/proc/{pid}/ns/pid"}
    # It cannot tell that it has arrived.
    denied = {"names": ["sendmsg"], "action": "SCMP_ACT_ERRNO"}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}
    linux = {"namespaces": [joined], "seccomp": profile}
    shim.bundle("y", "/idle.wasm", annotations=POD, linux=linux)
    assert (
        "ended while it was set up"
        in (await refused(client, "Create", shim.create_request("y")))[1]
    )
    await call(client, "Kill", api.KillRequest(id="x", signal=signal.SIGKILL), Empty)
    request = api.WaitRequest(id="x")
    assert (await call(client, "Wait", request, api.WaitResponse)).exit_status == 137


def _parent(pid: int) -> str:
    words = Path(f"/proc/{pid}/status").read_text().split()
    return words[words.index("PPid:") + 1]


async def test_given_up_when_the_shim_has_heard_nothing_yet(shim: Shim) -> None:
    """The guest may be a sibling already, which nobody would reap: its namespace could not end."""
    container = await running(shim)
    connected = api.ConnectRequest(id="x")
    answer = await call(container.client, "Connect", connected, api.ConnectResponse)
    children = Path(f"/proc/{answer.shim_pid}/task/{answer.shim_pid}/children")
    before = len(children.read_text().split())
    await container.add("e", "/idle.wasm")
    request = api.StartRequest(id="x", exec_id="e")
    given_up = asyncio.create_task(
        call(container.client, "Start", request, api.StartResponse, timeout=1)
    )
    async for _ in patiently():
        if len(children.read_text().split()) > before:
            break
    os.kill(answer.shim_pid, signal.SIGSTOP)
    try:
        # Where the shim was stopped before it had said what to run, there is none.
        await until(lambda: len(children.read_text().split()) > before + 1 or given_up.done())
        with pytest.raises(RpcError):
            await given_up
    finally:
        os.kill(answer.shim_pid, signal.SIGCONT)
    await until(lambda: len(children.read_text().split()) == before)
    await call(container.client, "Kill", api.KillRequest(id="x", signal=signal.SIGKILL), Empty)
    await call(container.client, "Wait", api.WaitRequest(id="x"), api.WaitResponse)
    container.out.close()
    container.err.close()
