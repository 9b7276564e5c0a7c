"""The cgroup of a container, through the cgroup filesystem: v1, v2, or both (library).

On v1 every controller may be a hierarchy of its own, mounted anywhere; on v2 there is one. A
container is the same path in all of them, so everything here goes over a list of directories.

Moving a process takes one lock for the whole machine, and taking that lock waits for an RCU grace
period: 5 to 15 ms on the first of the writes, 0.02 ms on each of the rest, in whatever order. There
are two ways around it: on v2, to be born in the cgroup (`Cgroup.open_dir`); and elsewhere, `warm`.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from shim.linux.files import read_small

_RETRY_S: Final = 0.002
_ROUNDS: Final = 10
_ESCAPES: Final = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


class Hierarchy(NamedTuple):
    """A mounted tree of cgroups."""

    mount: str
    """Where it is mounted."""
    root: str
    """The cgroup that is there, "/" unless we are in a container ourselves."""
    controllers: frozenset[str]
    """What it controls, such as "cpu" or "name=systemd"; empty for v2, which decides by cgroup."""

    @property
    def is_v2(self) -> bool:
        """Whether this is the v2 hierarchy, of which there is one at most."""
        return not self.controllers


@functools.cache
def hierarchies() -> tuple[Hierarchy, ...]:
    """The hierarchies of this machine, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    found: dict[frozenset[str], Hierarchy] = {}
    with open("/proc/self/mountinfo") as mountinfo:
        for line in mountinfo:
            fields, _, filesystem = line.rstrip("\n").partition(" - ")
            fstype, _, options = filesystem.split(" ", 2)
            if fstype not in ("cgroup", "cgroup2"):
                continue
            _, _, _, root, mount, *_ = fields.split(" ")
            controllers: frozenset[str] = frozenset()
            if fstype == "cgroup":
                controllers = frozenset(options.split(",")) & _known_v1()
            for escape, character in _ESCAPES.items():
                root, mount = root.replace(escape, character), mount.replace(escape, character)
            # The first one is the system's; later ones show the same tree somewhere else.
            found.setdefault(controllers, Hierarchy(mount, root, controllers))
    return tuple(found.values())


def _own() -> dict[frozenset[str], str]:
    """Controllers, and the cgroup of this process in their hierarchy (cgroups(7))."""
    own = {}
    with open("/proc/self/cgroup") as cgroup:
        for line in cgroup:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            own[frozenset(filter(None, controllers.split(",")))] = path
    return own


def _known_v1() -> frozenset[str]:
    return frozenset().union(*_own())


def _write(path: str, value: str) -> None:
    # Not `open`: the kernel wants the value in one write, and its error belongs to the path.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as e:
        raise OSError(e.errno, f"write {value!r}: {e.strerror}", path) from None
    finally:
        os.close(fd)


def _read(path: str) -> str:
    return read_small(path).decode().strip()


def warm() -> None:
    """Begin the wait for a process about to be moved: `attach` takes 0.3 ms for the next 20 ms.

    Blocks for that wait (5 to 15 ms, or 0.1 ms if somebody waited a moment ago), so it is for a
    process that has nothing else to do, 5 ms or more ahead. It moves itself to where it is; where
    there is only v2, it does nothing.
    """
    for hierarchy in hierarchies():
        if not hierarchy.is_v2:
            with suppress(OSError):
                _write(f"{_own_directory(hierarchy, _own())}/cgroup.procs", "0")
            return


def _own_directory(hierarchy: Hierarchy, own: dict[frozenset[str], str]) -> str:
    path = own.get(hierarchy.controllers, "/")
    # Inside a container, unless it has a cgroup namespace, both paths are the machine's.
    if hierarchy.root != "/" and (path + "/").startswith(hierarchy.root + "/"):
        path = path.removeprefix(hierarchy.root)
    return (hierarchy.mount + "/" + path.strip("/")).rstrip("/")


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
    def for_path(cls, cgroups_path: str, trees: Iterable[Hierarchy] | None = None) -> Cgroup:
        """The cgroup an OCI `linux.cgroupsPath` names, in `trees` or else all hierarchies.

        An absolute path starts at the hierarchies' roots, a relative one at the cgroups of
        this process. Raises OSError: EINVAL for a path that is empty, the root, or has a `..`;
        EOPNOTSUPP for systemd's `slice:prefix:name`; ENOENT on a machine without cgroups.
        """
        parts = [part for part in cgroups_path.split("/") if part not in ("", ".")]
        if not parts or ".." in parts or "\0" in cgroups_path:
            raise OSError(errno.EINVAL, "not the path of a container's cgroup", cgroups_path)
        if "/" not in cgroups_path and cgroups_path.count(":") == 2:
            raise OSError(errno.EOPNOTSUPP, "systemd's cgroup driver", cgroups_path)
        chosen = tuple(hierarchies() if trees is None else trees)
        if not chosen:
            raise OSError(errno.ENOENT, "no cgroup filesystem is mounted", cgroups_path)
        inner = "/".join(parts)
        if cgroups_path.startswith("/"):
            return cls((tree, f"{tree.mount}/{inner}") for tree in chosen)
        own = _own()
        return cls((tree, f"{_own_directory(tree, own)}/{inner}") for tree in chosen)

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
            _write(path + "/cgroup.procs", str(pid))

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
                found.update(map(int, _read(directory + "/cgroup.procs").split()))
        return sorted(found - {0})  # 0 is one that this namespace cannot see

    def kill(self) -> None:
        """Send SIGKILL to every process in it and in its children; does not wait for their end."""
        with suppress(FileNotFoundError):
            if self._v2 is not None:
                _write(self._v2 + "/cgroup.kill", "1")
                return
        seen: set[int] = set()
        for _ in range(_ROUNDS):  # before Linux 5.14: hunt, in a crowd that holds still if it can
            with suppress(OSError):
                self.freeze()
            pids = set(self.pids())
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(OSError):
                self.thaw()
            if pids <= seen:
                return
            seen |= pids

    def freeze(self) -> None:
        """Stop every process in it, where it stands. Returns before the last one has stopped."""
        self._set_frozen(True)

    def thaw(self) -> None:
        """Let them go on."""
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        for tree, path in self._directories:
            if "freezer" in tree.controllers:
                _write(path + "/freezer.state", "FROZEN" if frozen else "THAWED")
                return
        if self._v2 is None:
            raise OSError(errno.ENOENT, "no freezer cgroup hierarchy is mounted", repr(self))
        _write(self._v2 + "/cgroup.freeze", "1" if frozen else "0")

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
    available = set(_read(parent + "/cgroup.controllers").split())
    for controller in available - set(_read(parent + "/cgroup.subtree_control").split()):
        # One that cannot be had (realtime processes, threaded cgroups) is missed when it is used.
        with suppress(OSError):
            _write(parent + "/cgroup.subtree_control", "+" + controller)


def _fill_cpuset(parent: str, directory: str) -> None:
    """Give a v1 cpuset what its parent has: it starts empty, and takes no process like that."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not _read(f"{directory}/{name}"):
            _write(f"{directory}/{name}", _read(f"{parent}/{name}"))
