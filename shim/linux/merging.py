"""Equal pages of many processes, made one by the kernel: KSM (library; runs in the shim)."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from shim.linux.libc import LIBC, fail

_MADV_MERGEABLE: Final = getattr(mmap, "MADV_MERGEABLE", 12)

_madvise = LIBC.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def allow() -> None:
    """Let the kernel merge the memory that this process and its forks have now (madvise(2)).

    That is the interpreter's, with all that forks put there, a guest's arguments and environment
    among it. A module's linear memory comes later and is not: whether a page was merged shows in
    the time that writing to it takes, and a page of that could hold a guess at what another has.
    Raises OSError (EINVAL: the kernel has no KSM).
    """
    with open("/proc/self/maps") as file:
        maps = file.read().splitlines()
    for line in maps:
        span, permissions, _offset, _device, _inode, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and not name:
            start, end = (int(address, 16) for address in span.split("-"))
            if _madvise(start, end - start, _MADV_MERGEABLE) < 0:
                fail("madvise", "MADV_MERGEABLE")
