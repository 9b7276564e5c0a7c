"""Processes that become the shim's children when their parents end. Runs in: shim.

An OCI runtime starts a container's process and ends; the process then belongs to the nearest
subreaper, which is how a shim gets to wait for what it did not start. With those come others, which
nobody waits for: orphans of containers that have no PID namespace of their own.

So is a guest that has ended in the middle of becoming its sibling, before it could tell of it. As
long as that one is not reaped, the kernel lets no PID namespace end that it is in.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from shim.linux import clone, credentials

_PAUSE, _LONGEST_PAUSE = 0.01, 1.0


class Reaper:
    """Adopts processes, and reaps orphans. It does nothing before it is asked to."""

    def __init__(self) -> None:
        self._working = self._adopting = False
        self._expected = 0
        self._later: asyncio.TimerHandle | None = None

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Leave every unknown child alone in this block, which is to `clone.adopt` one of them.

        It may have ended before its pid is known here.
        """
        if not self._adopting:
            credentials.set_child_subreaper()
            self._adopting = True
        self._begin()
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            self._look()

    def seek(self) -> None:
        """Reap from now on what is an unknown child already, without being anybody's parent."""
        self._begin()
        self._look()

    def _begin(self) -> None:
        if not self._working:
            self._loop = asyncio.get_running_loop()
            self._loop.add_signal_handler(signal.SIGCHLD, self._look)
            self._working = True

    def _look(self, pause: float = _PAUSE) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        options = os.WEXITED | os.WNOHANG
        while not self._expected:
            try:
                found = os.waitid(os.P_ALL, 0, options | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if clone.is_awaited(found.si_pid):
                # In a moment it is gone, and what it hides from us can be seen.
                longer = min(2 * pause, _LONGEST_PAUSE)
                self._later = self._loop.call_later(pause, self._look, longer)
                return
            os.waitid(os.P_PID, found.si_pid, options)
