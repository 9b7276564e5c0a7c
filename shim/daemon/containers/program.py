"""What containerd knows by an id and can start: a container's first process, or a further one.

Runs in: shim.
"""

import asyncio
import signal
from collections.abc import Callable

from proto.task_pb2 import Status
from shim.daemon.containers.process import Process
from shim.daemon.streams.stdio import Stdio
from shim.ttrpc import Code, RpcError


class Program:
    """A process with its streams, from before its start until after its end."""

    def __init__(self, container_id: str, id: str, stdio: Stdio) -> None:
        self.container_id = container_id
        self.id = id
        """The container's own for its first process, else that of the exec."""
        self.stdio = stdio
        self._process: Process | None = None
        self._started = False
        self._over = asyncio.Event()
        self._on_exit: list[Callable[[], object]] = []

    def _adopt(self, process: Process) -> None:
        self._process = process
        process.exited.add_done_callback(lambda _: self._ended())

    def _ended(self) -> None:
        self.stdio.guest_ended()
        self._over.set()
        for callback in self._on_exit:
            callback()

    @property
    def pid(self) -> int:
        """The process's pid on the host, also after its end; 0 while there is none."""
        return self._process.pid if self._process else 0

    @property
    def status(self) -> Status:
        """CREATED, RUNNING or STOPPED."""
        if self.has_ended:
            return Status.STOPPED
        return Status.RUNNING if self._started else Status.CREATED

    @property
    def has_ended(self) -> bool:
        """Whether its process has, if that was told or not."""
        return self._process is not None and self._process.exited.done()

    @property
    def is_under_way(self) -> bool:
        """Whether it is being started, or runs, or its end is about to be told."""
        return self._started and not self._over.is_set()

    @property
    def exit_status(self) -> int:
        """Its exit status, 128 + n for a death by signal n; 0 until it has ended."""
        stopped = self.status == Status.STOPPED
        return self._process.exited.result() if stopped and self._process else 0

    @property
    def exited_at(self) -> int:
        """Nanoseconds since the epoch; 0 until it has ended."""
        return self._process.exited_at if self._process else 0

    def kill(self, signum: int) -> None:
        """Send a signal. Raises RpcError."""
        if self._process is None:
            raise RpcError(Code.FAILED_PRECONDITION, "process not created")
        if self._process.exited.done():  # which is all that who stops it wants to know
            raise RpcError(Code.NOT_FOUND, "process already finished")
        if not 0 <= signum <= signal.SIGRTMAX:
            raise RpcError(Code.INVALID_ARGUMENT, f"invalid signal {signum}")
        self._process.kill(signum)

    def on_exit(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the process ends."""
        # Not by the status: that changes a moment before those who wait are called.
        if self._over.is_set():
            asyncio.get_running_loop().call_soon(callback)
        else:
            self._on_exit.append(callback)

    async def wait(self) -> None:
        """Return when the process has ended, or is known not to be."""
        await self._over.wait()

    def state(self) -> str:
        """Return its status in the words of messages."""
        return Status.Name(self.status).lower()
