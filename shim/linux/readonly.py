"""Files of the host as nobody can change them: through a mount that is read-only (library).

A guest that is root is the host's root, unless it has a user namespace. What it holds open it can
give another mode or owner, with nothing but a descriptor: `fchmod` of the host's /dev/null, say, or
`chmod` of /proc/self/exe. A mount of the file's own, which is nowhere in the tree, forbids that and
lets reading, executing, and writing to a device through.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import Final

from shim.linux.files import AT_EMPTY_PATH
from shim.linux.libc import NUMBERS, fail, system_call

_AT_FDCWD: Final = -100
_OPEN_TREE_CLONE: Final = 1
_READ_ONLY: Final = struct.pack("=4Q", 1, 0, 0, 0)  # struct mount_attr: attr_set MOUNT_ATTR_RDONLY
_UNKNOWN: Final = (errno.ENOSYS, errno.EPERM)  # before Linux 5.12; in a container without mounts

_open_tree = system_call(ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_mount_setattr = system_call(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_char_p, ctypes.c_size_t
)


def open_readonly(path: str, flags: int) -> int:
    """Open a file through a read-only mount of its own, close-on-exec; 0.1 ms.

    As it is, where the kernel has no such mounts. Raises OSError.
    """
    tree = _open_tree(
        NUMBERS["open_tree"], _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC
    )
    if tree < 0:
        if ctypes.get_errno() in _UNKNOWN:
            return os.open(path, flags | os.O_CLOEXEC)
        fail("open_tree", path)
    try:
        number, size = NUMBERS["mount_setattr"], len(_READ_ONLY)
        if _mount_setattr(number, tree, b"", AT_EMPTY_PATH, _READ_ONLY, size) < 0:
            if ctypes.get_errno() in _UNKNOWN:
                return os.open(path, flags | os.O_CLOEXEC)
            fail("mount_setattr", path)
        return os.open(f"/proc/self/fd/{tree}", flags | os.O_CLOEXEC)
    finally:
        os.close(tree)


def execute_again() -> None:
    """Execute this interpreter anew, out of a read-only mount of its file; does not return then.

    What it forks shares that as its /proc/self/exe. Does return where the kernel has no such
    mounts, and where it has been done.
    """
    if os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY:
        return
    fd = open_readonly("/proc/self/exe", os.O_RDONLY)
    if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        os.execve(fd, sys.orig_argv, os.environb)
    os.close(fd)
