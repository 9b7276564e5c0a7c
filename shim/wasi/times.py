"""Setting a file's times through a descriptor, a symlink's own included (library)."""

from __future__ import annotations

import ctypes
import struct
from typing import Final, TypeAlias

from shim.linux.files import AT_EMPTY_PATH
from shim.wasi.errors import failure

Time: TypeAlias = "int | None"
"""Nanoseconds since 1970, or `NOW`, or None to leave it as it is."""
NOW: Final = -1

_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2

_TIMES: Final = struct.Struct("=4q")  # two struct timespec: seconds, nanoseconds

_utimensat = ctypes.CDLL(None, use_errno=True).utimensat
_utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)


def _timespec(time: Time) -> tuple[int, int]:
    if time is None:
        return 0, _UTIME_OMIT
    if time == NOW:
        return 0, _UTIME_NOW
    return divmod(time, 1_000_000_000)


def set_times(fd: int, access: Time, modification: Time) -> None:
    """Set the times of what `fd` (O_PATH will do) refers to.

    Linux takes an empty path here since 5.8; `os.utime` offers only `/proc/self/fd`, which a
    guest's namespace does not have.
    """
    times = _TIMES.pack(*_timespec(access), *_timespec(modification))
    if _utimensat(fd, b"", times, AT_EMPTY_PATH) < 0:
        raise failure(ctypes.get_errno())
