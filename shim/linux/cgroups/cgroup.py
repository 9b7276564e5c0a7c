"""The cgroup of a container, through the cgroup filesystem: v1, v2, or both (library).

On v1 every controller may be a hierarchy of its own, mounted anywhere; on v2 there is one. A
container is the same path in all of them, so everything here goes over a list of directories.

Moving a process takes one lock for the whole machine, and taking that lock waits for an RCU grace
period: 5 to 15 ms on the first of the writes, 0.02 ms on each of the rest, in whatever order. There
are two ways around it: on v2, to be born in the cgroup (`Cgroup.open_dir`); and elsewhere, `warm`.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from oci.linux import Resources
from shim.linux.cgroups import limits, trees
from shim.linux.cgroups.files import read, write
from shim.linux.cgroups.trees import Hierarchy, own_directory

_RETRY_S: Final = 0.002
_FREEZE_RETRY_S: Final = 0.0005
_ROUNDS: Final = 10


def warm() -> None:
    """Begin the wait for a process about to be moved: `attach` takes 0.3 ms for the next 20 ms.

    Blocks for that wait (5 to 15 ms, or 0.1 ms if somebody waited a moment ago), so it is for a
    process that has nothing else to do, 5 ms or more ahead. It moves itself to where it is; where
    there is only v2, it does nothing.
    """
    for hierarchy in trees.hierarchies():
        if not hierarchy.is_v2:
            with suppress(OSError):
                write(f"{own_directory(hierarchy, trees.own())}/cgroup.procs", "0")
            return


class Cgroup:
    """A path in all hierarchies; whether it exists is up to the kernel."""

    def __init__(self, directories: Iterable[tuple[Hierarchy, str]]) -> None:
        self._directories = tuple(directories)
        self._v2 = next((path for tree, path in self._directories if tree.is_v2), None)
        self.unified = len(self._directories) == 1 and self._v2 is not None
        """There is only v2: `clone(cgroup=open_dir())` does what `attach` does."""

    def __repr__(self) -> str:
        return f"Cgroup({[path for _, path in self._directories]})"

    @classmethod
    def for_path(cls, cgroups_path: str, among: Iterable[Hierarchy] | None = None) -> Cgroup:
        """The cgroup an OCI `linux.cgroupsPath` names, in these or else all hierarchies.

        An absolute path starts at the hierarchies' roots, a relative one at the cgroups of this
        process; on v2 alone, as in runc, at the parent of that, because a v2 cgroup that has
        processes can give its children no controllers. Raises OSError: EINVAL for a path that is
        empty, the root, or has a `..`; ENOENT on a machine without cgroups.
        """
        parts = [part for part in cgroups_path.split("/") if part not in ("", ".")]
        if not parts or ".." in parts or "\0" in cgroups_path:
            raise OSError(errno.EINVAL, "not the path of a container's cgroup", cgroups_path)
        chosen = tuple(trees.hierarchies() if among is None else among)
        if not chosen:
            raise OSError(errno.ENOENT, "no cgroup filesystem is mounted", cgroups_path)
        inner = "/".join(parts)
        if cgroups_path.startswith("/"):
            return cls((tree, f"{tree.mount}/{inner}") for tree in chosen)
        own = trees.own()
        if all(tree.is_v2 for tree in chosen):
            own = {controllers: os.path.dirname(path) for controllers, path in own.items()}
        return cls((tree, f"{own_directory(tree, own)}/{inner}") for tree in chosen)

    @classmethod
    def of_process(cls, pid: int) -> Cgroup:
        """The cgroup that another process is in, where that is neither the root nor this process's.

        Raises OSError: ENOENT if it is in no such cgroup, or has ended and been waited for.
        """
        own, its = trees.own(), trees.own(pid)
        found = [
            (tree, own_directory(tree, its))
            for tree in trees.hierarchies()
            if its.get(tree.controllers, "/") not in ("/", own.get(tree.controllers))
        ]
        if not found:
            raise OSError(errno.ENOENT, "the process is in no cgroup of its own", str(pid))
        return cls(found)

    def exists(self) -> bool:
        """Whether there is anything of it, in any hierarchy."""
        return any(os.path.isdir(path) for _, path in self._directories)

    def create(self) -> None:
        """Make it, and its parents, ready to `attach` to; what exists is used as it is.

        Raises OSError, and then removes what it has made.
        """
        made: list[str] = []
        try:
            for tree, path in self._directories:
                _make(tree, path, made, delegate=self.unified)
        except OSError:
            for path in reversed(made):
                with suppress(OSError):
                    os.rmdir(path)
            raise

    def attach(self, pid: int = 0) -> None:
        """Move a process (0: this one) here, with all its threads. Blocks; see the module."""
        for _, path in self._directories:
            write(path + "/cgroup.procs", str(pid))

    def open_dir(self) -> int:
        """Open the v2 directory, for `clone`. Raises OSError: ENOENT if there is no v2."""
        if self._v2 is None:
            raise OSError(errno.ENOENT, "no cgroup v2 hierarchy is mounted", repr(self))
        return os.open(self._v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def pids(self) -> list[int]:
        """The processes in it and in its children, as this PID namespace numbers them."""
        found: set[int] = set()
        for directory in _tree(self._main()):
            # It may be gone by now; and a threaded v2 child lists its processes in its parent.
            with suppress(OSError):
                found.update(map(int, read(directory + "/cgroup.procs").split()))
        return sorted(found - {0})  # 0 is one that this namespace cannot see

    def limit(self, resources: Resources, *, update: bool = False) -> None:
        """Bring `linux.resources` into force, for the processes that are there or to come.

        What is not given stays as it is; but unless this is an update, devices that are not given
        are forbidden. Raises OSError, with the field and the file: EINVAL, ERANGE, EBUSY and others
        of the kernel for a value that it does not take, ENOENT for a controller or file that this
        machine has not, EOPNOTSUPP for a field that its version of cgroups has not.
        """
        limits.apply(self._directories, resources, update=update)

    def directory(self, controller: str) -> str | None:
        """The path of its directory in the v1 hierarchy of a controller, or "" for v2."""
        for tree, path in self._directories:
            if controller in tree.controllers or (not controller and tree.is_v2):
                return path
        return None

    def kill(self) -> None:
        """Send SIGKILL to every process in it and in its children; does not wait for their end."""
        if self._v2 is not None:
            with suppress(FileNotFoundError):
                write(self._v2 + "/cgroup.kill", "1")
                # What v1 has frozen does not die.
                freezer = self.directory("freezer")
                if freezer is not None:
                    write(freezer + "/freezer.state", "THAWED")
                return
        seen: set[int] = set()
        for _ in range(_ROUNDS):  # before Linux 5.14: hunt, in a crowd that holds still if it can
            with suppress(OSError):
                self._ask_frozen(True)
            pids = set(self.pids())
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(OSError):
                self.thaw()
            if pids <= seen:
                return
            seen |= pids

    def freeze(self, patience: float = 1.0) -> None:
        """Stop every process in it and in its children, where it stands.

        Waits until the last one has stopped, which takes less than a millisecond, or as long as one
        cannot be interrupted. Raises TimeoutError after `patience` seconds; then all go on.
        """
        deadline = time.monotonic() + patience
        self._ask_frozen(True)
        try:
            while not self.frozen:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise OSError(errno.ETIMEDOUT, "not all processes can be frozen", repr(self))
                self._wait_frozen(left)
        except OSError:
            with suppress(OSError):
                self.thaw()
            raise

    def thaw(self) -> None:
        """Let them go on."""
        self._ask_frozen(False)

    @property
    def frozen(self) -> bool:
        """Whether all processes in it have stopped, by `freeze` of it or of one above it."""
        freezer = self.directory("freezer")
        if freezer is not None:
            return read(freezer + "/freezer.state") == "FROZEN"
        return "frozen 1" in read(self._freezable() + "/cgroup.events")

    def _ask_frozen(self, frozen: bool) -> None:
        freezer = self.directory("freezer")
        if freezer is not None:
            write(freezer + "/freezer.state", "FROZEN" if frozen else "THAWED")
        else:
            write(self._freezable() + "/cgroup.freeze", "1" if frozen else "0")

    def _wait_frozen(self, timeout: float) -> None:
        if self.directory("freezer") is not None:
            # v1 does not tell. To ask anew catches processes that were forked in the meantime.
            time.sleep(min(timeout, _FREEZE_RETRY_S))
            self._ask_frozen(True)
            return
        fd = os.open(self._freezable() + "/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            if b"frozen 0" in os.read(fd, 4096):  # which arms it
                poll.poll(timeout * 1000)
        finally:
            os.close(fd)

    def _freezable(self) -> str:
        if self._v2 is None:
            raise OSError(errno.ENOENT, "no freezer cgroup hierarchy is mounted", repr(self))
        return self._v2

    def delete(self, patience: float = 0.2) -> None:
        """Remove it and its children. It may be gone already.

        A process that has ended holds its cgroup a little longer: tries again for `patience`
        seconds (0: not at all). Raises OSError: EBUSY if a process is still there.
        """
        deadline = time.monotonic() + patience
        for _, path in self._directories:
            while True:
                try:
                    _remove(path)
                    break
                except OSError as e:
                    if e.errno != errno.EBUSY or time.monotonic() >= deadline:
                        raise
                time.sleep(_RETRY_S)

    def _main(self) -> str:
        return self._v2 or self._directories[0][1]


def _remove(path: str) -> None:
    try:
        os.rmdir(path)  # which is all there is to do, unless it has children
    except FileNotFoundError:
        return
    except OSError:
        for directory in reversed(list(_tree(path))):
            with suppress(FileNotFoundError):
                os.rmdir(directory)


def _tree(directory: str) -> Iterator[str]:
    """The cgroup and all below it, parents first; nothing if there is none."""
    for path, _, _ in os.walk(directory):
        yield path


def _make(tree: Hierarchy, path: str, made: list[str], *, delegate: bool) -> None:
    """Make one directory with its parents, and add those that were missing to `made`."""
    parent = tree.mount
    for name in path[len(tree.mount) + 1 :].split("/"):
        # Beside v1 nothing is controlled by v2. To switch controllers on there would only forbid
        # processes in every cgroup that has children.
        if delegate:
            _delegate(parent)
        directory = f"{parent}/{name}"
        try:
            os.mkdir(directory, 0o755)
            made.append(directory)
        except FileExistsError:
            pass
        if "cpuset" in tree.controllers:
            _fill_cpuset(parent, directory)
        parent = directory


def _delegate(parent: str) -> None:
    """Switch on, for the children, all controllers that `parent` has (cgroups(7), v2)."""
    available = set(read(parent + "/cgroup.controllers").split())
    for controller in available - set(read(parent + "/cgroup.subtree_control").split()):
        # One that cannot be had (realtime processes, threaded cgroups) is missed when it is used.
        with suppress(OSError):
            write(parent + "/cgroup.subtree_control", "+" + controller)


def _fill_cpuset(parent: str, directory: str) -> None:
    """Give a v1 cpuset what its parent has: it starts empty, and takes no process like that."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not read(f"{directory}/{name}"):
            write(f"{directory}/{name}", read(f"{parent}/{name}"))
