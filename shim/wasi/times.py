"""Setting a file's times through a descriptor, a symlink's own included (library)."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from shim.linux.files import AT_EMPTY_PATH
from shim.wasi import errno
from shim.wasi.errno import Refused

# fstflags
_ATIM: Final = 1
_ATIM_NOW: Final = 2
_MTIM: Final = 4
_MTIM_NOW: Final = 8

_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2

_TIMES: Final = struct.Struct("=4q")  # two struct timespec: seconds, nanoseconds
_U64: Final = 0xFFFFFFFFFFFFFFFF

_utimensat = ctypes.CDLL(None, use_errno=True).utimensat
_utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)


def _timespec(time: int, given: int, now: int) -> tuple[int, int]:
    if given and now:
        raise Refused(errno.INVAL)
    if now:
        return 0, _UTIME_NOW
    if given:
        return divmod(time & _U64, 1_000_000_000)
    return 0, _UTIME_OMIT


def set_times(fd: int, atim: int, mtim: int, flags: int) -> None:
    """Set the times that `flags` name, in nanoseconds, of what `fd` (O_PATH will do) refers to.

    Raises EINVAL for contradicting flags. Linux takes an empty path here since 5.8; `os.utime`
    offers only `/proc/self/fd`, which a guest's namespace does not have.
    """
    if flags & ~(_ATIM | _ATIM_NOW | _MTIM | _MTIM_NOW):
        raise Refused(errno.INVAL)
    access = _timespec(atim, flags & _ATIM, flags & _ATIM_NOW)
    modification = _timespec(mtim, flags & _MTIM, flags & _MTIM_NOW)
    if _utimensat(fd, b"", _TIMES.pack(*access, *modification), AT_EMPTY_PATH) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
