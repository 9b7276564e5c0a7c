"""One container: its guest, its streams, and the states it goes through. Runs in: shim.

created -- start --> running -- (guest ends) --> stopped -- delete --> gone
   |                                                ^
   +---------------- (guest ends) ------------------+
"""

import asyncio
import os
import signal
from collections.abc import Callable

from proto.mount_pb2 import Mount
from proto.task_pb2 import Status
from proto.task_v2_pb2 import CreateTaskRequest
from shim.daemon.log import Logger
from shim.daemon.process import Guest
from shim.daemon.stdio import Stdio
from shim.guest import control
from shim.launcher import FAREWELL
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
        return cls(request.id, request.bundle, guest, stdio, log)

    def __init__(self, id: str, bundle: str, guest: Guest, stdio: Stdio, log: Logger) -> None:
        self.id = id
        self.bundle = bundle
        self.stdio = stdio
        self._guest = guest
        self._log = log
        self._started = False
        guest.exited.add_done_callback(lambda _: stdio.guest_ended())

    @property
    def pid(self) -> int:
        """The guest's pid on the host, also after its end."""
        return self._guest.pid

    @property
    def status(self) -> Status:
        """CREATED, RUNNING or STOPPED."""
        if self._guest.exited.done():
            return Status.STOPPED
        return Status.RUNNING if self._started else Status.CREATED

    @property
    def exit_status(self) -> int:
        """Exit status of the guest, 128 + n for a death by signal n; 0 until it has ended."""
        return self._guest.exited.result() if self._guest.exited.done() else 0

    @property
    def exited_at(self) -> int:
        """Nanoseconds since the epoch; 0 until the guest has ended."""
        return self._guest.exited_at

    def start(self) -> None:
        """Let the program run. Raises RpcError unless it was only created."""
        if self.status != Status.CREATED:
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot start a {self._state()} process")
        self._started = True
        self._guest.start()
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
        if self.status == Status.RUNNING:
            raise RpcError(Code.FAILED_PRECONDITION, "cannot delete a running process")
        await self._guest.discard()
        self.stdio.close()
        try:
            os.unlink(os.path.join(self.bundle, PID_FILE))
        except FileNotFoundError:
            pass

    def bid_farewell(self, answer: bytes) -> None:
        """Spare the launcher a question: containerd executes `delete` after every Delete, too."""
        try:
            write_small(os.path.join(self.bundle, FAREWELL), answer)
        except OSError:
            pass  # it will ask, then

    def _state(self) -> str:
        return Status.Name(self.status).lower()


def _mount(mount: Mount) -> control.Mount:
    return control.Mount(mount.type, mount.source, mount.target, list(mount.options))
