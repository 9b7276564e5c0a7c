"""Task requests, at once and one after the other, to a `TaskService` without real guests.

A clone takes 100 times as long as all that is looked at here, and what is done after it would not
be seen. So everything is real but the kernel's part: `Kernel` makes processes that live in this
one, and say on the control channel what a guest says. Real guests, and a whole shim, are what
tests/shim/daemon/test_task_fuzz.py has.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock, patch

from google.protobuf.message import DecodeError

from oci.linux import Resources
from oci.runtime import SpecError, decode_process
from proto import task_v2_pb2 as api
from proto.cgroups_v2_pb2 import Metrics
from shim.daemon.api.service import TaskService
from shim.daemon.containers import container, execution, guest
from shim.daemon.containers.exec_request import ExecRequest
from shim.daemon.log import Logger
from shim.daemon.streams import writers
from shim.guest import control
from shim.guest.placement import Placement
from shim.linux import clone, hooks
from shim.ttrpc import Context, Method, Peer, RpcError
from tests.fuzz.source import Source, scratch

_ROOT = scratch()
_BUNDLES = {
    "plain": {"process": {"consoleSize": {"width": 80, "height": 1 << 31}}},
    "limited": {"annotations": {"dev.pywasm.time-limit": "1ms"}, "linux": {"cgroupsPath": "/c"}},
    "hooked": {
        "hooks": {kind: [{"path": "/h"}] for kind in ("createRuntime", "poststart", "poststop")},
        "linux": {"cgroupsPath": "/c", "namespaces": [{"type": "pid"}]},
    },
    "wrong": {"annotations": {"dev.pywasm.x": ""}},
}
for _name, _config in _BUNDLES.items():
    os.mkdir(os.path.join(_ROOT, _name))
    with open(os.path.join(_ROOT, _name, "config.json"), "w") as _file:
        json.dump(_config, _file)
for _name in ("in", "out", "err"):
    os.mkfifo(os.path.join(_ROOT, _name))

_IDS = ("x", "y", "", "nobody", "\0")
_EXECS = ("", "e", "f", "\0")
_STREAMS = (
    *("", *(os.path.join(_ROOT, name) for name in ("in", "out", "err", "nobody"))),
    *(f"fifo://{_ROOT}/out", "fifo://%00", "file://host/f", "file:///%00", "\0", "a\0"),
    *("binary://[", "binary:///p?a=%00", "://", "x" * 300),
)
_BYTES = (
    *(b"", b"{", b"{}", b'{"args":["/a"]}', b'{"terminal":1}', b'{"consoleSize":{"width":1}}'),
    *(b'{"memory":{"limit":-1}}', b'{"pids":{"limit":1}}'),
)
_NUMBERS = (0, 1, 2, 9, 15, 19, 64, 65, 80, 65536, (1 << 31) - 1)


class Kernel:
    """Processes, by their pidfd. Whether one is well is the fuzzer's to say."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._last = 1 << 22
        self._processes: dict[int, _Process] = {}
        self._status: dict[int, int] = {}
        self._channel: socket.socket | None = None

    def clone(
        self, entry: Callable[[], None], flags: int = 0, *, cgroup: int | None = None
    ) -> clone.Child:
        """Only guests come into the world here."""
        if entry.__module__ not in (guest.__name__, execution.__name__):
            raise OSError(errno.EPERM, "no such process here")
        how = self._source.number()
        if how == 0xFF:
            raise OSError(errno.EAGAIN, "no more processes")
        entry()
        assert self._channel is not None
        pidfd = os.eventfd(0)
        self._last += 1
        self._processes[pidfd] = _Process(self, pidfd, self._channel, how)
        return clone.Child(self._last, pidfd)

    def live(self, birth: Any) -> None:
        """Takes the place of what a guest does first."""
        self._channel = birth.origin.channel.dup()

    def exit(self, pidfd: int, status: int) -> None:
        """End a process."""
        if process := self._processes.pop(pidfd, None):
            process.close()
            self._status[pidfd] = status
            os.eventfd_write(pidfd, 1)

    def kill(self, pidfd: int, signum: int) -> None:
        """Takes the place of pidfd_send_signal(2)."""
        if signum in (signal.SIGKILL, signal.SIGTERM):
            self.exit(pidfd, 128 + signum)
        elif pidfd not in self._processes and pidfd not in self._status:
            raise ProcessLookupError(errno.ESRCH, "no such process")

    def wait(self, pidfd: int) -> int:
        """Takes the place of waitid(2)."""
        return self._status.pop(pidfd)

    def check(self) -> None:
        """Nobody may be left."""
        assert not self._processes, "somebody still lives"
        assert not self._status, "somebody was not waited for"


class _Process:
    """What a guest says: it fails at one of its steps, or ends by itself, or lives on."""

    def __init__(self, kernel: Kernel, pidfd: int, channel: socket.socket, how: int) -> None:
        self._kernel, self._pidfd, self._channel, self._how = kernel, pidfd, channel, how
        channel.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(channel, self._listen)

    def close(self) -> None:
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel)
            self._channel.close()

    def _listen(self) -> None:
        try:
            message, fds = control.receive(self._channel)
        except EOFError:
            self._kernel.exit(self._pidfd, 0)
            return
        if isinstance(message, control.Execute):
            self._text = os.pread(fds[3], 1 << 22, 0)
        for fd in fds:
            os.close(fd)
        if isinstance(message, control.Prepare | control.Execute):
            if self._how & 7 == 1:
                self._kernel.exit(self._pidfd, 1)
            elif self._how & 7 == 2:
                self._say(control.Failed("as it was told", invalid=bool(self._how & 8)))
            elif self._how & 7 == 3 and isinstance(message, control.Prepare):
                self._say(control.Isolated())
            else:
                self._ready(message)
        elif isinstance(message, control.Continue):
            self._ready(message)
        elif isinstance(message, control.Start):
            if self._how & 16:
                self._say(control.Failed("told so", False) if self._how & 8 else control.Started())
            if self._how & 32:
                self._kernel.exit(self._pidfd, 3)
            else:
                self.close()

    def _ready(self, message: control.Message) -> None:
        if isinstance(message, control.Execute):
            try:
                decode_process(self._text)
            except SpecError as error:
                self._say(control.Failed(str(error), invalid=True))
                return
        self._say(control.Sealed())
        self._say(control.Ready("none", "", hooked=bool(self._how & 16)))

    def _say(self, message: control.Message) -> None:
        with contextlib.suppress(BrokenPipeError):
            control.send(self._channel, message)


class _Cgroup:
    unified = False

    def freeze(self) -> None:
        pass

    thaw = freeze

    def pids(self) -> list[int]:
        return [1 << 22]

    def delete(self, *, patience: float) -> None:
        pass

    def limit(self, resources: Resources, *, update: bool = False) -> None:
        if resources.memory.limit:
            raise OSError(errno.EINVAL, "no")


class _Events:
    """Takes the place of the publisher, and minds the order."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[str]] = {}

    def publish(self, event: Any) -> None:
        name = type(event).__name__
        exec_id = getattr(event, "exec_id", "") or getattr(event, "id", "")
        key = event.container_id, "" if exec_id == event.container_id else exec_id
        before = self._seen.setdefault(key, [])
        if name in ("TaskCreate", "TaskExecAdded"):
            before.clear()
        elif name in ("TaskStart", "TaskExecStarted", "TaskExit", "TaskDelete"):
            assert name not in before, f"{name} twice: {key}"
            if name.endswith(("Start", "Started")):
                assert "TaskExit" not in before, f"{name} after TaskExit: {key}"
        before.append(name)


async def _run_hooks(*_: object) -> None:
    await asyncio.sleep(0)


@contextlib.contextmanager
def _world(kernel: Kernel) -> Iterator[None]:
    placement = Placement(cast(Any, _Cgroup()), None)
    with contextlib.ExitStack() as stack:
        for where, name, what in (
            (clone, "clone", kernel.clone),
            (clone, "wait", kernel.wait),
            (clone, "setns", lambda *_: None),
            (signal, "pidfd_send_signal", kernel.kill),
            (guest, "live", kernel.live),
            (execution, "live", kernel.live),
            (hooks, "run", _run_hooks),
            (Placement, "for_path", lambda _: placement),
            (container, "metrics", lambda _: Metrics()),
            (container, "OomReporter", _no_reporter),
            # Each loop has one, and to close it takes the kernel 10 ms.
            (writers, "watch", lambda *_: Mock()),
        ):
            stack.enter_context(patch.object(where, name, what))
        yield


def _no_reporter(_: object) -> None:
    raise OSError(errno.ENOENT, "none")


def _service(events: _Events) -> TaskService:
    artifacts = SimpleNamespace(
        owner=lambda annotations: 0,
        origin=lambda channel, *_: SimpleNamespace(channel=channel),
    )
    log = Logger("/nonexistent", debug=True)
    return TaskService("n", cast(Any, events), cast(Any, artifacts), log)


_NAMES = sorted(_service(_Events()).services()["containerd.task.v2.Task"])


def _seed(*calls: tuple[str, tuple[int, ...]]) -> bytes:
    return b"".join(bytes([_NAMES.index(name), *fields]) for name, fields in calls)


def _create(bundle: int, *, how: int = 0) -> tuple[str, tuple[int, ...]]:
    # turns, id, bundle, terminal, three streams, two checkpoints, options; the guest's character
    return "Create", (7, 0, bundle, 0, 1, 2, 3, 0, 0, 0, how)


_START, _KILL, _DELETE = ("Start", (7, 0, 0)), ("Kill", (7, 0, 0, 3, 0)), ("Delete", (7, 0, 0))
_EXEC, _START_EXEC = ("Exec", (7, 0, 1, 0, 0, 0, 0, 3)), ("Start", (7, 0, 1, 0))
SEEDS = [
    _seed(_create(0), _START, _KILL, _DELETE),
    _seed(_create(1), _START, ("Pause", (7, 0)), ("Update", (7, 0, 7)), _KILL, _DELETE),
    _seed(_create(2, how=3), _START, _KILL, _DELETE),
    _seed(_create(2, how=16), _START),
    _seed(_create(0, how=32), _START),
    _seed(_create(0), _START, _EXEC, _START_EXEC, ("Kill", (7, 0, 1, 3, 0)), ("Delete", (7, 0, 1))),
    _seed(_create(0), _EXEC, ("Delete", (0, 0, 0)), ("Delete", (7, 0, 1))),
    # Found by fuzzing: a container that ended while an exec was made was never reported.
    _seed(_create(0), _START, _EXEC, ("Start", (1, 0, 1, 0)), _KILL),
    _seed(_create(0), _START, _EXEC, ("Start", (1, 0, 1, 0)), _KILL, _DELETE),
    *(_seed(_create(0), (name, (7, 0, 0, 0))) for name in _NAMES),
]


def fuzz(data: bytes) -> None:
    """Make each call, and give it some turns of the loop or none before the next."""
    source = Source(data)
    kernel = Kernel(source)
    before = len(os.listdir("/proc/self/fd"))
    with _world(kernel):
        asyncio.run(_scenario(source))
    kernel.check()
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors"


async def _scenario(source: Source) -> None:
    problems: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context))
    tasks = _service(_Events())
    methods = tasks.services()["containerd.task.v2.Task"]
    running: dict[asyncio.Task[None], str] = {}
    while source:
        name = source.choice(_NAMES)
        how = source.number()
        request = _request(source, methods[name], raw=how >= 0xF0)
        if request is not None:
            running[asyncio.create_task(_call(methods[name], request))] = name
        for _ in range(how & 7):
            await asyncio.sleep(0)
    while True:
        for id, task in list(tasks._containers.items()):
            for program in (task, *task.execs.values()):
                with contextlib.suppress(RpcError):
                    program.kill(signal.SIGKILL)
            await _call(methods["Wait"], api.WaitRequest(id=id))
            await _call(methods["Delete"], api.DeleteRequest(id=id))
        left = [call for call in running if not call.done()]
        if not left and not tasks._containers:
            break
        if not left:
            continue
        done, _ = await asyncio.wait(left, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert done, f"{[running[call] for call in left]} hang"
    for call in running:
        call.result()
    assert not tasks._creating
    assert not problems, problems


async def _call(method: Method, request: Any) -> None:
    """Anything but an answer or a status is a finding."""
    with contextlib.suppress(RpcError):
        answer = await method.handler(request, Context({}, None, Peer(1, 0, 0)))
        answer.SerializeToString()


def _request(source: Source, method: Method, *, raw: bool) -> Any:
    if method.request is ExecRequest:
        exec_ = _fill(source, api.ExecProcessRequest())
        return ExecRequest.FromString(memoryview(exec_.SerializeToString()))
    assert isinstance(method.request, type)
    request: Any = method.request()
    if raw and method.request is not api.CreateTaskRequest:
        with contextlib.suppress(DecodeError):
            request.ParseFromString(source.string())
        return request
    return _fill(source, request)


def _fill(source: Source, request: Any) -> Any:
    for field in request.DESCRIPTOR.fields:
        if field.name == "id":
            request.id = source.choice(_IDS)
        elif field.name == "exec_id":
            request.exec_id = source.choice(_EXECS)
        elif field.name == "bundle":
            request.bundle = os.path.join(_ROOT, source.choice([*_BUNDLES, "none", "\0"]))
        elif field.name in ("stdin", "stdout", "stderr") and field.type == field.TYPE_STRING:
            setattr(request, field.name, source.choice(_STREAMS))
        elif field.type == field.TYPE_STRING:
            setattr(request, field.name, source.choice(_EXECS))
        elif field.type == field.TYPE_BOOL:
            setattr(request, field.name, source.number() == 1)
        elif field.type == field.TYPE_UINT32:
            setattr(request, field.name, source.choice(_NUMBERS))
        elif field.message_type is not None and field.message_type.name == "Any":
            getattr(request, field.name).value = source.choice(_BYTES)
    return request
