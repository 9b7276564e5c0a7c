"""One container: its first program, further ones, and the states it goes through. Runs in: shim.

created -- start --> running --- (it ends) ---> stopped -- delete --> gone
   |                  ^   |                        ^
   |                resume pause                   |
   |                  |   v                        |
   |                 paused ------ (killed) -------+
   +----------------- (it ends) -------------------+

What a container runs in differs: `shim.daemon.containers.wasm`, `shim.daemon.containers.native`. It
is the same kernel that pauses, limits and measures both.
"""

import asyncio
import contextlib
import errno
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from oci.bundle import Outline
from oci.linux import Resources
from proto.task_pb2 import Status
from proto.task_v2_pb2 import CreateTaskRequest
from shim.daemon.containers.apart import apart
from shim.daemon.containers.exec_request import ProcessFile
from shim.daemon.containers.execution import Exec
from shim.daemon.containers.oom import OomReporter
from shim.daemon.containers.process import Process
from shim.daemon.containers.program import Program
from shim.daemon.log import Logger
from shim.daemon.streams.stdio import Stdio
from shim.guest import annotations, control
from shim.guest.placement import Placement
from shim.launcher.main import FAREWELL
from shim.linux.cgroups import Cgroup
from shim.linux.cgroups.metrics import Metrics, metrics
from shim.linux.files import write_small
from shim.ttrpc import Code, RpcError

PID_FILE = "init.pid"
"""In the bundle from Create to Delete, as runc's shim has it: the first process's pid."""


_OOM_FILE: Final = "oom"
"""In the bundle of a container of CRI-O's that has run out of memory: what it looks for."""


class Container(Program, ABC):
    """A container whose first process is there, ready to start."""

    def __init__(
        self,
        id: str,
        bundle: str,
        outline: Outline,
        process: Process,
        placement: Placement | None,
        stdio: Stdio,
        log: Logger,
    ) -> None:
        super().__init__(id, id, stdio)
        self.bundle = bundle
        self.is_crios = annotations.is_crio(outline.annotations)
        self.execs: dict[str, Exec] = {}
        self._placement = placement
        self._log = log
        self._paused = False
        self._starting = self._ended_early = False
        self._ending: asyncio.Task[None] | None = None
        self._time_limit = annotations.read(outline.annotations).time_limit
        # The kernel ends what is in a namespace with its first process; nobody else does.
        self._has_pid_namespace = any(n.type == "pid" and not n.path for n in outline.namespaces)
        self._oom = self._watch_oom()
        self._adopt(process)

    def _watch_oom(self) -> OomReporter | None:
        if self._placement is None:
            return None
        try:
            return OomReporter(self._placement.cgroup)
        except OSError as error:
            self._log.warning("cannot watch for out of memory", task=self.id, error=error)
            return None

    def _ended(self) -> None:
        if self._starting:
            self._ended_early = True
            return
        if self._oom is not None:
            self._oom.look()  # before anybody hears of the exit, whose reason it may be
        if self._paused:  # what is left is to end, too, and nobody can resume what has ended
            self._paused = False
            with contextlib.suppress(OSError):
                self._cgroup().thaw()
        for execution in self.execs.values():
            execution.container_has_ended()
        if not self._has_pid_namespace:
            self._kill_others()
        self._ending = asyncio.ensure_future(self._end_last()) if self._execs_under_way() else None
        if self._ending is None:
            super()._ended()

    def _execs_under_way(self) -> list[Exec]:
        return [execution for execution in self.execs.values() if execution.is_under_way]

    async def _end_last(self) -> None:
        """Tell the end when all further programs have told theirs, or could not be started.

        As runc's shim, whose clients take the first program's exit for the last word.
        """
        while going := self._execs_under_way():
            await going[0].wait()
        super()._ended()

    def _kill_others(self) -> None:
        """End what the first process has left behind."""
        for execution in self.execs.values():
            if execution.status == Status.RUNNING and execution.pid:
                execution.kill(signal.SIGKILL)

    @property
    def status(self) -> Status:
        """CREATED, RUNNING, PAUSED or STOPPED."""
        status = super().status
        if status == Status.STOPPED:
            # Until its end is told; see `_end_last`.
            return Status.RUNNING if self._execs_under_way() else status
        return Status.PAUSED if self._paused else status

    async def start(self) -> None:
        """Let the program run. Raises RpcError unless it was only created, and can be started."""
        if self.status != Status.CREATED or self._started:
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot start a {self.state()} process")
        self._started = self._starting = True
        try:
            await self._run()
            self._limit_time()
        finally:
            self._starting = False
            if self._ended_early:  # said when the start has been
                asyncio.get_running_loop().call_soon(self._ended)

    @abstractmethod
    async def _run(self) -> None:
        """Let the program run. Raises RpcError."""

    def _limit_time(self) -> None:
        limit = self._time_limit
        if limit is not None:
            timer = asyncio.get_running_loop().call_later(limit, self._expire, limit)
            self.on_exit(timer.cancel)

    def _expire(self, limit: float) -> None:
        # Here and not in the guest, where a hostile module might get at the timer.
        self._log.info("time limit exceeded", task=self.id, seconds=limit)
        self.stdio.say(f"pywasm: killed: it exceeded its time limit of {limit:g} s\n")
        with contextlib.suppress(RpcError):  # it ends by itself, this very moment
            self.kill(signal.SIGKILL)

    def kill(self, signum: int) -> None:
        """See `Program.kill`."""
        super().kill(signum)
        if self._paused and signum == signal.SIGKILL:
            self._thaw()  # what is frozen on cgroup v1 does not even die

    def kill_all(self, signum: int) -> None:
        """Send a signal to every process of the container. Raises RpcError."""
        self.kill(signum)
        for pid in self.pids():
            if pid != self.pid:
                try:
                    os.kill(pid, signum)
                except ProcessLookupError:
                    pass  # it was faster

    def execute(self, exec_id: str, process: ProcessFile, stdio: Stdio) -> Exec:
        """Add a further program, which is not started yet and takes `process` over.

        Raises RpcError, SpecError.
        """
        if exec_id in self.execs:
            raise RpcError(Code.ALREADY_EXISTS, f"id {exec_id}: already exists")
        if self.status in (Status.STOPPED, Status.PAUSED):
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot exec in a {self.state()} container")
        size = process.outline().console_size
        if stdio.terminal and size is not None:
            stdio.resize(size.width, size.height)
        self.execs[exec_id] = self._exec(exec_id, process, stdio)
        return self.execs[exec_id]

    @abstractmethod
    def _exec(self, exec_id: str, process: ProcessFile, stdio: Stdio) -> Exec:
        """Return a further program as it is in this kind of container."""

    async def pause(self) -> None:
        """Stop all programs where they stand. Raises RpcError unless it runs, OSError."""
        if self.status != Status.RUNNING:
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot pause a {self.state()} container")
        if self.has_ended:
            raise RpcError(Code.FAILED_PRECONDITION, "cannot pause a container that has ended")
        cgroup = self._cgroup()
        self._paused = True  # who kills it from now on lets it go on
        try:
            await apart(cgroup.freeze)  # waits for what the kernel does not interrupt
        except BaseException:
            self._paused = False
            with contextlib.suppress(OSError):
                cgroup.thaw()
            raise
        if not self._paused:
            cgroup.thaw()
            raise RpcError(Code.FAILED_PRECONDITION, "cannot pause a container that ends")

    def resume(self) -> None:
        """Let them go on. Raises RpcError unless it is paused, OSError."""
        if self.status != Status.PAUSED:
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot resume a {self.state()} container")
        self._thaw()

    def _thaw(self) -> None:
        self._cgroup().thaw()
        self._paused = False

    async def update(self, resources: Resources) -> None:
        """Change the limits that are given. Raises RpcError if it has ended, OSError naming one."""
        if self.status == Status.STOPPED:
            raise RpcError(Code.FAILED_PRECONDITION, "cannot update a stopped container")
        self._cgroup()
        placement = self._placement
        assert placement is not None
        # The kernel lets wait who takes memory back, and so does systemd.
        await apart(lambda: placement.update(resources))

    def metrics(self) -> Metrics:
        """Return what it uses, or has left when it ended. Raises OSError."""
        return metrics(self._cgroup())

    def on_oom(self, callback: Callable[[], object]) -> None:
        """Call `callback` each time that the kernel kills for want of memory."""
        if self._oom is not None:
            self._oom.callback = callback

    def mark_oom(self) -> None:
        """Tell CRI-O, which takes no events, that the kernel has killed for want of memory."""
        try:
            write_small(os.path.join(self.bundle, _OOM_FILE), b"")
        except OSError as error:
            self._log.warning("cannot tell of out of memory", task=self.id, error=error)

    def pids(self) -> list[int]:
        """The container's processes, as the host numbers them."""
        if self.status == Status.STOPPED:
            return []
        if self._placement is not None:
            return self._placement.cgroup.pids()
        running = [e.pid for e in self.execs.values() if e.status == Status.RUNNING]
        return [self.pid, *running]

    async def delete(self) -> None:
        """Free what the container holds. Raises RpcError while it runs."""
        if self.status in (Status.RUNNING, Status.PAUSED):
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot delete a {self.state()} process")
        if self._oom is not None:
            self._oom.close()
            self._oom = None
        for execution in list(self.execs.values()):  # which Delete may take out meanwhile
            await execution.discard()
        await self._free()
        try:
            os.unlink(os.path.join(self.bundle, PID_FILE))
        except FileNotFoundError:
            pass
        await self.stdio.drain()
        self.stdio.close()

    @abstractmethod
    async def _free(self) -> None:
        """End the first process, and free all that it was given. Raises RpcError, OSError."""

    def bid_farewell(self, answer: bytes) -> None:
        """Spare the launcher a question: containerd executes `delete` after every Delete, too."""
        try:
            write_small(os.path.join(self.bundle, FAREWELL), answer)
        except OSError:
            pass  # it will ask, then

    def _cgroup(self) -> Cgroup:
        if self._placement is None:
            raise OSError(errno.ENOENT, "the container has no cgroup of its own", "cgroupsPath")
        return self._placement.cgroup


def rootfs_mounts(request: CreateTaskRequest) -> list[control.Mount]:
    """The mounts of a request, as those who make them get them."""
    return [control.Mount(m.type, m.source, m.target, list(m.options)) for m in request.rootfs]
