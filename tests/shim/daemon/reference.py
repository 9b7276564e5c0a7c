"""A shim whose answers and events are written down: ours, or containerd's own in its place.

containerd-shim-runc-v2 is given the same bundles and the same requests. What lies at `/idle.wasm`
of its rootfs is the same program, compiled to a native executable.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from proto import events_pb2, runc_options_pb2
from proto import task_v2_pb2 as api
from proto.events_service_pb2 import ForwardRequest
from shim.ttrpc import Client, Context, Method, RpcError, Server
from tests.guests.build import build
from tests.shim.daemon.patience import patiently
from tests.shim.task_api import Output, Shim

REFERENCE = "containerd-shim-runc-v2"
NEVER = -62135596800
"""Go's time of nothing, the first second of the year 1, in seconds since the epoch."""

Fields = dict[str, str]
M = TypeVar("M", bound=Message)

_ANSWERS: dict[str, type[Message]] = {
    "Create": api.CreateTaskResponse,
    "Start": api.StartResponse,
    "State": api.StateResponse,
    "Wait": api.WaitResponse,
    "Delete": api.DeleteResponse,
    "Pids": api.PidsResponse,
    "Stats": api.StatsResponse,
    "Connect": api.ConnectResponse,
}
_REQUESTS: dict[str, Callable[..., Message]] = {
    "Create": api.CreateTaskRequest,
    "Exec": api.ExecProcessRequest,
    "Update": api.UpdateTaskRequest,
    "Checkpoint": api.CheckpointTaskRequest,
}


class Recorder:
    """Calls to one shim, and all that came of them: answers, errors, events."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        self.answers: dict[str, Fields] = {}
        """What was called in which situation, and the fields of the answer."""
        self.events: dict[str, list[tuple[str, Fields]]] = {}
        """By container: topics and fields, in the order of their arrival."""
        self._service = "containerd.task.v2.Task"
        self._unique = uuid.uuid4().hex[:12]
        self._names: dict[tuple[str, object], str] = {}
        self.outputs: dict[str, Output] = {}
        """By the container's id, or what else `streams` was given, and `.stdout` or `.stderr`."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(shim.env["TTRPC_ADDRESS"])
        self._listener.listen()
        forward = Method(ForwardRequest, self._take)
        self._server = Server({"containerd.services.events.ttrpc.v1.Events": {"Forward": forward}})

    async def start(self) -> None:
        """Serve events, and start the shim with a container that keeps it: `shim`."""
        self._serving = asyncio.create_task(self._server.serve(self._listener))
        request = self.create_request("shim", "/idle.wasm", streams=False)
        self.client = await self.shim.start("shim")
        if isinstance(self.shim, ReferenceShim):
            self._service = f"containerd.task.v{self.shim.version}.Task"
        self._name("", (await self.call("Connect", id="shim")).shim_pid, "shim")
        await self.call("Create", **request)

    async def close(self) -> None:
        """End everything."""
        for id in self.events:
            self.shim.clients.insert(0, (id, self.client))
        await self.shim.close()
        for output in self.outputs.values():
            output.close()
        self._server.close()
        await self._server.wait_closed(1)
        await self._serving

    async def call(self, method: str, *, service: str = "", **fields: Any) -> Any:
        """Call without writing it down. Raises RpcError."""
        usual = getattr(api, f"{method}Request", api.StateRequest)
        request: Message = _REQUESTS.get(method, usual)(**fields)
        answer = _ANSWERS.get(method, Empty)
        service = service or self._service
        return await self.client.call(service, method, request, answer, timeout=20)

    async def make(self, id: str, program: str = "/idle.wasm", **request: Any) -> None:
        """Create a container with streams of its own, and write that down."""
        await self.do(f"Create: {id}", "Create", **self.create_request(id, program, **request))

    def create_request(
        self, id: str, program: str, *, streams: bool = True, **request: Any
    ) -> dict[str, Any]:
        """Write a bundle, and return what Create wants."""
        terminal = request.get("terminal", False)
        self.shim.bundle(
            id,
            program,
            process={"args": [program], "cwd": "/", "terminal": terminal, "env": ["PATH=/bin"]},
            linux={
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
                "cgroupsPath": f"/pywasm-test-{self._unique}-{id}",
            },
            mounts=[
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "source": "devpts",
                    "options": ["newinstance", "ptmxmode=0666"],
                },
            ],
        )
        if streams:
            request |= self.streams(id, terminal=terminal)
        made = self.shim.create_request(id, **request)
        return {field.name: value for field, value in made.ListFields()}

    def streams(self, name: str, *, terminal: bool = False) -> dict[str, str]:
        """Make FIFOs, with readers of what comes out."""
        stdin = self.shim.directory / f"{name}.in"
        os.mkfifo(stdin)
        made = {"stdin": str(stdin)}
        for stream in ("stdout",) if terminal else ("stdout", "stderr"):
            output = Output(self.shim.directory / f"{name}.{stream}")
            self.outputs[f"{name}.{stream}"] = output
            made[stream] = str(output.path)
        return made

    async def do(self, label: str, method: str, **fields: Any) -> Message | None:
        """Call, and write down under this label what came of it."""
        assert label not in self.answers, label
        try:
            answer: Message = await self.call(method, **fields)
        except RpcError as error:
            self.answers[label] = {"code": error.code.name, "(message)": error.message}
            return None
        id, exec_id = fields.get("id", ""), fields.get("exec_id", "")
        if method in ("Create", "Start") and (pid := getattr(answer, "pid", 0)):
            self._name(id, pid, f"pid of {exec_id or 'init'}")
        self.answers[label] = {"code": "OK", **self._fields(id, answer)}
        return answer

    async def do_not_wait(self, label: str, **fields: Any) -> asyncio.Task[Message | None]:
        """Send a Wait, whose answer is written down when it comes."""
        waiting = asyncio.create_task(self.do(label, "Wait", **fields))
        await asyncio.sleep(0)
        return waiting

    async def pending(
        self, label: str, waiting: asyncio.Task[Message | None], seconds: float = 0.2
    ) -> None:
        """Write down whether a Wait is answered within this time."""
        await asyncio.wait([waiting], timeout=seconds)
        self.answers[label] = {"answered": str(waiting.done())}

    async def finish(self, id: str) -> None:
        """Kill and delete a container, and write nothing of that down but the events."""
        await self.call("Kill", id=id, signal=signal.SIGKILL)
        await self.call("Wait", id=id)
        await self.call("Delete", id=id)
        await self.heard(id, "/tasks/delete")

    def seen(self) -> dict[str, Fields]:
        """Answers, and the events of each container in their order and with their fields."""
        found = dict(self.answers)
        for id, events in self.events.items():
            topics = [topic.removeprefix("/tasks/") for topic, _ in events]
            fields = {"order": " ".join(topics)}
            for topic, (_, event) in zip(topics, events, strict=True):
                program = event.get("exec_id") or event.get("id") or id
                fields |= {f"{topic} of {program}, {name}": event[name] for name in event}
            found[f"events: {id}"] = fields
        return found

    async def heard(self, id: str, topic: str, count: int = 1) -> None:
        """Return when so many events of this topic are there."""
        async for _ in patiently(0.005):
            if sum(heard == topic for heard, _ in self.events.get(id, [])) >= count:
                return
            assert not self.client.closed

    async def gone(self) -> None:
        """Return when the shim has closed the connection."""
        async for _ in patiently(0.005):
            if self.client.closed:
                return

    async def _take(self, request: ForwardRequest, _: Context) -> Empty:
        envelope = request.envelope
        kind = envelope.event.type_url.rpartition(".")[2]
        if kind == "TaskOOM":  # containerd 1.7 sends some for cgroups that go
            return Empty()
        event: Message = getattr(events_pb2, kind).FromString(envelope.event.value)
        id = getattr(event, "container_id")  # noqa: B009
        if isinstance(event, events_pb2.TaskCreate):
            self._name(id, event.pid, "pid of init")
        if isinstance(event, events_pb2.TaskExecStarted):
            self._name(id, event.pid, f"pid of {event.exec_id}")
        fields = {"type": envelope.event.type_url, "namespace": envelope.namespace}
        self.events.setdefault(id, []).append(
            (envelope.topic, {**fields, **self._fields(id, event)})
        )
        return Empty()

    def _name(self, id: str, value: object, name: str) -> None:
        self._names[id, value] = name

    def _fields(self, id: str, message: Message) -> Fields:
        """What a message says, without what differs from run to run."""
        found: Fields = {}
        for field in message.DESCRIPTOR.fields:
            value = getattr(message, field.name)
            if field.name.endswith("pid"):
                found[field.name] = self._pid(id, value)
            elif isinstance(value, Timestamp):
                given = message.HasField(field.name)
                found[field.name] = _moment(value) if given else "not given"
            elif isinstance(message, api.PidsResponse):
                found["processes"] = ", ".join(sorted(self._process(id, p) for p in value))
            elif isinstance(message, api.StatsResponse):
                found["stats"] = value.type_url
            elif field.enum_type:
                found[field.name] = field.enum_type.values_by_number[value].name
            else:
                found[field.name] = " ".join(str(value).split()).replace(
                    str(self.shim.directory), "DIR"
                )
        return found

    def _pid(self, id: str, pid: int) -> str:
        known = self._names.get((id, pid)) or self._names.get(("", pid))
        return known or ("0" if pid == 0 else "another")

    def _process(self, id: str, process: Any) -> str:
        name = self._pid(id, process.pid)
        if not process.info.type_url:
            return name
        details = runc_options_pb2.ProcessDetails.FromString(process.info.value)
        return f"{name} ({process.info.type_url} {details.exec_id})"


def _moment(moment: Timestamp) -> str:
    if moment.seconds == NEVER:
        return "never"
    return "set" if moment.seconds > 0 else "the epoch"


def references() -> list[str]:
    """The shims of those containerds that the integration tests run with."""
    chosen = os.environ.get("PYWASM_CONTAINERD", "").split(os.pathsep)
    found = (shutil.which(REFERENCE, path=os.path.abspath(d) if d else None) for d in chosen)
    return [program for program in found if program]


def version_of(program: str) -> str:
    """Major and minor of the containerd that a shim belongs to."""
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"Version: *v?(\d+\.\d+)", said)
    assert match is not None, said
    return match[1]


class ReferenceShim(Shim):
    """containerd-shim-runc-v2, on bundles with native programs."""

    def __init__(self, directory: Path, guests: tuple[str, ...], program: str) -> None:
        super().__init__(directory)
        for name in guests:
            shutil.copy(build(name, native=True), self.rootfs / f"{name}.wasm")
        self._program = program
        self.version = 2
        """Of the Task service, which is the only thing that differs."""
        self.runc_root = directory / "runc"
        runc = shutil.which("runc")
        assert runc is not None
        # A path with nothing else: with criu, there would be checkpoints.
        (directory / "bin").mkdir()
        (directory / "bin" / "runc").symlink_to(runc)
        self.env["PATH"] = str(directory / "bin")
        self._sockets: set[Path] = set()

    def launch(
        self, id: str, action: str, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Execute it as containerd does."""
        (self.directory / id / "log").touch()  # elsewhere a FIFO of containerd's
        words = [self._program, "-namespace", self._namespace, "-id", id]
        words += ["-address", str(self.directory / "containerd.sock"), action]
        return subprocess.run(
            words,
            cwd=self.directory / id,
            env=self.env,
            input=stdin,
            capture_output=True,
            timeout=30,
            check=False,
        )

    async def connect(self, id: str, address: str) -> Client:
        """Connect to what it answered: from containerd 1.7 on in JSON."""
        if address.startswith("{"):
            bootstrap = json.loads(address)
            address, self.version = bootstrap["address"], bootstrap["version"]
        self._sockets.add(Path(address.removeprefix("unix://")))
        return await super().connect(id, address)

    @property
    def _namespace(self) -> str:
        return "n"

    def create_request(self, id: str, **more: Any) -> api.CreateTaskRequest:
        """As for ours; and runc's files belong to the test."""
        request = super().create_request(id, **more)
        options = runc_options_pb2.Options(root=str(self.runc_root))
        request.options.type_url = options.DESCRIPTOR.full_name
        request.options.value = options.SerializeToString()
        return request

    async def close(self) -> None:
        """End everything, what the shim has forgotten too."""
        await super().close()
        self._clean_up()

    def _clean_up(self) -> None:
        root = self.runc_root / self._namespace
        for id in os.listdir(root) if root.exists() else []:
            command = [f"{self.directory}/bin/runc", "--root", str(root), "delete", "--force", id]
            subprocess.run(command, env=self.env, check=False, capture_output=True)
        with open("/proc/self/mountinfo") as file:
            mounted = [line.split()[4] for line in file]
        for path in mounted:
            if path.startswith(f"{self.directory}/"):
                subprocess.run(["umount", path], check=True)
        for socket_path in self._sockets:
            socket_path.unlink(missing_ok=True)
