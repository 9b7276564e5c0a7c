"""One container: its guest, its streams, and the states it goes through. Runs in: shim.

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
from collections.abc import Callable, Sequence

from oci.linux import Resources
from oci.runtime import Hook
from proto.mount_pb2 import Mount
from proto.task_pb2 import Status
from proto.task_v2_pb2 import CreateTaskRequest
from shim import hooks
from shim.daemon.log import Logger
from shim.daemon.oom import OomReporter
from shim.daemon.process import Guest, GuestError
from shim.daemon.stdio import Stdio
from shim.guest import control
from shim.launcher import FAREWELL
from shim.linux.cgroups.metrics import Metrics
from shim.linux.files import write_small
from shim.ttrpc import Code, RpcError

PID_FILE = "init.pid"
"""In the bundle from Create to Delete, as runc's shim has it: the guest's pid on the host."""


class Container:
    """A container whose guest is ready to start."""

    @classmethod
    async def create(cls, request: CreateTaskRequest, guest: Guest, log: Logger) -> "Container":
        """Finish what `guest` began.

        Raises GuestError or OSError, and then nothing of the container is left.
        """
        stdio = Stdio(request.stdin, request.stdout, request.stderr)
        try:
            fds = stdio.open()
            try:
                ready = await guest.prepare([_mount(mount) for mount in request.rootfs], fds)
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
        self.id = id
        self.bundle = bundle
        self.stdio = stdio
        self._guest = guest
        self._log = log
        self._hooked = hooked
        self._started = False
        self._oom = _watch_oom(guest, log)
        guest.exited.add_done_callback(lambda _: self._guest_ended())

    def _guest_ended(self) -> None:
        if self._oom is not None:
            self._oom.look()  # before anybody hears of the exit, whose reason it may be
        self.stdio.guest_ended()

    @property
    def pid(self) -> int:
        """The guest's pid on the host, also after its end."""
        return self._guest.pid

    @property
    def status(self) -> Status:
        """CREATED, RUNNING, PAUSED or STOPPED."""
        if self._guest.exited.done():
            return Status.STOPPED
        if self._guest.paused:
            return Status.PAUSED
        return Status.RUNNING if self._started else Status.CREATED

    @property
    def exit_status(self) -> int:
        """Exit status of the guest, 128 + n for a death by signal n; 0 until it has ended."""
        return self._guest.exited.result() if self._guest.exited.done() else 0

    @property
    def exited_at(self) -> int:
        """Nanoseconds since the epoch; 0 until the guest has ended."""
        return self._guest.exited_at

    async def start(self) -> None:
        """Let the program run. Raises RpcError unless it was only created, and can be started."""
        if self.status != Status.CREATED or self._started:
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot start a {self._state()} process")
        self._started = True
        try:
            await self._guest.start(hooked=self._hooked)
        except GuestError as error:
            raise RpcError(Code.UNKNOWN, str(error)) from error
        await self._run_late_hooks("poststart", self._guest.outline.hooks.poststart, "running")
        limit = self._guest.annotations.time_limit
        if limit is not None:
            timer = asyncio.get_running_loop().call_later(limit, self._expire, limit)
            self._guest.exited.add_done_callback(lambda _: timer.cancel())

    def _expire(self, limit: float) -> None:
        # Here and not in the guest, where a hostile module might get at the timer.
        self._log.info("time limit exceeded", task=self.id, seconds=limit)
        self.stdio.say(f"pywasm: killed: it exceeded its time limit of {limit:g} s\n")
        self._guest.kill(signal.SIGKILL)

    def kill(self, signum: int) -> None:
        """Send a signal to the guest. Raises RpcError."""
        if not 0 <= signum <= 64:
            raise RpcError(Code.INVALID_ARGUMENT, f"invalid signal {signum}")
        try:
            self._guest.kill(signum)
        except ProcessLookupError as error:
            raise RpcError(Code.NOT_FOUND, "process already finished") from error

    def pause(self) -> None:
        """Stop the program where it stands. Raises RpcError unless it runs, OSError."""
        if self.status not in (Status.RUNNING, Status.CREATED):
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot pause a {self._state()} container")
        self._guest.pause()

    def resume(self) -> None:
        """Let it go on. Raises RpcError unless it is paused, OSError."""
        if self.status != Status.PAUSED:
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot resume a {self._state()} container")
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
        if self._guest.exited.done():
            return []
        return self._guest.cgroup.pids() if self._guest.cgroup is not None else [self.pid]

    def on_exit(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the guest ends."""
        self._guest.exited.add_done_callback(lambda _: callback())

    async def wait(self) -> None:
        """Return when the guest has ended."""
        await asyncio.shield(self._guest.exited)

    async def delete(self) -> None:
        """Free what the container holds. Raises RpcError while it runs."""
        if self.status in (Status.RUNNING, Status.PAUSED):
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot delete a {self._state()} process")
        if self._oom is not None:
            self._oom.close()
            self._oom = None
        await self._guest.discard()
        try:
            os.unlink(os.path.join(self.bundle, PID_FILE))
        except FileNotFoundError:
            pass
        await self._run_late_hooks("poststop", self._guest.outline.hooks.poststop, "stopped")
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

    def _state(self) -> str:
        return Status.Name(self.status).lower()


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
