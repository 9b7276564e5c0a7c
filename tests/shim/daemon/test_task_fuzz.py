"""Any calls of the Task API, in any order and at the same time, to a real shim with real guests.

A model knows what state each container and exec is in, and so what status a call has to be answered
with. In between come requests that make no sense, and lives in which nobody waits for an answer.
In the end the shim must still work, and hold no more than in the beginning.
"""

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from proto import task_v2_pb2 as api
from proto.mount_pb2 import Mount
from proto.task_pb2 import Status
from shim.linux.cgroups import hierarchies
from shim.ttrpc import Code, RpcError
from tests.shim.task_api import POD, Shim, call

CREATED, RUNNING, STOPPED, PAUSED = Status.CREATED, Status.RUNNING, Status.STOPPED, Status.PAUSED

REQUESTS: dict[str, type[Message]] = {
    "Create": api.CreateTaskRequest,
    "Exec": api.ExecProcessRequest,
    "ResizePty": api.ResizePtyRequest,
    "Start": api.StartRequest,
    "State": api.StateRequest,
    "Wait": api.WaitRequest,
    "Kill": api.KillRequest,
    "Delete": api.DeleteRequest,
    "Pids": api.PidsRequest,
    "Pause": api.PauseRequest,
    "Resume": api.ResumeRequest,
    "Update": api.UpdateTaskRequest,
    "Stats": api.StatsRequest,
    "Connect": api.ConnectRequest,
    "CloseIO": api.CloseIORequest,
    "Shutdown": api.ShutdownRequest,
    "Checkpoint": api.PauseRequest,
}
UNCAUGHT = re.compile(r"(\w*[Ee]rror|\w*Exception|StopIteration|\w*Exit): ")
"""What the server says of an exception that no handler has turned into a status."""

IDS = st.sampled_from(["a", "b"])
EXECS = st.sampled_from(["e", "f"])
SIGNALS = st.sampled_from([9, 9, 15, 2, 0, 65, 2**32 - 1])
DEADLY = (2, 9, 15)

# A stream is never a path: what is no FIFO would become a file.
STREAMS = st.sampled_from(
    ["", "", "nobody", "\0", "fifo://%00", "fifo:///dev/null", "binary://[", "binary:///\0", "://"]
)
PROCESSES = st.sampled_from(
    (
        *(b'{"args":["/exit3.wasm"]}', b'{"args":["/idle.wasm"]}', b"", b"{", b"{}"),
        *(b'{"args":["\\u0000"]}', b'{"args":["/nothing"],"cwd":"nowhere"}'),
        *(b'{"user":{"uid":-1}}', b'{"env":["%s"]}' % (b"x" * 300_000)),
    )
)
RESOURCES = st.sampled_from(
    (
        *(b'{"pids":{"limit":100}}', b"{}", b"", b"[]", b'{"memory":{"limit":1}}'),
        *(b'{"cpu":{"shares":18446744073709551616}}', b'{"hugepageLimits":[{"pageSize":"../x"}]}'),
        *(b'{"rdma":{"a b":{}}}', b'{"network":{"priorities":[{"name":"\\n"}]}}'),
        *(b'{"cpu":{"cpus":"x"}}', b'{"unified":{"a":"b"}}'),
    )
)
OPTIONS = st.builds(
    AnyMessage,
    type_url=st.sampled_from(["", "containerd.runc.v1.Options", "x"]),
    value=st.sampled_from([b"", b"\xff", b"\x20\1"]),
)
MOUNTS = st.builds(
    Mount,
    type=st.sampled_from(["bind", "overlay", "nothing", "", "\0"]),
    source=st.sampled_from(["/nonexistent", "", "\0", "x" * 5000]),
    target=st.sampled_from(["", "..", "\0"]),
    options=st.lists(st.sampled_from(["ro", "lowerdir=/nonexistent", "\0", "x=y"]), max_size=2),
)


@st.composite
def requests(draw: st.DrawFn, method: str, id: st.SearchStrategy[str]) -> Message:
    """A request whose fields have values of their kind, most of which make no sense."""
    message: Any = REQUESTS[method]()
    for field in message.DESCRIPTOR.fields:
        if field.name == "id":
            message.id = draw(id)
        elif field.name == "exec_id":
            message.exec_id = draw(st.sampled_from(["", "e", "zz", "\0", "../e"]))
        elif field.name == "rootfs":
            message.rootfs.extend(draw(st.lists(MOUNTS, max_size=2)))
        elif field.name == "spec":
            message.spec.value = draw(PROCESSES)
        elif field.name == "resources":
            message.resources.value = draw(RESOURCES)
        elif field.name == "options":
            message.options.CopyFrom(draw(OPTIONS))
        elif field.cpp_type == field.CPPTYPE_STRING and not field.is_repeated:
            setattr(message, field.name, draw(STREAMS))
        elif field.cpp_type == field.CPPTYPE_BOOL:
            setattr(message, field.name, draw(st.booleans()))
        elif field.cpp_type == field.CPPTYPE_UINT32:
            setattr(message, field.name, draw(st.sampled_from([0, 9, 15, 64, 65, 2**32 - 1])))
    return cast(Message, message)


def some_calls(id: st.SearchStrategy[str], *but: str) -> st.SearchStrategy[tuple[str, Message]]:
    methods = sorted(REQUESTS.keys() - set(but))
    return st.sampled_from(methods).flatmap(
        lambda method: st.tuples(st.just(method), requests(method, id))
    )


class Raw:
    """Stands for a request that is no message."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def SerializeToString(self) -> bytes:
        return self.data


class Lab:
    """A shim with a container that stays, and what it holds then."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.shim = Shim(directory, ("exit3", "idle"))
        self.client = self.run(self.shim.create("keeper", "/idle.wasm", annotations=POD))
        self.run(call(self.client, "Start", api.StartRequest(id="keeper"), Empty))
        self.count = 0
        self.cgroups = f"pywasm-fuzz-{os.getpid()}-"
        answer = self.run(
            call(self.client, "Connect", api.ConnectRequest(id="keeper"), api.ConnectResponse)
        )
        self.pid = answer.shim_pid
        self.before = self.holds()

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def holds(self) -> tuple[list[str], list[str], list[str]]:
        """What the shim's descriptors are, its children, and the cgroups made here."""
        opened = []
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                name = os.readlink(f"/proc/{self.pid}/fd/{fd}")
                if "inotify" not in name:  # a shim has one from its first stdin on
                    opened.append(re.sub("[0-9]+", "", name))
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return sorted(opened), children, self.left()

    def wait_for_quiet(self) -> None:
        """Fail unless the shim soon holds what it held in the beginning, and all went well."""
        until = time.monotonic() + 5
        while self.holds() != self.before and time.monotonic() < until:
            time.sleep(0.01)  # some of it goes a moment later
        assert self.holds() == self.before
        for log in (self.shim.directory / "run").glob("*.log"):  # the shim's standard error
            assert "Traceback" not in log.read_text(errors="replace")

    def left(self) -> list[str]:
        """The cgroups made here."""
        return [
            f"{tree.mount}/{name}"
            for tree in hierarchies()
            for name in os.listdir(tree.mount)
            if name.startswith(self.cgroups)
        ]

    def close(self) -> None:
        self.run(self.shim.close())
        self.loop.close()
        for cgroup in self.left():  # of containers that a failure has left
            os.rmdir(cgroup)


class Program:
    """What is known of a container's first program, or of an exec."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.status = CREATED
        self.started = False
        self.execs: dict[str, Program] = {}


class Tasks(RuleBasedStateMachine):
    """Names are of one example only, since containers of an earlier one may still go."""

    lab: ClassVar[Lab]

    @initialize()
    def begin(self) -> None:
        self.lab.count += 1
        self.tasks: dict[str, Program] = {}

    def name(self, id: str) -> str:
        return f"{id}{self.lab.count}"

    def ask(self, method: str, request: Message | Raw, kind: type[Message] = Empty) -> Any:
        """Return the answer, or the status."""
        try:
            return self.lab.run(call(self.lab.client, method, cast(Message, request), kind))
        except RpcError as error:
            assert_answered(error)
            return error.code

    def expect(
        self, wanted: Code, method: str, id: str, kind: type[Message] = Empty, **fields: Any
    ) -> Any:
        answer = self.ask(method, REQUESTS[method](id=self.name(id), **fields), kind)
        assert (answer if isinstance(answer, Code) else Code.OK) is wanted, f"{method} {answer!r}"
        return answer

    def make_bundle(self, id: str, program: str, namespaces: Sequence[str] = ("pid",)) -> None:
        name = self.name(id)
        shutil.rmtree(self.lab.shim.directory / name, ignore_errors=True)  # of an earlier one
        linux = {
            "namespaces": [{"type": n} for n in namespaces],
            "cgroupsPath": f"/{self.lab.cgroups}{name}",
        }
        self.lab.shim.bundle(name, f"/{program}.wasm", linux=linux, annotations=POD)

    @rule(id=IDS, program=st.sampled_from(["idle", "exit3", "idle", "missing"]))
    def create(self, id: str, program: str) -> None:
        if id in self.tasks:
            wanted = Code.ALREADY_EXISTS
        else:
            self.make_bundle(id, program)
            wanted = Code.INVALID_ARGUMENT if program == "missing" else Code.OK
        request = self.lab.shim.create_request(self.name(id))
        answer = self.ask("Create", request, api.CreateTaskResponse)
        assert (answer if isinstance(answer, Code) else Code.OK) is wanted
        if wanted is Code.OK:
            self.tasks[id] = Program(program)

    @rule(id=IDS)
    def start(self, id: str) -> None:
        task = self.tasks.get(id)
        if task is None:
            self.expect(Code.NOT_FOUND, "Start", id=id)
        elif task.status != CREATED:
            self.expect(Code.FAILED_PRECONDITION, "Start", id=id)
        else:
            self.expect(Code.OK, "Start", id=id)
            task.status, task.started = RUNNING, True
            if task.kind == "exit3":
                self.ended(id, task, 3)

    def ended(self, id: str, task: Program, status: int) -> None:
        answer = self.expect(Code.OK, "Wait", id=id, kind=api.WaitResponse)
        assert answer.exit_status == status
        task.status = STOPPED
        for exec_id, execution in task.execs.items():
            if execution.status == RUNNING:
                self.expect(Code.OK, "Wait", id=id, exec_id=exec_id)
                execution.status = STOPPED

    @rule(id=IDS, signum=SIGNALS, everybody=st.booleans())
    def kill(self, id: str, signum: int, everybody: bool) -> None:
        task = self.tasks.get(id)
        if task is None or task.status == STOPPED:
            self.expect(Code.NOT_FOUND, "Kill", id=id, signal=signum)
        elif signum > 64:
            self.expect(Code.INVALID_ARGUMENT, "Kill", id=id, signal=signum)
        elif signum in (0, 9) or task.status == RUNNING:
            # Before its start, and while it is paused, others only wait for it.
            self.expect(Code.OK, "Kill", id=id, signal=signum, all=everybody)
            if signum:
                self.ended(id, task, 128 + signum)

    @rule(id=IDS)
    def delete(self, id: str) -> None:
        task = self.tasks.get(id)
        if task is None:
            self.expect(Code.NOT_FOUND, "Delete", id=id)
        elif task.status in (RUNNING, PAUSED):
            self.expect(Code.FAILED_PRECONDITION, "Delete", id=id)
        else:
            self.expect(Code.OK, "Delete", id=id)
            del self.tasks[id]

    @rule(id=IDS)
    def look(self, id: str) -> None:
        task = self.tasks.get(id)
        if task is None:
            for method in ("State", "Pids", "Wait", "Stats", "Update", "CloseIO", "ResizePty"):
                self.expect(Code.NOT_FOUND, method, id=id)
            return
        state = self.expect(Code.OK, "State", id=id, kind=api.StateResponse)
        assert state.status == task.status
        assert state.id == self.name(id)
        pids = self.expect(Code.OK, "Pids", id=id, kind=api.PidsResponse)
        assert (len(pids.processes) > 0) is (task.status != STOPPED)
        alive = Code.FAILED_PRECONDITION if task.status == STOPPED else Code.OK
        self.expect(Code.OK, "Stats", id=id)
        limit = AnyMessage(value=b'{"pids":{"limit":100}}')
        self.expect(alive, "Update", id=id, resources=limit)
        self.expect(Code.OK, "CloseIO", id=id, stdin=True)
        self.expect(Code.OK, "ResizePty", id=id, width=80, height=25)
        for exec_id in ("e", "f"):
            execution = task.execs.get(exec_id)
            if execution is None:
                self.expect(Code.NOT_FOUND, "State", id=id, exec_id=exec_id)
                continue
            found = self.expect(Code.OK, "State", id=id, exec_id=exec_id, kind=api.StateResponse)
            paused = task.status == PAUSED and execution.status == RUNNING
            assert found.status == (PAUSED if paused else execution.status)

    @rule(id=IDS, pause=st.booleans())
    def pause(self, id: str, pause: bool) -> None:
        method = "Pause" if pause else "Resume"
        task = self.tasks.get(id)
        if task is None:
            self.expect(Code.NOT_FOUND, method, id=id)
        elif task.status not in ((RUNNING,) if pause else (PAUSED,)):
            self.expect(Code.FAILED_PRECONDITION, method, id=id)
        else:
            self.expect(Code.OK, method, id=id)
            task.status = PAUSED if pause else RUNNING

    @rule(id=IDS, exec_id=EXECS, kind=st.sampled_from(["idle", "exit3", "idle", "missing"]))
    def execute(self, id: str, exec_id: str, kind: str) -> None:
        task = self.tasks.get(id)
        wanted = Code.OK
        if task is None:
            wanted = Code.NOT_FOUND
        elif exec_id in task.execs:
            wanted = Code.ALREADY_EXISTS
        elif task.status in (STOPPED, PAUSED):
            wanted = Code.FAILED_PRECONDITION
        spec = AnyMessage(value=b'{"args":["/%s.wasm"],"cwd":"/"}' % kind.encode())
        self.expect(wanted, "Exec", id=id, exec_id=exec_id, spec=spec)
        if task is not None and wanted is Code.OK:
            task.execs[exec_id] = Program(kind)

    @rule(id=IDS, exec_id=EXECS)
    def start_exec(self, id: str, exec_id: str) -> None:
        task = self.tasks.get(id)
        execution = task.execs.get(exec_id) if task else None
        if task is None or execution is None:
            self.expect(Code.NOT_FOUND, "Start", id=id, exec_id=exec_id)
        elif task.status in (STOPPED, PAUSED) or execution.status != CREATED:
            self.expect(Code.FAILED_PRECONDITION, "Start", id=id, exec_id=exec_id)
        elif execution.kind == "missing":
            self.expect(Code.INVALID_ARGUMENT, "Start", id=id, exec_id=exec_id)
        elif task.status == RUNNING:  # before that it is a matter of moments
            self.expect(Code.OK, "Start", id=id, exec_id=exec_id)
            execution.status = RUNNING
            if execution.kind == "exit3":
                self.exec_ended(id, exec_id, execution, 3)

    def exec_ended(self, id: str, exec_id: str, execution: Program, status: int) -> None:
        answer = self.expect(Code.OK, "Wait", id=id, exec_id=exec_id, kind=api.WaitResponse)
        assert answer.exit_status == status
        execution.status = STOPPED

    @rule(id=IDS, exec_id=EXECS, signum=SIGNALS)
    def kill_exec(self, id: str, exec_id: str, signum: int) -> None:
        task = self.tasks.get(id)
        execution = task.execs.get(exec_id) if task else None
        if task is None or execution is None:
            self.expect(Code.NOT_FOUND, "Kill", id=id, exec_id=exec_id, signal=signum)
        elif execution.status == CREATED:
            self.expect(Code.FAILED_PRECONDITION, "Kill", id=id, exec_id=exec_id, signal=signum)
        elif execution.status == STOPPED:
            self.expect(Code.NOT_FOUND, "Kill", id=id, exec_id=exec_id, signal=signum)
        elif signum > 64:
            self.expect(Code.INVALID_ARGUMENT, "Kill", id=id, exec_id=exec_id, signal=signum)
        elif task.status != PAUSED:
            self.expect(Code.OK, "Kill", id=id, exec_id=exec_id, signal=signum)
            if signum:
                self.exec_ended(id, exec_id, execution, 128 + signum)

    @rule(id=IDS, exec_id=EXECS)
    def delete_exec(self, id: str, exec_id: str) -> None:
        task = self.tasks.get(id)
        execution = task.execs.get(exec_id) if task else None
        if task is None or execution is None:
            self.expect(Code.NOT_FOUND, "Delete", id=id, exec_id=exec_id)
        elif execution.status == RUNNING:
            self.expect(Code.FAILED_PRECONDITION, "Delete", id=id, exec_id=exec_id)
        else:
            self.expect(Code.OK, "Delete", id=id, exec_id=exec_id)
            del task.execs[exec_id]

    @rule(made=some_calls(st.sampled_from(["", "nobody", "\0", "..", "x" * 5000])))
    def nonsense(self, made: tuple[str, Message]) -> None:
        method, request = made
        assert isinstance(self.ask(method, request), Code | Empty)

    @rule(method=st.sampled_from(sorted(REQUESTS)), data=st.binary(max_size=30))
    def bytes_that_are_no_message(self, method: str, data: bytes) -> None:
        self.ask(method, Raw(data))

    @rule(
        namespaces=st.sampled_from([(), ("pid",), ("pid", "ipc", "uts")]),
        streams=st.tuples(STREAMS, STREAMS, STREAMS),
        terminal=st.booleans(),
        made=st.lists(some_calls(st.just("*"), "Shutdown"), max_size=8),
    )
    def at_once(
        self,
        namespaces: tuple[str, ...],
        streams: tuple[str, str, str],
        terminal: bool,
        made: list[tuple[str, Message]],
    ) -> None:
        """Calls for one container, none of which waits for another."""
        self.make_bundle("z", "idle", namespaces)
        name = self.name("z")
        stdin, stdout, stderr = streams
        create = self.lab.shim.create_request(
            name, stdin=stdin, stdout=stdout, stderr=stderr, terminal=terminal
        )
        for _, request in made:
            cast(Any, request).id = name
        self.lab.run(self.flood([("Create", create), *made]))
        while self.ask("State", api.StateRequest(id=name)) is not Code.NOT_FOUND:
            self.ask("Kill", api.KillRequest(id=name, signal=9))
            self.ask("Wait", api.WaitRequest(id=name))
            self.ask("Delete", api.DeleteRequest(id=name))

    async def flood(self, made: list[tuple[str, Message]]) -> None:
        calls = [
            call(self.lab.client, method, request, Empty, timeout=0.5 if method == "Wait" else 20)
            for method, request in made
        ]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, RpcError) and answer.code is Code.DEADLINE_EXCEEDED:
                assert "Wait" in dict(made), "something hangs"  # for an exec that is never started
            elif isinstance(answer, RpcError):
                assert_answered(answer)
            else:
                assert not isinstance(answer, BaseException)

    def teardown(self) -> None:
        for id, task in list(self.tasks.items()):
            if task.status != STOPPED:
                self.kill(id, 9, everybody=False)
            self.delete(id)
        self.lab.wait_for_quiet()


def assert_answered(error: RpcError) -> None:
    assert error.code not in (Code.INTERNAL, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED), error
    assert not UNCAUGHT.match(error.message), error


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


@pytest.mark.timeout(600)
def test_any_calls_in_any_order(lab: Lab) -> None:
    Tasks.lab = lab
    # One shim for all: what an example leaves behind is no smaller example's fault.
    phases = (Phase.generate,)
    run_state_machine_as_test(  # type: ignore[no-untyped-call, unused-ignore]
        Tasks, settings=settings(max_examples=25, stateful_step_count=30, phases=phases)
    )


@pytest.mark.parametrize("namespaces", [[], [{"type": "pid"}]])
def test_a_container_that_ends_while_an_exec_is_made(
    lab: Lab, namespaces: list[dict[str, str]]
) -> None:
    """Found by fuzzing: its end was told to nobody, and Wait not answered."""
    spec = AnyMessage(value=b'{"args":["/idle.wasm"],"cwd":"/"}')

    async def life(name: str, pause: float) -> None:
        client = lab.client
        await call(client, "Create", lab.shim.create_request(name), Empty)
        await call(client, "Start", api.StartRequest(id=name), Empty)
        await call(client, "Exec", api.ExecProcessRequest(id=name, exec_id="e", spec=spec), Empty)
        request = api.StartRequest(id=name, exec_id="e")
        starting = asyncio.ensure_future(call(client, "Start", request, Empty))
        await asyncio.sleep(pause)
        await call(client, "Kill", api.KillRequest(id=name, signal=9), Empty)
        ended = await call(client, "Wait", api.WaitRequest(id=name), api.WaitResponse)
        assert ended.exit_status == 137
        with contextlib.suppress(RpcError):
            await starting
        await call(client, "Delete", api.DeleteRequest(id=name), Empty)

    for number in range(10):
        name = f"life{number}"
        lab.shim.bundle(name, "/idle.wasm", annotations=POD, linux={"namespaces": namespaces})
        lab.run(life(name, number / 2000))
    lab.wait_for_quiet()


def test_nul_characters_are_refused(lab: Lab) -> None:
    """Found by fuzzing: an exec whose stream had one in its name could never be deleted."""

    async def refused(method: str, request: Message) -> Code:
        with pytest.raises(RpcError) as caught:
            await call(lab.client, method, request, Empty)
        assert_answered(caught.value)
        return caught.value.code

    async def scenario() -> None:
        bundle = lab.shim.bundle("x", "/idle.wasm", annotations=POD)
        for id, directory in (("\0", str(bundle)), ("x", f"{bundle}\0")):
            request = lab.shim.create_request(id, bundle=directory)
            assert await refused("Create", request) is Code.INVALID_ARGUMENT
        for stream in ("\0", "fifo://%00", "file:///%00", "binary:///%00"):
            for field in ("stdin", "stdout", "stderr"):
                await refused("Create", lab.shim.create_request("x", **{field: stream}))
        spec = AnyMessage(value=b'{"args":["/exit3.wasm"],"cwd":"/"}')
        added = api.ExecProcessRequest(id="keeper", exec_id="e", spec=spec, stdin="\0")
        await call(lab.client, "Exec", added, Empty)
        await refused("Start", api.StartRequest(id="keeper", exec_id="e"))
        state = api.StateRequest(id="keeper", exec_id="e")
        answer = await call(lab.client, "State", state, api.StateResponse)
        assert answer.status == CREATED
        await call(lab.client, "Delete", api.DeleteRequest(id="keeper", exec_id="e"), Empty)

    lab.run(scenario())
    lab.wait_for_quiet()
