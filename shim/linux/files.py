"""Opening files under the kernel's rules instead of ours, and descriptors in bulk (library).

`openat2(2)` resolves a path inside a directory: no string handling of ours decides what `..`, an
absolute path or a hostile symlink means.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from shim.linux.libc import NUMBERS, fail, system_call

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
RESOLVE_CACHED: Final = 0x20

AT_EMPTY_PATH: Final = 0x1000
AT_EACCESS: Final = 0x200
AT_SYMLINK_NOFOLLOW: Final = 0x100

MAX_FD: Final = 0xFFFFFFFF

_OPEN_HOW: Final = struct.Struct("=3Q")  # struct open_how: flags, mode, resolve
_HOW_SIZE: Final = _OPEN_HOW.size
_how = lru_cache(64)(_OPEN_HOW.pack)  # a process uses few: this is the hottest of WASI's calls
_SYS_OPENAT2: Final = NUMBERS["openat2"]
_RACED: Final = RESOLVE_BENEATH | RESOLVE_IN_ROOT
_RACES: Final = 32

_openat2 = system_call(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
_close_range = system_call(ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)
_faccessat2 = system_call(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)


def openat2(dirfd: int, path: bytes | str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` relative to `dirfd`, close-on-exec, resolved as RESOLVE_* say (openat2(2)).

    `mode` must be 0 without O_CREAT or O_TMPFILE. Raises OSError: EXDEV for a path that would leave
    with RESOLVE_BENEATH, ELOOP for a symlink that may not be followed, ENOSYS before Linux 5.6.
    """
    name = path if isinstance(path, bytes) else os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    how = _how(flags | os.O_CLOEXEC, mode, resolve)
    fd: int = _openat2(_SYS_OPENAT2, dirfd, name, how, _HOW_SIZE)
    if fd >= 0:
        return fd
    for _ in range(_RACES):
        error = ctypes.get_errno()
        # Somebody renamed a directory while the kernel followed a `..` through it: ask again.
        if error != errno.EINTR and not (error == errno.EAGAIN and resolve & _RACED):
            break
        fd = _openat2(_SYS_OPENAT2, dirfd, name, how, _HOW_SIZE)
        if fd >= 0:
            return fd
    fail("openat2", name, error)


def close_range(first: int, last: int = MAX_FD) -> None:
    """Close every descriptor from `first` to `last` inclusive, open or not (close_range(2))."""
    if _close_range(NUMBERS["close_range"], first, last, 0) == 0:
        return
    if ctypes.get_errno() != errno.ENOSYS:
        fail("close_range", f"{first}-{last}")
    for name in os.listdir("/proc/self/fd"):  # before Linux 5.9
        if first <= int(name) <= last:
            try:
                os.close(int(name))
            except OSError:
                pass  # the listing's own


def keep_only(fds: Iterable[int]) -> None:
    """Close every descriptor above 2 that is not one of `fds`."""
    first = 3
    for fd in sorted(set(fds)):
        if fd > first:
            close_range(first, fd - 1)
        first = max(first, fd + 1)
    close_range(first)


def is_locked(fd: int) -> bool:
    """Whether another one has the file locked for itself (flock(2)). Raises OSError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def read_small(path: str) -> bytes:
    """Return the content of a file of the kernel's, as cheaply as `write_small`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while chunk := os.read(fd, 1 << 16):
            data += chunk
        return data
    finally:
        os.close(fd)


def write_small(path: str, data: bytes) -> None:
    """Create or replace a file, never through a symlink. Raises OSError.

    Without Python's buffers and codecs, which a forked process has to copy before it can use them.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def faccessat2(dirfd: int, path: bytes | str, mode: int, flags: int = 0) -> None:
    """Raise OSError unless `path` may be accessed as `mode` says (faccessat2(2)).

    Unlike `os.access` this reports why, and with AT_EMPTY_PATH it works on an O_PATH descriptor.
    """
    name = os.fsencode(path)
    if _faccessat2(NUMBERS["faccessat2"], dirfd, name, mode, flags) < 0:
        fail("faccessat2", name)
