"""Notice that a writer has closed a file: `inotify(7)` (library)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Final

from shim.linux.libc import LIBC, fail

_IN_CLOSE_WRITE: Final = 0x8
_IN_CLOEXEC: Final = os.O_CLOEXEC
_IN_NONBLOCK: Final = os.O_NONBLOCK
_EVENT: Final = struct.Struct("iIII")  # wd, mask, cookie, len; then len bytes of a name
_SIZE: Final = 4096

_inotify_init1 = LIBC.inotify_init1
_inotify_init1.argtypes = (ctypes.c_int,)
_inotify_add_watch = LIBC.inotify_add_watch
_inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_inotify_rm_watch = LIBC.inotify_rm_watch
_inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)


class Inotify:
    """Watches any number of files. One for a process: to close it takes the kernel some 10 ms."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._fd = int(_inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK))
        if self._fd < 0:
            fail("inotify_init1", "inotify")

    def fileno(self) -> int:
        """What is readable when there is something for `closed`."""
        return self._fd

    def add(self, path: str) -> int:
        """Watch a file; returns its number, the same for the same file. Raises OSError."""
        number = _inotify_add_watch(self._fd, os.fsencode(path), _IN_CLOSE_WRITE)
        if number < 0:
            fail("inotify_add_watch", path)
        return int(number)

    def remove(self, number: int) -> None:
        """Watch a file no longer. One that was deleted is not watched any more as it is."""
        _inotify_rm_watch(self._fd, number)

    def closed(self) -> Iterator[int]:
        """Yield the number of each file that a writer has closed. Never blocks."""
        while True:
            try:
                data = os.read(self._fd, _SIZE)
            except BlockingIOError:
                return
            while data:
                number, mask, _, length = _EVENT.unpack_from(data)
                data = data[_EVENT.size + length :]
                if mask & _IN_CLOSE_WRITE:
                    yield number

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
