"""The cgroup hierarchies of this machine, and where in them this process is (library)."""

from __future__ import annotations

import functools
from typing import NamedTuple

from shim.linux.files import read_small
from shim.linux.procfs import unescaped


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
                controllers = frozenset(options.split(",")) & frozenset().union(*own())
            # The first one is the system's; later ones show the same tree somewhere else.
            hierarchy = Hierarchy(unescaped(mount), unescaped(root), controllers)
            found.setdefault(controllers, hierarchy)
    return tuple(found.values())


@functools.cache
def v2_controllers(mount: str) -> frozenset[str]:
    """What can be controlled in the v2 hierarchy at `mount`: what no v1 hierarchy has taken."""
    return frozenset(read_small(f"{mount}/cgroup.controllers").decode().split())


def own(pid: int | str = "self") -> dict[frozenset[str], str]:
    """Controllers, and the cgroup of this or another process in their hierarchy (cgroups(7))."""
    found = {}
    with open(f"/proc/{pid}/cgroup") as cgroup:
        for line in cgroup:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            found[frozenset(filter(None, controllers.split(",")))] = path
    return found


def own_directory(hierarchy: Hierarchy, own: dict[frozenset[str], str]) -> str:
    """Where the cgroup of this process, of those that `own` returns, is in the filesystem."""
    path = own.get(hierarchy.controllers, "/")
    # Inside a container, unless it has a cgroup namespace, both paths are the machine's.
    if hierarchy.root != "/" and (path + "/").startswith(hierarchy.root + "/"):
        path = path.removeprefix(hierarchy.root)
    return (hierarchy.mount + "/" + path.strip("/")).rstrip("/")
