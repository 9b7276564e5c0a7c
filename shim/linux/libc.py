"""libc through ctypes: call numbers, and how errors become `OSError` (library).

Functions are looked up and typed when a module is imported: they are also called in processes that
were forked a moment ago, where every page that is touched for the first time is a page copied.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)

_X86_64 = {
    "statx": 332,
    "clone": 56,
    "pivot_root": 155,
    "capget": 125,
    "capset": 126,
    "set_mempolicy": 238,
    "keyctl": 250,
    "ioprio_set": 251,
    "sched_setattr": 314,
    "seccomp": 317,
}
_AARCH64 = {
    "statx": 291,
    "clone": 220,
    "pivot_root": 41,
    "capget": 90,
    "capset": 91,
    "set_mempolicy": 237,
    "keyctl": 219,
    "ioprio_set": 30,
    "sched_setattr": 274,
    "seccomp": 277,
}
# Calls added since Linux 5.1 have the same number everywhere.
_COMMON = {
    "open_tree": 428,
    "move_mount": 429,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "faccessat2": 439,
    "mount_setattr": 442,
}

_machine = os.uname().machine
if _machine not in ("x86_64", "aarch64"):
    raise ImportError(f"shim.linux knows no system call numbers for {_machine}")
NUMBERS = _COMMON | (_X86_64 if _machine == "x86_64" else _AARCH64)


def system_call(*argtypes: Any) -> Any:
    """`syscall(2)`, to be called with a number and arguments of these types, as a long."""
    function = LIBC["syscall"]  # unlike an attribute, each is an object with argtypes of its own
    function.argtypes = (ctypes.c_long, *argtypes)
    function.restype = ctypes.c_long
    return function


_mmap = LIBC.mmap
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_mmap.restype = ctypes.c_void_p
_MAP_FAILED = ctypes.c_void_p(-1).value
_mprotect = LIBC.mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_madvise = LIBC.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MREMAP = 0x1 | 0x2  # MREMAP_MAYMOVE | MREMAP_FIXED
_DONTUNMAP = 0x4  # of files since Linux 5.13
_mremap = LIBC.mremap
_mremap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_void_p,
)
_mremap.restype = ctypes.c_void_p


def memory_map(size: int, protection: int) -> int:
    """mmap(2) of private memory; returns its address. Raises OSError."""
    mapped = _mmap(None, size, protection, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if mapped is None or mapped == _MAP_FAILED:
        fail("mmap")
    return int(mapped)


def memory_protect(address: int, size: int, protection: int, what: str = "") -> None:
    """mprotect(2). Raises OSError, with `what` as its filename."""
    if _mprotect(address, size, protection) < 0:
        fail("mprotect", what)


def memory_advise(address: int, size: int, advice: int, what: str = "") -> None:
    """madvise(2). Raises OSError, with `what` as its filename."""
    if _madvise(address, size, advice) < 0:
        fail("madvise", what)


def memory_move(address: int, size: int, goal: int, *, keep: bool = False) -> None:
    """mremap(2), in the place of what is at `goal`. Raises OSError.

    With `keep` the mapping also stays where it was, as if nobody had written to it.
    """
    if _mremap(address, size, size, _MREMAP | (_DONTUNMAP if keep else 0), goal) != goal:
        fail("mremap")


def fail(call: str, culprit: str | bytes | None = None, errno: int | None = None) -> NoReturn:
    """Raise the `OSError` subclass for errno (default: that of the last libc call)."""
    number = ctypes.get_errno() if errno is None else errno
    if isinstance(culprit, bytes):
        culprit = os.fsdecode(culprit)
    raise OSError(number, f"{call}: {os.strerror(number)}", culprit)


def describe(fd: int) -> str:
    """What a descriptor is open on, for an error message."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"fd {fd}"
