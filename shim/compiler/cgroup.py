"""Cgroups for compilers: their own, so that no container and no shim pays for them.

Runs in: foreman; a compiler of cgroup v1 enters its own by itself.

Each compilation has one below one for its owner's, and those are below one for the whole node:
together they take no more than half of the memory, and step back where containers want the
processors. Between owners the kernel divides those equally, however many each has compiled. Where
there are no cgroups, or none that we may make, the limits of the process itself remain.

Whoever has one made holds a lock on its directories (flock(2)), which ends with that process: what
is not locked may be removed. A pid would not do as a sign of life. Several instances may share the
cgroups and not the PID namespace, and then the pid of one is nobody, or another, to the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from oci.linux import CPU, Memory, Pids, Resources
from shim.linux.cgroups import Cgroup, hierarchies, trees
from shim.linux.cgroups.oom import OomWatch

PARENT: Final = "/pywasm-compilers"

_FOREMEN: Final = f"{PARENT}/foremen"
_CONTROLLERS: Final = {"memory", "cpu", "pids"}
_SHARES: Final = 512  # half of what one container has by default
_TASKS: Final = 4096  # of all compilers; half of it for one owner's
_TRIES: Final = 10
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class CompilerCgroup:
    """The cgroup of one compilation, with its limits in force."""

    def __init__(self, owner: int, memory: int, tasks: int) -> None:
        """Make it, for so many bytes and tasks. Raises OSError where it cannot be made.

        `owner` as in `shim.engines.cache`.
        """
        self._among = [tree for tree in hierarchies() if _controls(tree)]
        self._owners = f"{PARENT}/{owner}"
        node, owners = (Cgroup.for_path(path, self._among) for path in (PARENT, self._owners))
        _sweep(self._among)
        # The pid is for people, and for older versions of this, who go by it.
        self._path = f"{self._owners}/{os.getpid()}-{os.urandom(8).hex()}"
        self._cgroup = Cgroup.for_path(self._path, self._among)
        self._locks = _create(self._cgroup, [tree.mount + self._path for tree in self._among])
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.memory = min(memory, total // 2)
        """The bytes it may have, alone or with all others."""
        _limit(node, Resources(cpu=CPU(shares=_SHARES)))
        _limit(node, _bytes(total // 2))
        _limit(node, Resources(pids=Pids(limit=_TASKS)))
        _limit(owners, Resources(pids=Pids(limit=_TASKS // 2)))
        _limit(self._cgroup, _bytes(self.memory))
        _limit(self._cgroup, Resources(pids=Pids(limit=tasks)))

    def open_dir(self) -> int | None:
        """The directory to be born in; None where the compiler has to `enter`."""
        return self._cgroup.open_dir() if self._cgroup.unified else None

    def enter(self) -> None:
        """Move this process there, unless it was born there. Waits, on cgroup v1."""
        if not self._cgroup.unified:
            self._cgroup.attach()

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has killed somebody in it for want of memory."""
        try:
            watch = OomWatch(self._cgroup)
        except OSError:
            return False
        killed = watch.kills() > 0
        watch.close()
        return killed

    def delete(self) -> None:
        """Remove it. If its last process is not quite gone, the next compilation does it."""
        for lock in self._locks:
            os.close(lock)
        for tree in self._among:
            with suppress(OSError):
                os.rmdir(tree.mount + self._path)
                os.rmdir(tree.mount + self._owners)  # unless it has others


def enter_foremen() -> None:
    """Move this process to where those are who wait for a compiler. Raises OSError.

    Blocks, on cgroup v1 for one grace period of the kernel. Their cgroup may stay when they go.
    """
    cgroup = Cgroup.for_path(_FOREMEN)
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):  # somebody who sweeps was faster
            cgroup.create()
            cgroup.attach()
            return


def remove() -> None:
    """Take the node's away, when no shim is left."""
    _sweep(hierarchies())
    for tree in hierarchies():
        with suppress(OSError):  # it has none, or somebody is in it all the same
            os.rmdir(tree.mount + PARENT)


def _create(cgroup: Cgroup, directories: Sequence[str]) -> list[int]:
    """Make a cgroup that has these directories; returns the locks on them. Raises OSError."""
    for _ in range(_TRIES):
        # Somebody who sweeps may have removed its owner's, which was empty, or itself.
        with suppress(FileNotFoundError, BlockingIOError):
            cgroup.create()
            return _lock(directories)
    cgroup.create()
    return _lock(directories)


def _lock(directories: Sequence[str]) -> list[int]:
    """Lock them all. Raises OSError where one is not there (any more)."""
    with contextlib.ExitStack() as failed:
        locks = []
        for directory in directories:
            locks.append(os.open(directory, _DIRECTORY))
            failed.callback(os.close, locks[-1])
            fcntl.flock(locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(directory)  # it may have been removed before it was locked
        failed.pop_all()
    return locks


def _controls(tree: trees.Hierarchy) -> bool:
    controlled = trees.v2_controllers(tree.mount) if tree.is_v2 else tree.controllers
    return not _CONTROLLERS.isdisjoint(controlled)


def _bytes(number: int) -> Resources:
    return Resources(memory=Memory(limit=number, swap=number))


def _limit(cgroup: Cgroup, resources: Resources) -> None:
    with suppress(OSError):  # where there is no such controller, and for swap where it has no limit
        cgroup.limit(resources, update=True)


def _sweep(among: Iterable[trees.Hierarchy]) -> None:
    """Remove what is left of compilations that nobody waits for."""
    for tree in among:
        top = tree.mount + PARENT
        for directory, _, _ in os.walk(top, topdown=False):
            if directory != top:
                with suppress(OSError):  # it is locked, or in use; or an owner's, who has others
                    (lock,) = _lock([directory])
                    try:
                        os.rmdir(directory)
                    finally:
                        os.close(lock)
