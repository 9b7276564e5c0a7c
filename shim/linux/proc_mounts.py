"""Every procfs that a container can see is read-only (library).

Through `/proc/PID/mem` a process writes to any of its pages, also to those that are read-only: a
module that is root would replace its own native code, and have left its sandbox by two calls of
WASI. Nothing else in a procfs is for a module to write either. How it comes to be there does not
matter: a mount of its own, a bind of a part of the host's, or one below a bind of something else.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from shim.linux import mounts, procfs
from shim.linux.files import RESOLVE_NO_SYMLINKS
from shim.linux.inside import open_inside

_CHUNK: Final = 1 << 16


class _Mount(NamedTuple):
    """A line of mountinfo (proc_pid_mountinfo(5)); the path as the kernel escapes it."""

    id: bytes
    parent: bytes
    point: bytes
    fstype: bytes

    @classmethod
    def parse(cls, line: bytes) -> _Mount:
        before, _, after = line.partition(b" - ")
        id, parent, _, _, point, *_ = before.split(b" ")
        return cls(id, parent, point, after.split(b" ", 1)[0])


def seal(proc: int) -> None:
    """Make every procfs below this process's root read-only; `proc` is the host's, O_PATH.

    For a root that was entered a moment ago: leaves the working directory there. 20 us where there
    is no procfs. Raises OSError with the path.
    """
    table = _mountinfo(proc)
    if b" - proc " not in table:
        return
    found = {mount.id: mount for mount in map(_Mount.parse, table.splitlines())}
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # mount(2) takes a descriptor by a path in a /proc, and that here is not to be trusted.
    os.fchdir(proc)
    try:
        for mount in found.values():
            if mount.fstype == b"proc" and not _covered(mount, found):
                _seal(proc, root, mount)
    finally:
        os.chdir("/")
        os.close(root)


def _seal(proc: int, root: int, mount: _Mount) -> None:
    path = procfs.unescaped(os.fsdecode(mount.point))
    fd = open_inside(root, path.lstrip("/") or ".", resolve=RESOLVE_NO_SYMLINKS)
    try:
        info = procfs.read(proc, f"self/fdinfo/{fd}")
        if f"mnt_id:\t{os.fsdecode(mount.id)}\n" not in info:
            raise OSError(errno.EXDEV, "another mount is there: the path changed", path)
        flags = mounts.flags_of(fd) | mounts.MS_RDONLY
        mounts.mount(None, f"self/fd/{fd}", None, mounts.MS_REMOUNT | mounts.MS_BIND | flags)
    finally:
        os.close(fd)


def _covered(mount: _Mount, found: Mapping[bytes, _Mount]) -> bool:
    """Whether another mount is over this one, so that no path leads there.

    One that is over the way to it is no cover: who may rename in a volume could have moved it
    there, and move it away again. Raises OSError EBUSY then.
    """
    if any(other.parent == mount.id and other.point == mount.point for other in found.values()):
        return True
    chain = {mount.id}
    at = mount
    while (above := found.get(at.parent)) is not None and above.id not in chain:
        chain.add(above.id)
        at = above
    for other in found.values():
        over = (mount.point + b"/").startswith(other.point.rstrip(b"/") + b"/")
        if other.parent in chain and other.id not in chain and over:
            path = procfs.unescaped(os.fsdecode(mount.point))
            raise OSError(errno.EBUSY, "a procfs that another mount is in the way of", path)
    return False


def _mountinfo(proc: int) -> bytes:
    fd = os.open("self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        return b"".join(iter(lambda: os.read(fd, _CHUNK), b""))
    finally:
        os.close(fd)
