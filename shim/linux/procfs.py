"""The host's /proc, opened before it is out of sight (library).

The root that a process is about to enter has no /proc, or has one that an image or a neighbour may
have put there. A descriptor of the host's goes on working, in whatever namespaces: `self` is the
process that looks, and `sys` shows the namespaces of that process.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from contextlib import suppress
from typing import Final

from shim.linux.files import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV, openat2
from shim.linux.libc import LIBC, fail

_MAGIC: Final = 0x9FA0
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_INSIDE: Final = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS

_fstatfs = LIBC.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)


def is_procfs(fd: int) -> bool:
    """Whether a descriptor is of something in a procfs. Raises OSError."""
    statfs = ctypes.create_string_buffer(256)
    if _fstatfs(fd, statfs) < 0:
        fail("fstatfs")
    (magic,) = struct.unpack_from("l", statfs)  # f_type
    return bool(magic == _MAGIC)


def open_proc() -> int:
    """Open /proc, O_PATH, for the functions that take a `proc`. Raises OSError.

    To be closed before the program runs: it leads to the files of the whole machine.
    """
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if not is_procfs(fd):
        os.close(fd)
        raise OSError(0, "not a procfs", "/proc")
    return fd


def unescaped(path: str) -> str:
    """Return a path as it is, of one from a table of mounts (proc_pid_mountinfo(5))."""
    return _ESCAPED.sub(lambda code: chr(int(code[1], 8)), path)


def read(proc: int, path: str) -> str:
    """Return the content of a file below `proc`, such as `self/status`. Raises OSError."""
    fd = openat2(proc, path, os.O_RDONLY, resolve=_INSIDE)
    try:
        return os.read(fd, 1 << 16).decode(errors="replace")
    finally:
        os.close(fd)


def write(proc: int, path: str, value: str) -> None:
    """Write a file below `proc`, in one call as the kernel wants it. Raises OSError with the path.

    Follows no link out of `proc`, nor onto what is mounted on a part of it.
    """
    fd = -1
    try:
        fd = openat2(proc, path, os.O_WRONLY, resolve=_INSIDE)
        os.write(fd, value.encode())
    except OSError as e:
        why = os.strerror(e.errno) if e.errno else e.strerror
        raise OSError(e.errno, f"write {value!r}: {why}", f"/proc/{path}") from None
    finally:
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)
