"""The code by which libraries call Python functions, out of everybody's reach (library).

libffi begins each callback of ctypes with a few bytes of code that it writes when the callback is
made, into pages that stay writable and executable. They are at one address in all forks of a
process: whoever can write anywhere in a guest's memory would have code of his own there. Where such
pages are not allowed it maps a file twice, writable and executable, and then a guest could write
into its shim's.

Some builds of libffi bring the code along in the library instead. Then there is nothing to do.
"""

from __future__ import annotations

import mmap
from typing import Final, NamedTuple

from shim.linux.libc import memory_protect

_READ: Final = mmap.PROT_READ


class _Mapping(NamedTuple):
    """A line of /proc/PID/maps (proc_pid_maps(5))."""

    start: int
    size: int
    flags: str
    file: tuple[str, str]
    """Device and inode."""

    @classmethod
    def parse(cls, line: str) -> _Mapping:
        span, flags, _offset, device, inode, *_ = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in span.split("-"))
        return cls(start, end - start, flags, (device, inode))


def seal() -> None:
    """Make the code of all callbacks read-only, in this process and its forks.

    From here on SIGSEGV ends a process that makes a callback, or drops one: so also the interpreter
    at its regular end. Raises OSError.
    """
    with open("/proc/self/maps") as file:
        mappings = list(map(_Mapping.parse, file.read().splitlines()))
    code = {mapping.file for mapping in mappings if mapping.flags[2:] == "xs"}
    for mapping in mappings:
        if "w" in mapping.flags and "x" in mapping.flags:
            memory_protect(mapping.start, mapping.size, _READ | mmap.PROT_EXEC)
        elif "w" in mapping.flags and mapping.file in code:
            memory_protect(mapping.start, mapping.size, _READ)
