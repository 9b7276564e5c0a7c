"""The Task API of a real shim with real guests, spoken to directly; no containerd is involved."""

import asyncio
import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from proto import task_v2_pb2 as api
from proto.bootstrap_pb2 import BootstrapParams, BootstrapResult
from proto.task_pb2 import Status
from shim.engines import engines
from shim.engines.text import assembled
from shim.guest.placement import Placement
from shim.ttrpc import Code, RpcError
from tests.guests.build import build
from tests.shim.launching import zygotes
from tests.shim.task_api import Container, Ended, Shim, call, end, refused, status

GUESTS = ("hello", "exit3", "spin", "sleep", "idle", "cat")


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, GUESTS)
    yield started
    await started.close()


async def test_a_whole_life(shim: Shim) -> None:
    client = await shim.create("x", "/exit3.wasm")
    assert await status(client, "x") == Status.CREATED
    waiting = asyncio.ensure_future(call(client, "Wait", api.WaitRequest(id="x"), api.WaitResponse))
    started = await call(client, "Start", api.StartRequest(id="x"), api.StartResponse)
    ended = await waiting
    assert ended.exit_status == 3
    assert ended.exited_at.seconds > 0
    state = await call(client, "State", api.StateRequest(id="x"), api.StateResponse)
    assert (state.status, state.exit_status, state.pid) == (Status.STOPPED, 3, started.pid)
    assert state.exited_at == ended.exited_at
    deleted = await call(client, "Delete", api.DeleteRequest(id="x"), api.DeleteResponse)
    assert (deleted.exit_status, deleted.pid) == (3, started.pid)
    assert (await refused(client, "State", api.StateRequest(id="x")))[0] == Code.NOT_FOUND
    await end(client, "x")


async def test_its_oom_score_is_by_containerds(shim: Shim) -> None:
    """Not by that of whoever was the first to ask the zygote."""
    expected = {}
    for score in (300, 200):
        shim.wrapper = ["choom", "-n", str(score), "--"]
        id = f"x{score}"
        client = await shim.create(id, "/idle.wasm")
        request = api.ConnectRequest(id=id)
        connected = await call(client, "Connect", request, api.ConnectResponse)
        for pid in (connected.shim_pid, connected.task_pid):
            expected[pid] = f"{score + 1}\n"
    found = {pid: Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in expected}
    assert found == expected


@pytest.mark.parametrize("program", ["/idle.wasm", "/idle"])
async def test_an_oom_score_that_the_kernel_refuses(shim: Shim, program: str) -> None:
    """As runc's own containers: Create fails."""
    shutil.copy(build("idle", native=True), shim.rootfs / "idle")
    shim.wrapper = ["setpriv", "--bounding-set", "-sys_resource", "--"]
    score = int(Path("/proc/self/oom_score_adj").read_text()) - 1
    process = {"args": [program], "cwd": "/", "oomScoreAdj": score}
    with pytest.raises(RpcError) as caught:
        await shim.create("x", program, process=process)
    assert caught.value.code == Code.UNKNOWN
    if program.endswith(".wasm"):
        assert caught.value.message == f"process.oomScoreAdj: write '{score}': Permission denied"


async def test_version_3_is_the_same_service(shim: Shim) -> None:
    client = await shim.create("x", "/idle.wasm")
    state = await call(client, "State", api.StateRequest(id="x"), api.StateResponse, version=3)
    assert state.status == Status.CREATED


async def test_illegal_transitions(shim: Shim) -> None:
    client = await shim.create("x", "/idle.wasm")
    again = await refused(client, "Create", shim.create_request("x"))
    assert again[0] == Code.ALREADY_EXISTS
    await call(client, "Start", api.StartRequest(id="x"), Empty)
    assert await refused(client, "Start", api.StartRequest(id="x")) == (
        Code.FAILED_PRECONDITION,
        "cannot start a running process",
    )
    assert await refused(client, "Delete", api.DeleteRequest(id="x")) == (
        Code.FAILED_PRECONDITION,
        "cannot delete a running process",
    )
    await call(client, "Kill", api.KillRequest(id="x", signal=9), Empty)
    await call(client, "Wait", api.WaitRequest(id="x"), Empty)
    kill = await refused(client, "Kill", api.KillRequest(id="x", signal=9))
    assert kill == (Code.NOT_FOUND, "process already finished")
    start = await refused(client, "Start", api.StartRequest(id="x"))
    assert start[0] == Code.FAILED_PRECONDITION


async def test_everything_about_an_unknown_task_is_not_found(shim: Shim) -> None:
    client = await shim.create("x", "/idle.wasm")
    for method, request in (
        ("Start", api.StartRequest(id="y")),
        ("State", api.StateRequest(id="y")),
        ("Wait", api.WaitRequest(id="y")),
        ("Kill", api.KillRequest(id="y", signal=9)),
        ("Delete", api.DeleteRequest(id="y")),
        ("Pids", api.PidsRequest(id="y")),
        ("CloseIO", api.CloseIORequest(id="y")),
        ("State", api.StateRequest(id="x", exec_id="e")),
    ):
        assert (await refused(client, method, request))[0] == Code.NOT_FOUND, method


async def test_what_is_missing_says_so(shim: Shim) -> None:
    client = await shim.create("x", "/idle.wasm")
    code, message = await refused(client, "Checkpoint", api.PauseRequest(id="x"))
    assert code == Code.UNIMPLEMENTED
    assert "Checkpoint" in message


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("guest", ["spin", "idle"])
async def test_signals_end_a_guest(shim: Shim, guest: str, signum: signal.Signals) -> None:
    client = await shim.create("x", f"/{guest}.wasm")
    await call(client, "Start", api.StartRequest(id="x"), Empty)
    await asyncio.sleep(0.05)
    await call(client, "Kill", api.KillRequest(id="x", signal=signum), Empty)
    ended = await call(client, "Wait", api.WaitRequest(id="x"), api.WaitResponse)
    assert ended.exit_status == 128 + signum


async def test_signal_numbers_are_checked(shim: Shim) -> None:
    client = await shim.create("x", "/idle.wasm")
    kill = await refused(client, "Kill", api.KillRequest(id="x", signal=65))
    assert kill == (Code.INVALID_ARGUMENT, "invalid signal 65")
    await call(client, "Kill", api.KillRequest(id="x", signal=0), Empty)
    assert await status(client, "x") == Status.CREATED


async def test_a_created_task_can_be_deleted(shim: Shim) -> None:
    client = await shim.create("x", "/idle.wasm")
    deleted = await call(client, "Delete", api.DeleteRequest(id="x"), api.DeleteResponse)
    assert deleted.exit_status == 128 + signal.SIGKILL
    assert not os.path.exists(f"/proc/{deleted.pid}")
    await end(client, "x")


async def test_a_waiting_client_holds_up_nobody(shim: Shim) -> None:
    client = await shim.create("x", "/idle.wasm")
    waits = [
        asyncio.ensure_future(call(client, "Wait", api.WaitRequest(id="x"), api.WaitResponse))
        for _ in range(20)
    ]
    assert await status(client, "x") == Status.CREATED
    await call(client, "Kill", api.KillRequest(id="x", signal=9), Empty)
    assert {answer.exit_status for answer in await asyncio.gather(*waits)} == {137}


async def test_pids_and_connect(shim: Shim) -> None:
    client = await shim.create("x", "/idle.wasm")
    connected = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
    assert Path(f"/proc/{connected.shim_pid}/comm").read_text() == "pywasm-shim\n"
    pids = await call(client, "Pids", api.PidsRequest(id="x"), api.PidsResponse)
    assert [process.pid for process in pids.processes] == [connected.task_pid]


async def test_containers_of_a_pod_share_a_shim(shim: Shim) -> None:
    pod = {"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}
    first = await shim.create("a", "/idle.wasm", **pod)
    second = await shim.create("b", "/idle.wasm", **pod)
    pids = [
        (await call(client, "Connect", api.ConnectRequest(), api.ConnectResponse)).shim_pid
        for client in (first, second)
    ]
    assert pids[0] == pids[1]
    # Shutdown for one of them must not end the other.
    await call(first, "Kill", api.KillRequest(id="a", signal=9), Empty)
    await call(first, "Wait", api.WaitRequest(id="a"), Empty)
    await call(first, "Delete", api.DeleteRequest(id="a"), Empty)
    await end(first, "a")
    assert await status(second, "b") == Status.CREATED


async def test_a_killed_shim_takes_its_guests_along(shim: Shim) -> None:
    client = await shim.create("x", "/spin.wasm", linux={"cgroupsPath": "/pywasm-test/x"})
    await call(client, "Start", api.StartRequest(id="x"), Empty)
    connected = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
    os.kill(connected.shim_pid, signal.SIGKILL)
    for _ in range(200):
        if not os.path.exists(f"/proc/{connected.task_pid}"):
            break
        await asyncio.sleep(0.01)
    done = shim.launch("x", "delete")
    answer = api.DeleteResponse.FromString(done.stdout)
    assert (answer.exit_status, answer.pid) == (137, connected.task_pid)
    assert not os.path.exists(f"/proc/{connected.task_pid}")
    assert not list(Path("/sys/fs/cgroup").glob("**/pywasm-test/x"))
    assert not list((shim.directory / "run" / "s").glob("?*[!k]"))
    for directory in Path("/sys/fs/cgroup").glob("*/pywasm-test"):
        directory.rmdir()


async def test_a_shim_without_a_task_ends_on_shutdown(shim: Shim) -> None:
    shim.bundle("x", "/idle.wasm")
    client = await shim.start("x")
    connected = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
    await end(client, "x")
    for _ in range(200):
        if not os.path.exists(f"/proc/{connected.shim_pid}"):
            break
        await asyncio.sleep(0.01)
    assert not os.path.exists(f"/proc/{connected.shim_pid}")


async def test_what_a_module_lacks_is_told_of_that_function(shim: Shim) -> None:
    """It is not kept with what is known of the module: with another function it runs."""
    wasm = assembled(b'(module (func (export "other")))') + b"\0\x12\1x" + os.urandom(16)
    (shim.rootfs / "new.wasm").write_bytes(wasm)
    shim.bundle("x", "/new.wasm")
    client = await shim.start("x")
    for _ in range(2):
        code, message = await refused(client, "Create", shim.create_request("x"))
        assert code == Code.INVALID_ARGUMENT
        assert message == "/new.wasm: the module exports no function `_start`"
    await end(client, "x")
    shim.bundle("y", "/new.wasm#other")
    container = await Container.create(shim, "y")
    assert await container.run() == Ended(0, "", "")
    await end(container.client, "y")


async def test_a_failed_create_leaves_nothing_and_can_be_repeated(shim: Shim) -> None:
    shim.bundle("x", "/no.wasm")
    client = await shim.start("x")
    for _ in range(2):
        code, message = await refused(client, "Create", shim.create_request("x"))
        assert code == Code.INVALID_ARGUMENT
        assert "/no.wasm" in message
    connected = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
    assert connected.task_pid == 0
    pid = connected.shim_pid
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""


async def test_on_cgroup_v2_a_guest_is_born_in_its_cgroup(shim: Shim) -> None:
    # This machine may have v1 or both; where only v2 is mounted, only v2 exists for us.
    shim.wrapper = [
        *("unshare", "--mount", "sh", "-ec"),
        'umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$@"',
        "sh",
    ]
    client = await shim.create("x", "/idle.wasm", linux={"cgroupsPath": "/pywasm-test/v2"})
    connected = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
    memberships = Path(f"/proc/{connected.task_pid}/cgroup").read_text().splitlines()
    assert "0::/pywasm-test/v2" in memberships
    pids = await call(client, "Pids", api.PidsRequest(id="x"), api.PidsResponse)
    assert [process.pid for process in pids.processes] == [connected.task_pid]
    await call(client, "Delete", api.DeleteRequest(id="x"), Empty)
    (parent,) = Path("/sys/fs/cgroup").glob("**/pywasm-test")
    assert not list(parent.glob("v2"))
    parent.rmdir()


async def test_a_read_only_root(shim: Shim) -> None:
    root = {"path": "rootfs", "readonly": True}
    mounts = [{"destination": "/new/place", "type": "tmpfs", "source": "tmpfs"}]
    client = await shim.create("x", "/idle.wasm", root=root, mounts=mounts)
    connected = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
    mountinfo = Path(f"/proc/{connected.task_pid}/mountinfo").read_text().splitlines()
    options = {line.split()[4]: line.split()[5].split(",") for line in mountinfo}
    assert "ro" in options["/"]
    assert "rw" in options["/new/place"]


async def test_after_an_orderly_end_delete_asks_nobody(shim: Shim) -> None:
    client = await shim.create("x", "/exit3.wasm")
    await call(client, "Start", api.StartRequest(id="x"), Empty)
    await call(client, "Wait", api.WaitRequest(id="x"), Empty)
    deleted = await call(client, "Delete", api.DeleteRequest(id="x"), api.DeleteResponse)
    await end(client, "x")
    (pid,) = zygotes(shim.directory / "run")
    os.kill(pid, signal.SIGKILL)
    done = shim.launch("x", "delete")
    assert api.DeleteResponse.FromString(done.stdout) == deleted
    assert len(list((shim.directory / "run").glob("zygote-*.sock"))) == 1
    assert done.returncode == 0


async def test_an_overlay_is_let_go_of_while_the_pod_lives_on(shim: Shim) -> None:
    pod = {"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}
    client = await shim.create("a", "/idle.wasm", **pod)
    shim_pid = (await call(client, "Connect", api.ConnectRequest(), api.ConnectResponse)).shim_pid
    before = len(os.listdir(f"/proc/{shim_pid}/fd"))
    children = Path(f"/proc/{shim_pid}/task/{shim_pid}/children")
    (first,) = children.read_text().split()

    shim.bundle("b", "/idle.wasm", **pod)
    second = await shim.start("b")
    upper, work = shim.directory / "upper", shim.directory / "work"
    upper.mkdir()
    work.mkdir()
    layers = [f"lowerdir={shim.rootfs}", f"upperdir={upper}", f"workdir={work}"]
    request = api.CreateTaskRequest(id="b", bundle=str(shim.directory / "b"))
    request.rootfs.add(type="overlay", source="overlay", options=layers)
    await call(second, "Create", request, api.CreateTaskResponse)
    links = [os.readlink(f"/proc/{shim_pid}/fd/{fd}") for fd in os.listdir(f"/proc/{shim_pid}/fd")]
    assert "/" in links
    await call(second, "Delete", api.DeleteRequest(id="b"), Empty)
    await second.close()
    for _ in range(200):
        if len(os.listdir(f"/proc/{shim_pid}/fd")) == before and children.read_text().split() == [
            first
        ]:
            break
        await asyncio.sleep(0.02)
    assert len(os.listdir(f"/proc/{shim_pid}/fd")) == before
    assert children.read_text().split() == [first]


async def test_a_cache_that_others_may_write_to_is_refused_at_start(shim: Shim) -> None:
    state = shim.directory / "state"
    state.mkdir()
    state.chmod(0o777)
    shim.bundle("x", "/idle.wasm")
    done = shim.launch("x", "start")
    assert done.returncode == 1
    assert str(state) in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert not list((shim.directory / "run" / "s").iterdir())


async def test_a_hostname_is_never_the_hosts(shim: Shim) -> None:
    before = os.uname().nodename
    shim.bundle("x", "/idle.wasm", hostname="guest", linux={"namespaces": []})
    client = await shim.start("x")
    code, message = await refused(client, "Create", shim.create_request("x"))
    assert (code, message.split(":")[0]) == (Code.INVALID_ARGUMENT, "hostname")
    assert os.uname().nodename == before


UNENFORCEABLE: list[tuple[dict[str, Any], str]] = [
    ({"namespaces": [{"type": "mount", "path": "/proc/1/ns/mnt"}]}, "linux.namespaces: mount"),
    ({"namespaces": [{"type": "user"}]}, "linux.uidMappings"),
    ({"namespaces": [], "sysctl": {"net.core.somaxconn": "1"}}, "linux.sysctl"),
    ({"seccomp": {"defaultAction": "SCMP_ACT_NONE"}}, "linux.seccomp.defaultAction"),
    ({"mountLabel": "system_u:object_r:x_t:s0"}, "linux.mountLabel"),
]


@pytest.mark.parametrize(("linux", "field"), UNENFORCEABLE)
async def test_what_cannot_be_enforced_is_refused(
    shim: Shim, linux: dict[str, Any], field: str
) -> None:
    shim.bundle("x", "/idle.wasm", linux=linux)
    client = await shim.start("x")
    code, message = await refused(client, "Create", shim.create_request("x"))
    assert code == Code.INVALID_ARGUMENT
    assert message.startswith(field)


async def test_namespaces_are_new_or_joined_as_the_spec_says(shim: Shim) -> None:
    joined = await shim.create("a", "/idle.wasm")
    first = await call(joined, "Connect", api.ConnectRequest(id="a"), api.ConnectResponse)

    def namespace(pid: int | str, kind: str) -> str:
        return os.readlink(f"/proc/{pid}/ns/{kind}")

    namespaces = [
        {"type": "pid", "path": f"/proc/{first.task_pid}/ns/pid"},
        {"type": "ipc", "path": f"/proc/{first.task_pid}/ns/ipc"},
        {"type": "uts"},
        {"type": "network"},
        {"type": "cgroup"},
    ]
    client = await shim.create("b", "/idle.wasm", linux={"namespaces": namespaces}, hostname="b")
    second = await call(client, "Connect", api.ConnectRequest(id="b"), api.ConnectResponse)
    for kind in ("pid", "ipc"):
        assert namespace(second.task_pid, kind) == namespace(first.task_pid, kind)
    for kind in ("uts", "net", "cgroup", "mnt"):
        assert namespace(second.task_pid, kind) != namespace("self", kind)
        assert namespace(second.task_pid, kind) != namespace(first.task_pid, kind)
    # Whoever joins a PID namespace must not move the shim there.
    own = os.readlink(f"/proc/{second.shim_pid}/ns/pid_for_children")
    assert own == namespace("self", "pid")


async def test_bootstrap_parameters_are_answered_with_a_result(shim: Shim) -> None:
    shim.bundle("x", "/idle.wasm")
    params = BootstrapParams(instance_id="x", namespace="n", socket_dir=str(shim.directory / "sd"))
    done = shim.launch("x", "start", params.SerializeToString())
    result = BootstrapResult.FromString(done.stdout)
    assert (result.version, result.protocol) == (3, "ttrpc")
    assert result.address.startswith(f"unix://{shim.directory}/sd/")
    client = await shim.connect("x", result.address)
    created = await call(
        client, "Create", shim.create_request("x"), api.CreateTaskResponse, version=3
    )
    assert created.pid > 0


@pytest.mark.parametrize("engine", [engine.name for engine in engines()])
async def test_an_engine_can_be_asked_for(shim: Shim, engine: str) -> None:
    annotations = {"dev.pywasm.engine": engine}
    client = await shim.create("x", "/exit3.wasm", annotations=annotations)
    await call(client, "Start", api.StartRequest(id="x"), Empty)
    ended = await call(client, "Wait", api.WaitRequest(id="x"), api.WaitResponse)
    assert ended.exit_status == 3


@pytest.mark.parametrize(
    ("args", "annotations", "culprits"),
    [
        (["/hello.wasm"], {"dev.pywasm.engine": "steam"}, ["steam"]),
        (["/hello.wasm#boil"], {}, ["/hello.wasm", "boil"]),
        (["/hello.wasm#boil#over"], {}, ["/hello.wasm", "boil#over"]),
        ([f"/hello.wasm#{'boil' * 2000}"], {}, ["/hello.wasm", "boil"]),
        (["/config.wasm"], {}, ["/config.wasm"]),
        (["nowhere.wasm"], {}, ["nowhere.wasm"]),
        ([], {}, ["process.args"]),
    ],
)
async def test_bad_input_is_named(
    shim: Shim, args: list[str], annotations: dict[str, str], culprits: list[str]
) -> None:
    (shim.rootfs / "config.wasm").write_text("{}")
    shim.bundle("x", *args, annotations=annotations)
    client = await shim.start("x")
    # Time and again: the guest says why and ends, while the shim may be telling it something.
    for _ in range(20):
        code, message = await refused(client, "Create", shim.create_request("x"))
        assert all(culprit in message for culprit in culprits)
        assert code == Code.INVALID_ARGUMENT
        assert "\n" not in message


async def test_containers_of_a_pod_may_be_created_in_another_order(shim: Shim) -> None:
    spec = {
        "annotations": {"io.kubernetes.cri.sandbox-id": "pod"},
        "linux": {"cgroupsPath": "/pywasm-test/order"},
    }
    shim.bundle("a", "/idle.wasm", **spec)
    first = await shim.start("a")
    second = await shim.create("b", "/idle.wasm", annotations=spec["annotations"])
    assert await status(second, "b") == Status.CREATED
    await call(first, "Create", shim.create_request("a"), api.CreateTaskResponse)
    assert await status(first, "a") == Status.CREATED
    await call(first, "Delete", api.DeleteRequest(id="a"), Empty)
    for directory in Path("/sys/fs/cgroup").glob("*/pywasm-test"):
        directory.rmdir()


async def test_a_rootfs_mount_with_a_target_stays_in_the_rootfs(shim: Shim) -> None:
    (shim.rootfs / "way-out").symlink_to("/usr")
    request = shim.create_request("x")
    request.rootfs.add(type="tmpfs", source="tmpfs", target="/way-out/inside")
    shim.bundle("x", "/idle.wasm")
    client = await shim.start("x")
    created = await call(client, "Create", request, api.CreateTaskResponse)
    mountinfo = Path(f"/proc/{created.pid}/mountinfo").read_text()
    assert " /usr/inside " in mountinfo
    assert (shim.rootfs / "usr" / "inside").is_dir()
    assert not os.path.exists("/usr/inside")


@pytest.mark.skipif(os.path.exists("/run/systemd/system"), reason="systemd runs here")
async def test_a_scope_where_no_systemd_runs(shim: Shim) -> None:
    """It is a path as any other."""
    path = f"system.slice:pywasm:{uuid.uuid4().hex[:12]}"
    shim.bundle("x", "/idle.wasm", linux={"cgroupsPath": path})
    client = await shim.start("x")
    created = await call(client, "Create", shim.create_request("x"), api.CreateTaskResponse)
    groups = Path(f"/proc/{created.pid}/cgroup").read_text().splitlines()
    assert any(line.endswith(f"/{path}") for line in groups)
    await end(client, "x")
    shim.launch("x", "delete")
    assert not Placement.for_path(path).cgroup.exists()


@pytest.mark.parametrize("path", ["/a/../../b", "/"])
async def test_delete_does_not_fail_over_a_cgroup_that_cannot_be(shim: Shim, path: str) -> None:
    shim.bundle("x", "/idle.wasm", linux={"cgroupsPath": path})
    client = await shim.start("x")
    _, message = await refused(client, "Create", shim.create_request("x"))
    assert path in message
    await end(client, "x")
    done = shim.launch("x", "delete")
    assert (done.returncode, done.stderr) == (0, b"")
    assert api.DeleteResponse.FromString(done.stdout).exit_status == 137
