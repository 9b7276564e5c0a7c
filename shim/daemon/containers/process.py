"""A process whose end the shim waits for: a guest, or a process of a native container.

Runs in: shim.
"""

import asyncio
import os
import signal
import time

from shim.linux import clone
from shim.ttrpc import Code


class ProcessError(Exception):
    """A process could not be made, in one line.

    `invalid`: because of the spec or the image, not of this machine. `again`: trying again may
    help.
    """

    def __init__(self, reason: str, *, invalid: bool, again: bool = False) -> None:
        super().__init__(reason)
        self.invalid = invalid
        self.again = again

    @property
    def code(self) -> Code:
        """What to answer to who asked for it."""
        if self.invalid:
            return Code.INVALID_ARGUMENT
        return Code.UNAVAILABLE if self.again else Code.UNKNOWN


class Process:
    """A child of the shim. Needs no event loop until `watch`, which comes before all else."""

    def __init__(self, child: clone.Child) -> None:
        self.pid, self.pidfd = child

    def watch(self) -> None:
        """Listen for its end."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.pidfd, self._reap)
        self.exited: asyncio.Future[int] = self._loop.create_future()
        """Exit status, 128 + n for a death by signal n."""
        self.exited_at = 0
        """Nanoseconds since the epoch."""
        self._former: asyncio.Future[None] | None = None

    def succeed(self, child: clone.Child) -> None:
        """Be another process from now on, and end the one before. Raises ProcessLookupError."""
        former, loop = self.pidfd, self._loop
        if self.exited.done():
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            former = child.pidfd
        else:
            signal.pidfd_send_signal(former, signal.SIGKILL)
            loop.remove_reader(former)
            self.pid, self.pidfd = child
            loop.add_reader(self.pidfd, self._reap)

        buried = self._former = loop.create_future()

        def bury() -> None:
            loop.remove_reader(former)
            clone.wait(former)
            os.close(former)
            buried.set_result(None)

        loop.add_reader(former, bury)

    def kill(self, signum: int) -> None:
        """Send a signal. Raises ProcessLookupError if it has ended."""
        if self.exited.done():
            raise ProcessLookupError(f"process {self.pid} has ended")
        signal.pidfd_send_signal(self.pidfd, signum)

    async def discard(self) -> None:
        """End it, whatever it does, and free what it held."""
        if not self.exited.done():
            self.kill(signal.SIGKILL)
            await asyncio.shield(self.exited)
        if self._former is not None:
            await asyncio.shield(self._former)

    def _reap(self) -> None:
        self.exited_at = time.time_ns()
        self._loop.remove_reader(self.pidfd)
        status = clone.wait(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        self.exited.set_result(status)
