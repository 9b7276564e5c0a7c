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

from shim.linux import clone
from shim.linux.files import AT_EMPTY_PATH
from shim.linux.libc import NUMBERS, fail, system_call

_AT_FDCWD: Final = -100
_OPEN_TREE_CLONE: Final = 1
_AT_RECURSIVE: Final = 0x8000
_MS_PRIVATE: Final = 1 << 18
_READ_ONLY: Final = struct.pack("=4Q", 1, 0, 0, 0)  # struct mount_attr: attr_set MOUNT_ATTR_RDONLY
_ALL_READ_ONLY: Final = struct.pack("=4Q", 1, 0, _MS_PRIVATE, 0)
_HOME: Final = (101, 102, 103)
"""Descriptors of the mount namespace, root and working directory to return to."""
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
    """Execute this interpreter anew, where every file is as it is, and nobody's to change.

    It is out of a read-only mount of its own then, and what it loads up to `return_home` is of
    mounts that are: what it forks has all that in reach, by /proc/self/exe and, with
    CAP_CHECKPOINT_RESTORE, /proc/self/map_files. Does not return, unless the kernel has no such
    mounts, or it has been done.
    """
    if _is_away():
        return
    fd = open_readonly("/proc/self/exe", os.O_RDONLY)
    if os.fstatvfs(fd).f_flag & os.ST_RDONLY and _leave():
        os.execve(fd, sys.orig_argv, os.environb)
    os.close(fd)


def return_home() -> None:
    """Be where `execute_again` was called: its mounts, root and working directory."""
    if _is_away():
        mounts, root, here = _HOME
        clone.setns(mounts, clone.CLONE_NEWNS)
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(here)
        for fd in _HOME:
            os.close(fd)


def _is_away() -> bool:
    try:
        kept = os.readlink(f"/proc/self/fd/{_HOME[0]}")
    except FileNotFoundError:
        return False
    return kept.startswith("mnt:") and bool(os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY)


def _leave() -> bool:
    """Enter mounts of this process's own, all read-only, with `_HOME` open; False if it may not."""
    for path, target in zip(("/proc/self/ns/mnt", "/", "."), _HOME, strict=True):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(fd, target)
        os.close(fd)
    try:
        clone.unshare(clone.CLONE_NEWNS)
    except PermissionError:
        return False
    number, size = NUMBERS["mount_setattr"], len(_ALL_READ_ONLY)
    if _mount_setattr(number, _AT_FDCWD, b"/", _AT_RECURSIVE, _ALL_READ_ONLY, size) < 0:
        fail("mount_setattr", "/")
    return True
