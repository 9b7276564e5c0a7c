"""Telling containerd that the kernel killed a process for want of memory. Runs in: shim."""

import asyncio
from collections.abc import Callable

from shim.linux.cgroups import Cgroup
from shim.linux.cgroups.oom import OomWatch

_MOMENT = 0.05  # seconds; cgroup v1 tells before it has killed


class OomReporter:
    """Calls `callback` for each kill in a cgroup, from now on until `close`."""

    def __init__(self, cgroup: Cgroup) -> None:
        """Raises OSError where the kernel does not tell."""
        self._watch = OomWatch(cgroup)
        self._reported = self._watch.kills()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._watch, self._wake)
        self._later: asyncio.TimerHandle | None = None
        self.callback: Callable[[], object] = lambda: None

    def look(self) -> None:
        """Report what has not been reported yet."""
        while self._reported < self._watch.kills():
            self._reported += 1
            self.callback()

    def close(self) -> None:
        """Watch no longer."""
        if self._later is not None:
            self._later.cancel()
        self._loop.remove_reader(self._watch)
        self._watch.close()

    def _wake(self) -> None:
        self._watch.clear()
        self.look()
        if self._later is not None:
            self._later.cancel()
        self._later = self._loop.call_later(_MOMENT, self.look)
