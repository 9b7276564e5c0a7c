"""Notice what happens to a file: `inotify(7)` (library)."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from shim.linux.libc import LIBC, fail

_IN_MODIFY: Final = 0x2
_IN_CLOSE_WRITE: Final = 0x8
_IN_CLOEXEC: Final = os.O_CLOEXEC
_IN_NONBLOCK: Final = os.O_NONBLOCK

_inotify_init1 = LIBC.inotify_init1
_inotify_init1.argtypes = (ctypes.c_int,)
_inotify_add_watch = LIBC.inotify_add_watch
_inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


def watch_close_write(path: str) -> int:
    """Return a descriptor that becomes readable when a writer of `path` closes it."""
    return _watch(path, _IN_CLOSE_WRITE)


def watch_modify(path: str) -> int:
    """Return a descriptor that becomes readable when `path` changes.

    The kernel's own files change when the kernel says so, which is not always.
    """
    return _watch(path, _IN_MODIFY)


def _watch(path: str, events: int) -> int:
    fd = _inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
    if fd < 0:
        fail("inotify_init1", path)
    if _inotify_add_watch(fd, os.fsencode(path), events) < 0:
        errno = ctypes.get_errno()
        os.close(fd)
        fail("inotify_add_watch", path, errno)
    return int(fd)
