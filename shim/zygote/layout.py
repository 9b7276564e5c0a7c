"""Where the zygote's memory lies, so that forks copy less of it, and cost less. Runs in: zygote.

A fork makes an entry for each page that is there, its end takes it away, and each knows how often
the page is used: with 33 MB, that was most of what the kernel does for a process. In a huge page,
many are counted at once. So small objects are put together, and then into huge pages.

What a fork makes goes into the gaps between what is there, and each gap is a page to copy. So the
gaps are filled: what is new is then together, on pages of its own.
"""

from __future__ import annotations

import ctypes
import operator
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Final

from shim.linux import mappings
from shim.linux.libc import LIBC, memory_advise

RESERVED: Final = 16 << 20
"""Bytes of small objects, about what the imports make."""

_ARENA: Final = 1 << 18  # what the allocator takes at once, at least (Objects/obmalloc.c)
_LARGE: Final = range(1 << 16, 16, -16)  # bytes; larger ones are mappings of their own
_HUGE_PAGE: Final = 2 << 20
_MADV_COLLAPSE: Final = 25

_object_malloc = ctypes.pythonapi.PyObject_Malloc
_object_malloc.argtypes = (ctypes.c_size_t,)
_object_malloc.restype = ctypes.c_void_p
_malloc = LIBC.malloc
_malloc.argtypes = (ctypes.c_size_t,)
_malloc.restype = ctypes.c_void_p
_free = LIBC.free
_free.argtypes = (ctypes.c_void_p,)
_sbrk = LIBC.sbrk
_sbrk.argtypes = (ctypes.c_ssize_t,)
_sbrk.restype = ctypes.c_void_p

_kept: list[bytes] = []


class _Mallinfo2(ctypes.Structure):
    """mallinfo(3): ten sizes, of which the last is that of what was never in use."""

    _fields_ = [("sizes", ctypes.c_size_t * 10)]


def reserve() -> None:
    """Take the memory for small objects in one piece. To be called before there are many."""
    size = 448  # of a block for the following
    blocks = [bytes(400) for _ in range(RESERVED // size)]
    _kept.extend(blocks[:: _ARENA // size // 2])  # what has an object in it is not given back


def close_gaps() -> None:
    """Fill the gaps that objects have left, for good."""
    for size, number in _small_gaps():
        for _ in range(number):
            _object_malloc(size)
    _close_large_gaps()


def _small_gaps() -> list[tuple[int, int]]:
    """Sizes of small objects, and how many more of each the memory in use would hold.

    The interpreter tells it to people only, on standard error.
    """
    told, error = os.memfd_create("told", os.MFD_CLOEXEC), os.dup(2)
    try:
        os.dup2(told, 2)
        sys._debugmallocstats()
        rows = os.pread(told, 1 << 16, 0).splitlines()
    finally:
        os.dup2(error, 2)
        os.close(error)
        os.close(told)
    # Class, size, pools, blocks in use, blocks available.
    table = [row.split() for row in rows]
    return [(int(row[1]), int(row[4])) for row in table if len(row) == 5 and row[0].isdigit()]


def _close_large_gaps() -> None:
    """Do it for libc's, of which those behind all that was ever in use are none."""
    if not hasattr(LIBC, "mallinfo2"):  # before glibc 2.33, and in others
        return
    information = LIBC.mallinfo2
    information.restype = _Mallinfo2
    end = _sbrk(0) - information().sizes[-1]
    for size in _LARGE:
        while 0 < (taken := _malloc(size) or 0) < end:
            pass
        _free(taken)


def use_huge_pages() -> None:
    """Move what lies together into huge pages, where the kernel does that (Linux 6.1)."""
    for begin, end in mappings.private(b"", mappings.HEAP):
        first, last = -(-begin // _HUGE_PAGE), end // _HUGE_PAGE
        if first < last:
            with suppress(OSError):  # it stays as it is
                memory_advise(first * _HUGE_PAGE, (last - first) * _HUGE_PAGE, _MADV_COLLAPSE)


def pack(functions: Sequence[FunctionType]) -> None:
    """Copy the code of `functions` to where it is together."""
    originals = [code for function in functions for code in codes(function.__code__)]
    for code in originals:
        for part in _MADE_TO_COPY:
            getattr(code, part)
    close_gaps()
    copies: dict[int, CodeType] = {}
    for code in reversed(originals):  # what is inside of another comes behind it
        constants = tuple(copies.get(id(each), each) for each in code.co_consts)
        same = all(map(operator.is_, constants, code.co_consts))
        copies[id(code)] = code.replace() if same else code.replace(co_consts=constants)
    for function in functions:
        function.__code__ = copies[id(function.__code__)]


_MADE_TO_COPY = ("co_code", "co_varnames", "co_cellvars", "co_freevars")
"""Parts of code that are made, and kept, when one asks for them, as who copies it does."""


def codes(code: CodeType) -> Iterator[CodeType]:
    """Return a code, and all that it makes functions of."""
    yield code
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from codes(constant)
