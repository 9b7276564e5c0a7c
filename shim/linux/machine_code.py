"""A function that is brought along as machine code (library)."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping

from shim.linux.libc import memory_map, memory_protect


def place(code: Mapping[str, bytes], what: str) -> int:
    """Put this machine's code in a page that is first writable, then executable, never both.

    Returns the page's address. Raises OSError (EACCES where memory may not become executable).
    """
    here = code[os.uname().machine]
    writable = mmap.PROT_READ | mmap.PROT_WRITE
    page = memory_map(mmap.PAGESIZE, writable)
    ctypes.memmove(page, here, len(here))
    # On aarch64 the kernel makes the instruction cache coherent when a page becomes executable.
    memory_protect(page, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, what)
    return page
