"""Hearing of processes that the kernel killed because a cgroup had no memory left (library)."""

from __future__ import annotations

import errno
import fcntl
import os
import select
from contextlib import suppress
from typing import Final

from shim.linux.cgroups.cgroup import Cgroup
from shim.linux.cgroups.files import write
from shim.linux.cgroups.numbers import pairs

_SIZE: Final = 4096


class OomWatch:
    """Watches one cgroup and its children, from now until `close`.

    The descriptor becomes readable when there is something to look at. On v1 that is a moment
    *before* the kernel chooses whom to kill, also for a limit of a cgroup above this one: look
    again, at the latest when a process has ended.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        """Raises OSError: ENOENT if the cgroup has no memory controller."""
        v1 = cgroup.directory("memory")
        path = v1 if v1 is not None else cgroup.directory("")
        if path is None:
            raise OSError(
                errno.ENOENT, "no cgroup hierarchy has the memory controller", str(cgroup)
            )
        file = f"{path}/memory.{'events' if v1 is None else 'oom_control'}"
        self._v2 = v1 is None
        self._file = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if self._v2:
                self._events = _changes(self._file)
            else:
                self._events = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                try:
                    write(f"{path}/cgroup.event_control", f"{self._events} {self._file}")
                except OSError:
                    os.close(self._events)
                    raise
            self._kills = 0
            self._kills = self.kills()
        except OSError:
            os.close(self._file)
            raise

    def fileno(self) -> int:
        """What to wait for; it stays readable until `clear`. v1 tells of the cgroup's end, too."""
        return self._events

    def clear(self) -> None:
        """Wait for what comes from now on. Never blocks."""
        if self._v2:
            self.kills()  # to read the file is to have seen its change
        else:
            with suppress(BlockingIOError):
                os.read(self._events, _SIZE)

    def kills(self) -> int:
        """How many processes of the cgroup have been killed so far; the last count if it is gone.

        They are counted one by one since the cgroup was made, whoever's limit it was.
        """
        try:
            self._kills = pairs(os.pread(self._file, _SIZE, 0).decode()).get("oom_kill", 0)
        except OSError as e:
            if e.errno != errno.ENODEV:
                raise
        return self._kills

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._events)
        os.close(self._file)


def _changes(file: int) -> int:
    """Return a descriptor that is readable while a file of the kernel's has changed unread.

    The file itself always is. (An inotify would tell as well, but takes 10 ms to close.)
    """
    with select.epoll() as epoll:
        epoll.register(file, select.EPOLLPRI)
        return fcntl.fcntl(epoll.fileno(), fcntl.F_DUPFD_CLOEXEC, 0)
