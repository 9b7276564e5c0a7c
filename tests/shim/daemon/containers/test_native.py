"""Native containers: by a real runc, through the same Task API as wasm ones."""

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from proto import cgroups_v1_pb2, cgroups_v2_pb2, runc_options_pb2
from proto import task_v2_pb2 as api
from proto.events_service_pb2 import ForwardRequest
from proto.task_pb2 import Status
from shim.guest.placement import Placement
from shim.linux import mounts, user_namespace
from shim.linux.cgroups import Cgroup
from shim.linux.cgroups.files import read
from shim.ttrpc import Code, Context, Method, RpcError, Server
from tests.guests.build import build
from tests.shim.daemon.patience import until
from tests.shim.task_api import POD, Container, Ended, Output, Shim, call, refused

KINDS = ("pid", "ipc", "uts", "mount", "network")
HANDLER = "dev.pywasm.handler"


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where the bundles are: not below pytest's own, where other users may not go."""
    path = Path(tempfile.mkdtemp(prefix="pywasm-native-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def shim(directory: Path) -> AsyncIterator[Shim]:
    started = Shim(directory, ("exit3", "idle"))
    for name in ("hello", "idle", "exit3", "cat", "spin", "tty", "native"):
        shutil.copy(build(name, native=True), started.rootfs / name)
    for name in ("proc", "dev"):
        (started.rootfs / name).mkdir()
    yield started
    await started.close()
    assert not [line for line in mountinfo() if str(directory) in line]


@pytest.fixture
async def topics(shim: Shim) -> AsyncIterator[list[str]]:
    """The topics of the events so far."""
    seen: list[str] = []

    async def take(request: ForwardRequest, _: Context) -> Empty:
        seen.append(request.envelope.topic)
        return Empty()

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(shim.env["TTRPC_ADDRESS"])
    listener.listen()
    server = Server(
        {"containerd.services.events.ttrpc.v1.Events": {"Forward": Method(ForwardRequest, take)}}
    )
    serving = asyncio.create_task(server.serve(listener))
    yield seen
    server.close()
    await server.wait_closed(1)
    await serving


def mountinfo() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def spec(*args: str, **more: Any) -> dict[str, Any]:
    """What `Shim.bundle` is to write for a native container; `process` and `linux` add to it."""
    process = {
        "args": list(args),
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "env": ["PATH=/"],
    } | more.pop("process", {})
    linux = {
        "namespaces": [{"type": kind} for kind in KINDS],
        "cgroupsPath": f"/pywasm-test-{uuid.uuid4().hex[:12]}",
    } | more.pop("linux", {})
    kernel = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["newinstance"],
        },
    ]
    return {"process": process, "linux": linux, "mounts": kernel} | more


async def create(shim: Shim, id: str, *args: str, **more: Any) -> Container:
    shim.bundle(id, **spec(*args, **more))
    return await Container.create(shim, id)


async def waiting(shim: Shim, id: str, *args: str, **more: Any) -> Container:
    """Start a container that runs until it is killed."""
    container = await create(shim, id, *args, **more)
    await container.start()
    await container.stdout.line()
    return container


async def execute(
    container: Container, exec_id: str, *args: str, terminal: bool = False, stdin: str = ""
) -> tuple[Output, Output]:
    """Add and start a further program."""
    out, err = (container.shim.directory / f"{exec_id}.{name}" for name in ("out", "err"))
    outputs = Output(out), Output(err)
    process = {"args": list(args), "cwd": "/", "env": ["PATH=/"], "user": {"uid": 0, "gid": 0}}
    request = api.ExecProcessRequest(
        id=container.id,
        exec_id=exec_id,
        stdin=stdin,
        stdout=str(out),
        stderr="" if terminal else str(err),
        terminal=terminal,
        spec=AnyMessage(value=json.dumps(process).encode()),
    )
    try:
        await call(container.client, "Exec", request, Empty)
        request_ = api.StartRequest(id=container.id, exec_id=exec_id)
        await call(container.client, "Start", request_, api.StartResponse)
    except RpcError:
        for output in outputs:
            output.close()
        raise
    return outputs


async def add(container: Container, exec_id: str, *args: str) -> None:
    """Add a further program without streams."""
    document = {"args": list(args), "cwd": "/", "user": {"uid": 0, "gid": 0}}
    process = AnyMessage(value=json.dumps(document).encode())
    request = api.ExecProcessRequest(id=container.id, exec_id=exec_id, spec=process)
    await call(container.client, "Exec", request, Empty)


async def exited(container: Container, exec_id: str) -> int:
    """Wait for the end of a further program, and delete it."""
    request = api.WaitRequest(id=container.id, exec_id=exec_id)
    answer = await call(container.client, "Wait", request, api.WaitResponse)
    gone = api.DeleteRequest(id=container.id, exec_id=exec_id)
    deleted = await call(container.client, "Delete", gone, api.DeleteResponse)
    assert deleted.exit_status == answer.exit_status
    return answer.exit_status


async def state(container: Container, exec_id: str = "") -> api.StateResponse:
    request = api.StateRequest(id=container.id, exec_id=exec_id)
    return await call(container.client, "State", request, api.StateResponse)


def cgroup_of(shim: Shim, id: str) -> Cgroup:
    document = json.loads((shim.directory / id / "config.json").read_text())
    return Placement.for_path(document["linux"]["cgroupsPath"]).cgroup


def left(shim: Shim, id: str) -> list[str]:
    """What there still is of a container."""
    bundle = shim.directory / id
    found = [line for line in mountinfo() if str(bundle) in line]
    found += [str(p) for p in (shim.directory / "run" / "runc").glob(f"*/{id}")]
    found += [name for name in os.listdir(bundle) if name.endswith((".pid", ".sock", ".json"))]
    found.remove("config.json")
    if cgroup_of(shim, id).exists():
        found.append("cgroup")
    return found


async def test_a_life(shim: Shim, topics: list[str]) -> None:
    container = await create(shim, "x", "/hello", hostname="abc")
    before = await state(container)
    assert before.status == Status.CREATED
    assert Path("/proc", str(before.pid), "cgroup").read_text().count("/pywasm-test-")
    assert (shim.directory / "x" / "init.pid").read_text() == str(before.pid)
    assert await container.run() == Ended(0, "hello from pywasm\n", "")
    assert left(shim, "x") == []
    await until(lambda: len(topics) == 4)
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


@pytest.mark.parametrize(
    ("args", "status"), [(("/exit3",), 3), (("exit3",), 3), (("/native", "orphan"), 5)]
)
async def test_exit_status(shim: Shim, args: tuple[str, ...], status: int) -> None:
    assert (await (await create(shim, "x", *args)).run()).status == status


async def test_what_the_spec_says(shim: Shim) -> None:
    process = {"cwd": "/proc", "user": {"uid": 1234, "gid": 5}}
    container = await create(shim, "x", "/native", "where", process=process, hostname="abc")
    assert (await container.run()).stdout == "1234 abc /proc 1234\n"


async def test_input_reaches_it_and_ends(shim: Shim) -> None:
    bundle = shim.bundle("x", **spec("/cat"))
    os.mkfifo(bundle / "stdin")
    writer = os.open(bundle / "stdin", os.O_RDWR)
    os.write(writer, b"early ")
    container = await Container.create(shim, "x", stdin=str(bundle / "stdin"))
    await container.start()
    os.write(writer, b"late\n")
    assert await container.stdout.line() == "early late"
    os.close(writer)
    assert (await container.ended()).status == 0


@pytest.mark.parametrize(
    ("signum", "args", "status"),
    [
        (signal.SIGKILL, ("/idle",), 137),
        (signal.SIGTERM, ("/native", "term"), 4),
    ],
)
async def test_kill(shim: Shim, signum: int, args: tuple[str, ...], status: int) -> None:
    container = await waiting(shim, "x", *args)
    await container.kill(signum)
    assert (await container.ended()).status == status
    assert left(shim, "x") == []


async def test_delete_of_what_was_never_started(shim: Shim) -> None:
    container = await create(shim, "x", "/idle")
    answer = await call(container.client, "Delete", api.DeleteRequest(id="x"), api.DeleteResponse)
    assert answer.exit_status == 137
    assert left(shim, "x") == []
    container.stdout.close()
    container.stderr.close()


async def test_killed_before_it_was_started(shim: Shim) -> None:
    container = await create(shim, "x", "/idle")
    await container.kill()
    assert (await container.ended()).status == 137
    assert left(shim, "x") == []


@pytest.mark.parametrize("pid_namespace", [True, False])
async def test_its_processes(shim: Shim, pid_namespace: bool) -> None:
    kinds = [{"type": kind} for kind in KINDS if pid_namespace or kind != "pid"]
    container = await waiting(shim, "x", "/native", "family", linux={"namespaces": kinds})
    out, err = await execute(container, "e", "/idle")
    await out.line()
    response = await call(container.client, "Pids", api.PidsRequest(id="x"), api.PidsResponse)
    pids = [process.pid for process in response.processes]
    assert len(pids) == 3
    assert (await state(container)).pid in pids
    (details,) = (p.info.value for p in response.processes if p.info.value)
    assert runc_options_pb2.ProcessDetails.FromString(details).exec_id == "e"
    await container.kill()  # the first, and the others go with it
    assert (await container.ended()).status == 137
    assert left(shim, "x") == []
    for pid in pids:
        assert not os.path.exists(f"/proc/{pid}")
    out.close()
    err.close()


async def test_orphans_are_reaped(shim: Shim) -> None:
    kinds = [{"type": kind} for kind in KINDS if kind != "pid"]
    container = await waiting(shim, "x", "/idle", linux={"namespaces": kinds})
    for number in range(3):
        await add(container, f"e{number}", "/native", "orphan")
        start = api.StartRequest(id="x", exec_id=f"e{number}")
        await call(container.client, "Start", start, api.StartResponse)
        assert await exited(container, f"e{number}") == 5
    pids = cgroup_of(shim, "x").pids()
    assert len(pids) == 4
    first = (await state(container)).pid
    for pid in set(pids) - {first}:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not any(os.path.exists(f"/proc/{p}") for p in set(pids) - {first}))
    await container.kill()
    await container.ended()


async def test_a_signal_to_all(shim: Shim) -> None:
    container = await waiting(shim, "x", "/idle")
    out, err = await execute(container, "e", "/idle")
    await out.line()
    request = api.KillRequest(id="x", signal=signal.SIGKILL, all=True)
    await call(container.client, "Kill", request, Empty)
    assert await exited(container, "e") == 137
    assert (await container.ended()).status == 137
    out.close()
    err.close()


async def test_pause_update_and_stats(shim: Shim, topics: list[str]) -> None:
    linux = {"resources": {"memory": {"limit": 64 << 20}}}
    container = await waiting(shim, "x", "/spin", linux=linux)
    pid = (await state(container)).pid
    client = container.client
    await call(client, "Pause", api.PauseRequest(id="x"), Empty)
    assert await container.status() == Status.PAUSED
    spent = cpu_time(pid)
    await asyncio.sleep(0.1)
    assert cpu_time(pid) == spent
    code, message = await refused(client, "Delete", api.DeleteRequest(id="x"))
    assert (code, message) == (Code.FAILED_PRECONDITION, "cannot delete a paused process")
    await call(client, "Resume", api.ResumeRequest(id="x"), Empty)
    await until(lambda: cpu_time(pid) > spent)

    cgroup = cgroup_of(shim, "x")
    assert memory_limit(cgroup) == 64 << 20
    update = json.dumps({"memory": {"limit": 96 << 20}}).encode()
    request = api.UpdateTaskRequest(id="x", resources=AnyMessage(value=update))
    await call(client, "Update", request, Empty)
    assert memory_limit(cgroup) == 96 << 20
    answer = await call(client, "Stats", api.StatsRequest(id="x"), api.StatsResponse)
    if answer.stats.type_url.endswith("v1.Metrics"):
        assert cgroups_v1_pb2.Metrics.FromString(answer.stats.value).memory.usage.limit == 96 << 20
    else:
        found = cgroups_v2_pb2.Metrics.FromString(answer.stats.value)
        assert found.memory.usage_limit == 96 << 20

    await call(client, "Pause", api.PauseRequest(id="x"), Empty)
    await container.kill()
    assert (await container.ended()).status == 137
    assert left(shim, "x") == []
    await until(lambda: "/tasks/delete" in topics)
    assert topics[2:5] == ["/tasks/paused", "/tasks/resumed", "/tasks/paused"]


def cpu_time(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def memory_limit(cgroup: Cgroup) -> int:
    v1 = cgroup.directory("memory")
    file = f"{v1}/memory.limit_in_bytes" if v1 else f"{cgroup.directory('')}/memory.max"
    return int(read(file))


async def test_out_of_memory(shim: Shim, topics: list[str]) -> None:
    linux = {"resources": {"memory": {"limit": 32 << 20, "swap": 32 << 20}}}
    container = await create(shim, "x", "/native", "memory", linux=linux)
    assert (await container.run()).status == 137
    await until(lambda: "/tasks/delete" in topics)
    assert topics == [
        *("/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit", "/tasks/delete")
    ]


async def test_exec(shim: Shim, topics: list[str]) -> None:
    container = await waiting(shim, "x", "/idle", hostname="abc")
    out, err = await execute(container, "e", "/native", "where")
    assert await exited(container, "e") == 0
    assert (await out.read(), await err.read()) == ("0 abc / 0\n", "")
    out, err = await execute(container, "f", "exit3")
    assert await exited(container, "f") == 3
    fifo = shim.directory / "in"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    os.write(writer, b"input\n")
    out, err = await execute(container, "g", "/cat", stdin=str(fifo))
    assert await out.line() == "input"
    os.close(writer)
    assert await exited(container, "g") == 0
    assert topics[2:6] == [
        *("/tasks/exec-added", "/tasks/exec-started", "/tasks/exit", "/tasks/exec-added")
    ]
    out, err = await execute(container, "h", "/idle")
    await out.line()
    kill = api.KillRequest(id="x", exec_id="h", signal=signal.SIGKILL)
    await call(container.client, "Kill", kill, Empty)
    assert await exited(container, "h") == 137
    await container.kill()
    await container.ended()
    assert left(shim, "x") == []


async def test_output_that_outlives_its_program(shim: Shim) -> None:
    """A client that wants no more of it deletes the exec, and then comes to an end."""
    container = await waiting(shim, "x", "/idle")
    out, err = await execute(container, "e", "/native", "orphan")
    wait = api.WaitRequest(id="x", exec_id="e")
    assert (await call(container.client, "Wait", wait, api.WaitResponse)).exit_status == 5
    assert out.is_open
    assert err.is_open
    assert await exited(container, "e") == 5
    assert (await out.read(), await err.read()) == ("", "")
    await container.kill()
    await container.ended()


async def test_exec_of_what_there_is_not(shim: Shim) -> None:
    container = await waiting(shim, "x", "/idle")
    with pytest.raises(RpcError, match=r"OCI runtime exec failed: .*none.*no such file") as raised:
        await execute(container, "e", "/none")
    assert raised.value.code == Code.UNKNOWN
    await container.kill()
    await container.ended()
    assert left(shim, "x") == []


@pytest.mark.parametrize("further", [False, True])
async def test_terminal(shim: Shim, further: bool) -> None:
    fifo = shim.directory / "in"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    os.write(writer, b"early\n")  # nobody may take this before the pty is there
    if further:
        container = await waiting(shim, "x", "/idle")
        out, _ = await execute(container, "e", "/tty", "size", terminal=True, stdin=str(fifo))
    else:
        process = {"terminal": True, "consoleSize": {"width": 70, "height": 20}}
        shim.bundle("x", **spec("/tty", "size", process=process))
        container = await Container.create(shim, "x", terminal=True, stdin=str(fifo), stderr="")
        await container.start()
        out = container.stdout
    exec_id = "e" if further else ""
    await until(lambda: "got 'early'" in text(out))
    assert "tty 1 1 1\r\n" in text(out)
    assert ("size 70 20\r\n" in text(out)) != further
    resize = api.ResizePtyRequest(id="x", exec_id=exec_id, width=100, height=30)
    await call(container.client, "ResizePty", resize, Empty)
    await until(lambda: "size 100 30\r\n" in text(out))
    os.write(writer, b"late\n")
    await until(lambda: "got 'late'" in text(out))
    close = api.CloseIORequest(id="x", exec_id=exec_id, stdin=True)
    await call(container.client, "CloseIO", close, Empty)
    os.close(writer)
    wait = api.WaitRequest(id="x", exec_id=exec_id)
    assert (await call(container.client, "Wait", wait, api.WaitResponse)).exit_status == 7
    if further:
        assert await exited(container, "e") == 7
        await container.kill()
    else:
        container.stderr.close()
    await call(container.client, "Wait", api.WaitRequest(id="x"), Empty)
    assert (await out.read()).endswith("end\r\n")
    await call(container.client, "Delete", api.DeleteRequest(id="x"), Empty)
    container.stdout.close()
    container.stderr.close()
    assert left(shim, "x") == []


def text(output: Output) -> str:
    return output._data.decode()


Prepare = Callable[[Path], object]


def script(rootfs: Path) -> None:
    (rootfs / "run").write_text("#!/native where\n")
    (rootfs / "run").chmod(0o755)


def link_to_the_host(rootfs: Path) -> None:
    (rootfs / "run").symlink_to("/../../../../../../../../../bin/true")


def link_inside(rootfs: Path) -> None:
    (rootfs / "run").symlink_to("/../../hello")


def unnamed_module(rootfs: Path) -> None:
    shutil.copy(rootfs / "exit3.wasm", rootfs / "run")


def misnamed(rootfs: Path) -> None:
    shutil.copy(rootfs / "hello", rootfs / "run.wasm")


def missing_interpreter(rootfs: Path) -> None:
    (rootfs / "run").write_text("#!/none\n")
    (rootfs / "run").chmod(0o755)


def neither(rootfs: Path) -> None:
    (rootfs / "run").write_text("echo\n")


@pytest.mark.parametrize(
    ("prepare", "program", "handler", "outcome"),
    [
        (link_inside, "/run", "", (0, "hello from pywasm\n")),
        (unnamed_module, "/run", "", (3, "")),
        (link_inside, "/run", "native", (0, "hello from pywasm\n")),
        (link_inside, "run", "auto", (0, "hello from pywasm\n")),
    ],
)
async def test_which_of_the_two(
    shim: Shim, prepare: Prepare, program: str, handler: str, outcome: tuple[int, str]
) -> None:
    prepare(shim.rootfs)
    annotations = {HANDLER: handler} if handler else {}
    container = await create(shim, "x", program, annotations=annotations)
    ended = await container.run()
    assert (ended.status, ended.stdout) == outcome


@pytest.mark.parametrize(
    ("prepare", "program", "handler", "code", "reason"),
    [
        (misnamed, "/run.wasm", "", Code.INVALID_ARGUMENT, "/run.wasm: "),
        (link_inside, "/run", "wasm", Code.INVALID_ARGUMENT, "/run: "),
        (neither, "/run", "", Code.INVALID_ARGUMENT, "/run: "),
        (link_to_the_host, "/run", "", Code.INVALID_ARGUMENT, "'/run': No such file"),
        (link_to_the_host, "/none", "native", Code.UNKNOWN, "OCI runtime create failed: "),
        (link_inside, "/run", "both", Code.INVALID_ARGUMENT, "expected wasm, native or auto"),
    ],
)
async def test_what_is_refused(
    shim: Shim, prepare: Prepare, program: str, handler: str, code: Code, reason: str
) -> None:
    prepare(shim.rootfs)
    with pytest.raises(RpcError) as raised:
        await create(shim, "x", program, annotations={HANDLER: handler} if handler else {})
    assert raised.value.code == code
    assert reason in raised.value.message
    assert "\n" not in raised.value.message
    assert left(shim, "x") == []


async def test_a_script_without_its_interpreter(shim: Shim) -> None:
    missing_interpreter(shim.rootfs)
    container = await create(shim, "x", "/run")
    ended = await container.run()
    assert (ended.status, ended.stderr) == (1, "exec /run: no such file or directory\n")


async def test_annotations_for_modules(shim: Shim) -> None:
    harmless = {"dev.pywasm.engine": "wasmer", "dev.pywasm.kernel-filesystems": "proc"}
    annotations = harmless | {"dev.pywasm.time-limit": "100ms"}
    ended = await (await create(shim, "x", "/idle", annotations=annotations)).run()
    assert ended.status == 137
    assert "exceeded its time limit" in ended.stderr
    for number, (name, value) in enumerate(
        (("network", "off"), ("rootfs", "off"), ("memory-pages", "5"))
    ):
        with pytest.raises(RpcError, match=f"{name}: a native container") as raised:
            await create(shim, f"r{number}", "/idle", annotations={f"dev.pywasm.{name}": value})
        assert raised.value.code == Code.INVALID_ARGUMENT
        assert left(shim, f"r{number}") == []


async def test_streams_of_another_user(shim: Shim) -> None:
    shim.bundle("x", **spec("/idle.wasm"))
    container = await Container.create(shim, "x", options=runc_options(io_uid=77, io_gid=78))
    for output in (container.stdout, container.stderr):
        found = os.stat(output.path)
        assert (found.st_uid, found.st_gid) == (77, 78)
    await container.kill()
    await container.ended()


def runc_options(**options: Any) -> AnyMessage:
    message = runc_options_pb2.Options(**options)
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


@pytest.mark.parametrize(
    ("binary", "reason"),
    [("no-such-runtime", "OCI runtime no-such-runtime: not found in /"), ("/none", "no such")],
)
async def test_without_a_runtime(shim: Shim, binary: str, reason: str) -> None:
    shim.bundle("x", **spec("/hello"))
    with pytest.raises(RpcError, match=reason):
        await Container.create(shim, "x", options=runc_options(binary_name=binary))
    assert left(shim, "x") == []


async def test_options(shim: Shim) -> None:
    root = shim.directory / "elsewhere"
    log = shim.directory / "calls"
    binary = shim.directory / "wrapper"
    script = f'echo "$@" >> {log}; ls /proc/$$/fd | sort -n | tail -1 >> {log}.fds; exec runc "$@"'
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    shim.bundle("x", **spec("/native", "where"))
    options = runc_options(
        binary_name=str(binary),
        root=str(root),
        no_pivot_root=True,
        no_new_keyring=True,
    )
    container = await Container.create(shim, "x", options=options)
    assert [p.name for p in root.glob("*/*")] == ["x"]
    assert (await container.run()).status == 0
    assert not list(root.glob("*/*"))
    create, start, delete = log.read_text().splitlines()
    assert "--no-pivot" in create
    assert "--no-new-keyring" in create
    assert "start" in start
    assert "delete" in delete
    # Of the shim's descriptors none; the shell has its script open.
    assert {int(fd) for fd in Path(f"{log}.fds").read_text().split()} <= {10, 11}


async def before_execs(shim: Shim, script: str) -> Container:
    """A container that runs, whose runtime runs a script before each exec."""
    binary = shim.directory / "wrapper"
    binary.write_text(f'#!/bin/sh\ncase "$*" in *" exec "*) {script};; esac\nexec runc "$@"\n')
    binary.chmod(0o755)
    shim.bundle("x", **spec("/idle"))
    options = runc_options(binary_name=str(binary))
    container = await Container.create(shim, "x", options=options)
    await container.start()
    return container


async def test_a_runtime_that_does_not_come_back(shim: Shim) -> None:
    """Its caller does not wait for ever, and the shim has an ear for others all the while."""
    hung = shim.directory / "hung"
    container = await before_execs(shim, f"echo $$ >{hung}; sleep 1000")
    await add(container, "e", "/idle")
    start = api.StartRequest(id="x", exec_id="e")
    with pytest.raises(RpcError) as raised:
        await call(container.client, "Start", start, Empty, timeout=0.5)
    assert raised.value.code == Code.DEADLINE_EXCEEDED
    assert (await state(container)).status == Status.RUNNING
    await call(container.client, "Pids", api.PidsRequest(id="x"), api.PidsResponse, timeout=5)
    group = int(hung.read_text())
    await until(lambda: not alive(group))
    assert await refused(container.client, "Kill", api.KillRequest(id="x", exec_id="e", signal=9))
    await container.kill()
    assert (await container.ended(5)).status == 137
    assert left(shim, "x") == []


async def test_its_exit_is_the_last_to_be_told(shim: Shim, topics: list[str]) -> None:
    """After the execs that are being started, and no more can be (containerd's issue 10589)."""
    ready, go = shim.directory / "ready", shim.directory / "go"
    waiting = f"touch {ready}; while [ ! -e {go} ]; do sleep 0.01; done"
    container = await before_execs(shim, waiting)
    await add(container, "one", "/idle")
    start = api.StartRequest(id="x", exec_id="one")
    starting = asyncio.create_task(refused(container.client, "Start", start))
    await until(ready.exists)
    pid = (await state(container)).pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: Path(f"/proc/{pid}").exists() is False)
    assert (await state(container)).status == Status.RUNNING
    await add(container, "two", "/idle")
    code, message = await refused(
        container.client, "Start", api.StartRequest(id="x", exec_id="two")
    )
    assert (code, message) == (Code.FAILED_PRECONDITION, "cannot exec: the container does not run")
    # Nobody could let it go on: who kills it is told that it has ended.
    code, message = await refused(container.client, "Pause", api.PauseRequest(id="x"))
    assert (code, message) == (Code.FAILED_PRECONDITION, "cannot pause a container that has ended")
    assert "/tasks/exit" not in topics
    go.touch()
    await starting
    assert (await container.ended()).status == 137
    await until(lambda: "/tasks/delete" in topics)
    assert topics.count("/tasks/exit") == 1


def alive(group: int) -> bool:
    """Whether a process group has any process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not os.path.isdir("/run/systemd/system"), reason="systemd is not PID 1")
@pytest.mark.parametrize("handler", ["auto", "native"])
async def test_a_scope_of_systemd(shim: Shim, handler: str) -> None:
    """Which the guest that finds the program to be native must not keep from the runtime."""
    for number in range(3):
        id = f"x{number}"
        path = f"system.slice:pywasm-test:{uuid.uuid4().hex[:12]}"
        linux = {"cgroupsPath": path, "resources": {"memory": {"limit": 64 << 20}}}
        container = await waiting(shim, id, "/idle", linux=linux, annotations={HANDLER: handler})
        cgroup = cgroup_of(shim, id)
        assert cgroup.pids() == [(await state(container)).pid]
        assert memory_limit(cgroup) == 64 << 20
        update = json.dumps({"memory": {"limit": 96 << 20}}).encode()
        request = api.UpdateTaskRequest(id=id, resources=AnyMessage(value=update))
        await call(container.client, "Update", request, Empty)
        assert memory_limit(cgroup) == 96 << 20
        await container.kill()
        assert (await container.ended()).status == 137
        assert left(shim, id) == []


@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="systemd is PID 1")
async def test_a_scope_where_no_systemd_runs(shim: Shim) -> None:
    """It is a path as any other, for the runtime, too."""
    path = f"system.slice:pywasm-test:{uuid.uuid4().hex[:12]}"
    container = await waiting(shim, "x", "/idle", linux={"cgroupsPath": path})
    cgroup = cgroup_of(shim, "x")
    assert cgroup.pids() == [(await state(container)).pid]
    await container.kill()
    assert (await container.ended()).status == 137
    assert left(shim, "x") == []
    assert not cgroup.exists()


@pytest.mark.skipif(shutil.which("crun") is None, reason="crun is not installed")
async def test_another_runtime(shim: Shim) -> None:
    shim.bundle("x", **spec("/idle"))
    container = await Container.create(shim, "x", options=runc_options(binary_name="crun"))
    await container.start()
    await container.stdout.line()
    out, _ = await execute(container, "e", "/tty", "size", terminal=True)
    await until(lambda: "size 0 0\r\n" in text(out))
    close = api.CloseIORequest(id="x", exec_id="e", stdin=True)
    await call(container.client, "CloseIO", close, Empty)
    with pytest.raises(RpcError, match=r"OCI runtime exec failed: .*none"):
        await execute(container, "f", "/none")
    await container.kill()
    assert (await container.ended()).status == 137
    assert left(shim, "x") == []
    shim.bundle("y", **spec("/none", annotations={HANDLER: "native"}))
    with pytest.raises(RpcError, match=r"OCI runtime create failed: .*none"):
        await Container.create(shim, "y", options=runc_options(binary_name="crun"))
    assert left(shim, "y") == []


@pytest.mark.parametrize("started", [False, True])
async def test_the_shim_is_killed(shim: Shim, started: bool) -> None:
    container = await create(shim, "x", "/native", "family")
    if started:
        await container.start()
        await container.stdout.line()
    pid = (await state(container)).pid
    connected = await call(
        container.client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse
    )
    os.kill(connected.shim_pid, signal.SIGKILL)
    await until(lambda: not os.path.exists(f"/proc/{connected.shim_pid}"))
    assert os.path.exists(f"/proc/{pid}")
    done = await asyncio.to_thread(shim.launch, "x", "delete")
    assert done.returncode == 0, done.stderr
    answer = api.DeleteResponse.FromString(done.stdout)
    assert (answer.pid, answer.exit_status) == (pid, 137)
    assert left(shim, "x") == []
    container.stdout.close()
    container.stderr.close()


async def test_the_shim_is_killed_while_it_creates(shim: Shim) -> None:
    begun = shim.directory / "begun"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {begun}; sleep 0.5"]}
    shim.bundle("x", **spec("/idle", hooks={"createRuntime": [hook]}))
    client = await shim.start("x")
    answer = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
    creating = asyncio.create_task(call(client, "Create", shim.create_request("x"), Empty))
    await until(begun.exists)
    pids = cgroup_of(shim, "x").pids()
    os.kill(answer.shim_pid, signal.SIGKILL)
    with pytest.raises(RpcError):
        await creating
    done = await asyncio.to_thread(shim.launch, "x", "delete")
    assert done.returncode == 0, done.stderr
    assert left(shim, "x") == []
    await until(lambda: not any(map(is_alive, pids)))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_pod_of_both_kinds(shim: Shim) -> None:
    holder = await waiting(shim, "pause", "/idle.wasm", annotations=POD)
    first = (await state(holder)).pid
    joined = [
        {"type": kind, "path": f"/proc/{first}/ns/{name}"}
        for kind, name in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"))
    ]
    namespaces = {"namespaces": [{"type": "pid"}, {"type": "mount"}, *joined]}
    sidecar = await waiting(shim, "native", "/idle", annotations=POD, linux=namespaces)
    module = await waiting(shim, "module", "/idle.wasm", annotations=POD, linux=namespaces)
    for other in (sidecar, module):
        pid = (await state(other)).pid
        for name in ("net", "ipc", "uts"):
            assert os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/{first}/ns/{name}")
        assert os.readlink(f"/proc/{pid}/ns/pid") != os.readlink(f"/proc/{first}/ns/pid")
    for container in (sidecar, module, holder):
        await container.kill()
        assert (await container.ended()).status == 137
        assert left(shim, container.id) == []


async def test_the_shim_of_a_pod_is_killed(shim: Shim) -> None:
    """Since 2.3 containerd connects others of a pod to it by itself, without a `delete` each."""
    holder = await waiting(shim, "pause", "/idle.wasm", annotations=POD)
    for id, program in (("native", "/idle"), ("module", "/idle.wasm"), ("gone", "/idle")):
        bundle = shim.bundle(id, **spec(program, annotations=POD))
        (bundle / "sandbox").write_text("pause")
        container = await Container.create(shim, id, holder.client)
        await container.start()
    await container.kill()
    await container.ended()
    assert set(os.listdir(shim.directory / "pause" / "containers")) == {"native", "module"}
    request = api.ConnectRequest(id="pause")
    connected = await call(holder.client, "Connect", request, api.ConnectResponse)
    os.kill(connected.shim_pid, signal.SIGKILL)
    await until(lambda: not os.path.exists(f"/proc/{connected.shim_pid}"))
    assert shim.launch("pause", "delete").returncode == 0
    for id in ("native", "module"):
        assert not cgroup_of(shim, id).exists()  # nor anybody in it
        assert not list((shim.directory / "run" / "runc").glob(f"*/{id}"))
    # As containerd does it when it removes a bundle.
    mounts.umount_all(str(shim.directory / "native" / "rootfs"))


async def test_a_shared_pid_namespace(shim: Shim) -> None:
    holder = await waiting(shim, "pause", "/idle.wasm", annotations=POD)
    first = (await state(holder)).pid
    shared = {"namespaces": [{"type": "pid", "path": f"/proc/{first}/ns/pid"}, {"type": "mount"}]}
    sidecar = await waiting(shim, "native", "/native", "family", annotations=POD, linux=shared)
    pids = cgroup_of(shim, "native").pids()
    assert len(pids) == 2
    await sidecar.kill()
    assert (await sidecar.ended()).status == 137
    assert left(shim, "native") == []
    await holder.kill()
    await holder.ended()


async def test_a_pod_with_a_user_namespace(shim: Shim) -> None:
    """All its namespaces are that one's, so that a runtime can join and mount them after it."""
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    maps = {"uidMappings": ids, "gidMappings": ids}
    new = [{"type": kind} for kind in (*KINDS, "user")]
    holds = POD | {"io.kubernetes.cri.container-type": "sandbox"}
    holder = await create(
        shim, "pause", "/idle", annotations=holds, linux={"namespaces": new, **maps}
    )
    await holder.start()
    first = (await state(holder)).pid
    users = os.stat(f"/proc/{first}/ns/user").st_ino
    shared = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid", "user": "user"}
    for name in shared.values():
        if name != "user":
            fd = user_namespace.of_namespace(f"/proc/{first}/ns/{name}")
            assert os.fstat(fd).st_ino == users
            os.close(fd)
    joined = [{"type": kind, "path": f"/proc/{first}/ns/{n}"} for kind, n in shared.items()]
    linux = {"namespaces": [{"type": "mount"}, *joined], **maps}
    kernels = {"proc": "/proc", "tmpfs": "/dev", "mqueue": "/dev/mqueue"}
    mounted = [{"type": kind, "source": kind, "destination": d} for kind, d in kernels.items()]
    sidecar = await waiting(shim, "native", "/idle", annotations=POD, linux=linux, mounts=mounted)
    module = await waiting(shim, "module", "/idle.wasm", annotations=POD, linux=linux)
    for other in (sidecar, module):
        pid = (await state(other)).pid
        for name in shared.values():
            assert os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/{first}/ns/{name}")
        status = Path(f"/proc/{pid}/status").read_text()
        assert "\nUid:\t100000\t100000\t100000\t100000\n" in status
    for container in (sidecar, module, holder):
        await container.kill()
        assert (await container.ended()).status == 137
        assert left(shim, container.id) == []


async def test_hooks_run_once(shim: Shim) -> None:
    log = shim.directory / "hooks"
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    hooks = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind} >> {log}"]}] for kind in kinds
    }
    container = await create(shim, "x", "/hello", hooks=hooks)
    assert (await container.run()).status == 0
    assert log.read_text().split() == list(kinds)


async def test_its_environment_is_in_no_file(shim: Shim) -> None:
    """Of a further program, whose environment the bundle does not have either."""
    container = await waiting(shim, "x", "/idle")
    before = set(os.listdir(shim.directory / "x"))
    outputs = await execute(container, "e", "/idle")
    await outputs[0].line()
    assert set(os.listdir(shim.directory / "x")) == before
    await container.kill()
    await container.ended()
    for output in outputs:
        output.close()


async def test_many_lives_leave_nothing(shim: Shim, topics: list[str]) -> None:
    holder = await waiting(shim, "pause", "/idle.wasm", annotations=POD)
    connected = await call(
        holder.client, "Connect", api.ConnectRequest(id="pause"), api.ConnectResponse
    )
    pid = connected.shim_pid
    held: tuple[int, ...] = ()
    for number in range(int(os.environ.get("PYWASM_LIVES", "50")) + 1):
        if number == 1:
            held = holdings(shim, pid)
        id = f"n{number}"
        bundle = shim.bundle(id, **spec("/exit3", annotations=POD))
        await call(holder.client, "Create", shim.create_request(id), Empty)
        await call(holder.client, "Start", api.StartRequest(id=id), Empty)
        ended = await call(holder.client, "Wait", api.WaitRequest(id=id), api.WaitResponse)
        assert ended.exit_status == 3
        await call(holder.client, "Delete", api.DeleteRequest(id=id), Empty)
        assert left(shim, id) == []
        shutil.rmtree(bundle)
    await until(lambda: holdings(shim, pid) == held)
    await holder.kill()
    await holder.ended()


def holdings(shim: Shim, pid: int) -> tuple[int, ...]:
    """Descriptors, children and mounts of a shim."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return len(os.listdir(f"/proc/{pid}/fd")), len(children), len(mountinfo())
