"""One container: its first program, further ones, and the states it goes through. Runs in: shim.

created -- start --> running -- (guest ends) --> stopped -- delete --> gone
   |                  ^   |                         ^
   |                resume pause                    |
   |                  |   v                         |
   |                 paused ------ (killed) --------+
   +---------------- (guest ends) ------------------+
"""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from oci.linux import Resources
from oci.runtime import Hook
from proto.mount_pb2 import Mount
from proto.task_pb2 import Status
from proto.task_v2_pb2 import CreateTaskRequest
from shim import hooks
from shim.daemon.execution import Exec
from shim.daemon.guest import Guest
from shim.daemon.log import Logger
from shim.daemon.oom import OomReporter
from shim.daemon.program import Program
from shim.daemon.stdio import Stdio
from shim.guest import control
from shim.launcher import FAREWELL
from shim.linux.cgroups.metrics import Metrics
from shim.linux.files import write_small
from shim.ttrpc import Code, RpcError

PID_FILE = "init.pid"
"""In the bundle from Create to Delete, as runc's shim has it: the guest's pid on the host."""


class Container(Program):
    """A container whose guest is ready to start."""

    @classmethod
    async def create(
        cls, request: CreateTaskRequest, guest: Guest, logger_env: Mapping[str, str], log: Logger
    ) -> "Container":
        """Finish what `guest` began; `logger_env` as in `Stdio`.

        Raises GuestError or OSError, and then nothing of the container is left.
        """
        stdio = Stdio(
            request.stdin,
            request.stdout,
            request.stderr,
            terminal=request.terminal,
            logger_env=logger_env,
        )
        try:
            fds = stdio.open()
            try:
                await stdio.ready()
                size = guest.outline.console_size
                if request.terminal and size is not None:
                    stdio.resize(size.width, size.height)
                rootfs = [_mount(mount) for mount in request.rootfs]
                ready = await guest.prepare(rootfs, fds, terminal=request.terminal)
            finally:
                for fd in fds:
                    os.close(fd)
            write_small(os.path.join(request.bundle, PID_FILE), b"%d" % guest.pid)
        except BaseException:
            stdio.close()
            await guest.discard()
            raise
        log.info(
            "created", task=request.id, pid=guest.pid, engine=ready.engine, reason=ready.reason
        )
        if ready.missing:
            log.warning("not granted", task=request.id, capabilities=" ".join(ready.missing))
        return cls(request.id, request.bundle, guest, stdio, log, hooked=ready.hooked)

    def __init__(
        self, id: str, bundle: str, guest: Guest, stdio: Stdio, log: Logger, *, hooked: bool
    ) -> None:
        super().__init__(id, id, stdio)
        self.bundle = bundle
        self.execs: dict[str, Exec] = {}
        self._guest = guest
        self._log = log
        self._hooked = hooked
        self._oom = _watch_oom(guest, log)
        self._adopt(guest)

    def _ended(self) -> None:
        if self._oom is not None:
            self._oom.look()  # before anybody hears of the exit, whose reason it may be
        if not self._guest.has_pid_namespace:
            # The kernel ends what is in a namespace with its first process; nobody else does.
            for execution in self.execs.values():
                if execution.status == Status.RUNNING:
                    execution.kill(signal.SIGKILL)
        super()._ended()

    @property
    def status(self) -> Status:
        """CREATED, RUNNING, PAUSED or STOPPED."""
        status = super().status
        return Status.PAUSED if self._guest.paused and status != Status.STOPPED else status

    async def start(self) -> None:
        """Let the program run. Raises RpcError unless it was only created, and can be started."""
        if self.status != Status.CREATED or self._started:
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot start a {self.state()} process")
        self._started = True
        await self._start(hooked=self._hooked)
        await self._run_late_hooks("poststart", self._guest.outline.hooks.poststart, "running")
        limit = self._guest.annotations.time_limit
        if limit is not None:
            timer = asyncio.get_running_loop().call_later(limit, self._expire, limit)
            self.on_exit(timer.cancel)

    def _expire(self, limit: float) -> None:
        # Here and not in the guest, where a hostile module might get at the timer.
        self._log.info("time limit exceeded", task=self.id, seconds=limit)
        self.stdio.say(f"pywasm: killed: it exceeded its time limit of {limit:g} s\n")
        self.kill(signal.SIGKILL)

    def kill_all(self, signum: int) -> None:
        """Send a signal to every process of the container. Raises RpcError."""
        self.kill(signum)
        for pid in self.pids():
            if pid != self.pid:
                try:
                    os.kill(pid, signum)
                except ProcessLookupError:
                    pass  # it was faster

    def execute(self, exec_id: str, process: bytes, stdio: Stdio) -> Exec:
        """Add a further program, which is not started yet. Raises RpcError."""
        if exec_id in self.execs:
            raise RpcError(Code.ALREADY_EXISTS, f"id {exec_id}: already exists")
        if self.status in (Status.STOPPED, Status.PAUSED):
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot exec in a {self.state()} container")
        self.execs[exec_id] = Exec(exec_id, self._guest, process, stdio, self._log)
        return self.execs[exec_id]

    def pause(self) -> None:
        """Stop all programs where they stand. Raises RpcError unless it runs, OSError."""
        if self.status not in (Status.RUNNING, Status.CREATED):
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot pause a {self.state()} container")
        self._guest.pause()

    def resume(self) -> None:
        """Let them go on. Raises RpcError unless it is paused, OSError."""
        if self.status != Status.PAUSED:
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot resume a {self.state()} container")
        self._guest.resume()

    async def update(self, resources: Resources) -> None:
        """Change the limits that are given. Raises RpcError if it has ended, OSError."""
        self._check_alive("update")
        await self._guest.update(resources)

    def metrics(self) -> Metrics:
        """Return what it uses. Raises RpcError if it has ended, OSError."""
        self._check_alive("measure")
        return self._guest.metrics()

    def on_oom(self, callback: Callable[[], object]) -> None:
        """Call `callback` each time that the kernel kills for want of memory."""
        if self._oom is not None:
            self._oom.callback = callback

    def pids(self) -> list[int]:
        """The container's processes, as the host numbers them."""
        if self.status == Status.STOPPED:
            return []
        if self._guest.cgroup is not None:
            return self._guest.cgroup.pids()
        running = [e.pid for e in self.execs.values() if e.status == Status.RUNNING]
        return [self.pid, *running]

    async def delete(self) -> None:
        """Free what the container holds. Raises RpcError while it runs."""
        if self.status in (Status.RUNNING, Status.PAUSED):
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot delete a {self.state()} process")
        if self._oom is not None:
            self._oom.close()
            self._oom = None
        for execution in self.execs.values():
            await execution.discard()
        await self._guest.discard()
        try:
            os.unlink(os.path.join(self.bundle, PID_FILE))
        except FileNotFoundError:
            pass
        await self._run_late_hooks("poststop", self._guest.outline.hooks.poststop, "stopped")
        await self.stdio.drain()
        self.stdio.close()

    def bid_farewell(self, answer: bytes) -> None:
        """Spare the launcher a question: containerd executes `delete` after every Delete, too."""
        try:
            write_small(os.path.join(self.bundle, FAREWELL), answer)
        except OSError:
            pass  # it will ask, then

    async def _run_late_hooks(self, kind: str, those: Sequence[Hook], status: str) -> None:
        for hook in those:
            try:
                await hooks.run(kind, [hook], self._guest.state(status))
            except hooks.HookError as error:  # the spec wants the others to run all the same
                self._log.warning("hook failed", task=self.id, error=error)

    def _check_alive(self, verb: str) -> None:
        if self.status == Status.STOPPED:
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot {verb} a stopped container")


def _watch_oom(guest: Guest, log: Logger) -> OomReporter | None:
    if guest.cgroup is None:
        return None
    try:
        return OomReporter(guest.cgroup)
    except OSError as error:
        log.warning("cannot watch for out of memory", pid=guest.pid, error=error)
        return None


def _mount(mount: Mount) -> control.Mount:
    return control.Mount(mount.type, mount.source, mount.target, list(mount.options))
