"""Memory that forks share, as much and for as long as they can (library).

Counting references writes to most of what a process reads, so it soon has copies of a thousand
pages of the zygote's. A third of them hold again, or still, what they held before: a count went up
and came back. The kernel does not notice, so we do. The zygote moves its small objects to a file in
memory (`keep`), of which it and its forks have private mappings. A fork that has come to rest
compares (`give_back`) and drops the copies that are equal to the file, which is what is then there.

Both must not be interrupted by the interpreter, which lives in that memory. So the step itself,
"make a system call for the pages that are equal", is machine code.

From CPython 3.12 on nothing of this is done: objects can be immortal (`shim.zygote.heap`).

Only pools of CPython's small object allocator take part (Objects/obmalloc.c, 16 KiB each since
3.10), and of those only such as were in use: their objects live as long as the zygote's modules, so
no fork ever unmaps one. Where the allocator is another one there are none, and all stays as it is.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from shim.linux import machine_code
from shim.linux.libc import LIBC, fail, memory_map

REST: Final = 1.0
"""Seconds of waiting after which a process is taken to rest, and gives back what it can."""

_POOL: Final = 16384
_HEADER: Final = struct.Struct("=I4x8x8x8x4xIII")  # used blocks, size class, next offset, its bound
_STEP: Final = 16  # between two size classes
_LARGEST: Final = 512
_BYTES: Final = bytes.__basicsize__  # of the empty object, with the byte that ends it

_PAGE: Final = 4096
_MAP_FIXED: Final = 0x10
_MADV_DONTNEED: Final = 4
_MADV_MERGEABLE: Final = 12
_MADV_POPULATE_READ: Final = 22  # since Linux 5.14; else pages are looked up when they are needed
_NAME: Final = "pywasm-pages"

_WORDS: Final = 7  # of the argument: entries, how many, a call's number, arguments 3 to 5, copy
_MMAP: Final = {"x86_64": 9, "aarch64": 222}
_MADVISE: Final = {"x86_64": 28, "aarch64": 233}

# void f(word *argument). Each entry has two words, the addresses of a page and of what it is
# compared with. For each run of equal pages it makes a call: the run's address and size, arguments
# 3 to 5, and where in the copy the run begins.
_CODE: Final = {
    "x86_64": bytes.fromhex(
        "f30f1efa 53 55 4154 4155 4156 4157"  # endbr64; these registers are the caller's
        "4889fb 488b2b 4c8b6308 4531ed"  # rbx = argument, rbp = entries, r12 = left, r13 = size = 0
        "4d85e4 745e 49ffcc"  # next: r12 == 0: to end; r12 -= 1
        "488b7d00 488b7508 4883c510"  # rdi, rsi = the two pages; rbp += 16
        "4b8d042e 4839f8 7405 e851000000"  # r14 + r13 != rdi, the run is over: call it
        "31c9"  # rcx = 0
        "f30f6f040f f30f6f0c0e 660f74c1 660fd7c0"  # again: compare 16 bytes
        "3dffff0000 751f 83c110 81f900100000 75dc"  # different: to other; rcx += 16; to again
        "4d85ed 7506 4989fe 4989f7"  # r13 == 0: r14, r15 = rdi, rsi, where the run begins
        "4981c500100000 eba4"  # r13 += 4096; to next
        "e812000000 eb9d"  # other: call it; to next
        "e80b000000 415f 415e 415d 415c 5d 5b c3"  # end: call it; return
        "4d85ed 7426 57 56"  # it: r13 == 0: return
        "488b4310 4c89f7 4c89ee 488b5318"  # rax = number, rdi, rsi, rdx,
        "4c8b5320 4c8b4328 4d89f9 4c2b4b30"  # r10, r8, r9 = r15 - copy
        "0f05 5e 5f 4531ed c3"  # syscall; r13 = 0
    ),
    "aarch64": bytes.fromhex(
        "5f2403d5 f1031eaa e90300aa"  # bti c; x17 = where to return to, x9 = argument
        "2a2d40a9 0c0080d2"  # x10 = entries, x11 = left, x12 = size = 0
        "2b0300b4 6b0500d1 4f41c1a8"  # next: x11 == 0: to end; x11 -= 1; x15, x16 = the two pages
        "a0010c8b 1f000feb 40000054 15000094"  # x13 + x12 != x15, the run is over: call it
        "000080d2"  # x0 = 0
        "e101008b 0202008b 231040a9 451840a9 7f0005eb 800046fa"  # again: compare 16 bytes
        "21010054 00400091 1f0440f1 e1feff54"  # different: to other; x0 += 16; to again
        "6c0000b5 ed030faa ee0310aa"  # x12 == 0: x13, x14 = x15, x16, where the run begins
        "8c054091 eaffff17"  # x12 += 4096; to next
        "04000094 e8ffff17"  # other: call it; to next
        "02000094 20025fd6"  # end: call it; return
        "2c0100b4"  # it: x12 == 0: return
        "280940f9 e0030daa e1030caa"  # x8 = number, x0, x1,
        "228d41a9 249542a9 c50105cb"  # x2, x3, x4, x5 = x14 - copy
        "010000d4 0c0080d2 c0035fd6"  # svc; x12 = 0
    ),
}

_madvise = LIBC.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_munmap = LIBC.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class _Pool(NamedTuple):
    address: int
    size: int
    """Of one of its blocks."""
    free: int
    """Blocks that are not used."""


class _Kept(NamedTuple):
    run: Callable[[int], None]
    """The machine code."""
    image: int
    """Address of the file in a mapping that is only read; its size in bytes."""
    size: int
    argument: array.array[int]
    """For it to make the file's pages those of this process again."""
    spans: list[tuple[int, int]]
    """Addresses and sizes of the mappings of the file that processes live in."""


_padding: Final[list[bytes]] = []
_kept: _Kept | None = None


def close_pools() -> None:
    """Fill the gaps between small objects, so that what forks make is together, in new pools.

    An object that goes into a gap makes a copy of a page that had been shared.
    """
    gaps = Counter[int]()
    for pool in _pools():
        gaps[pool.size] += pool.free
    for size, number in gaps.items():
        if size > _BYTES:
            _padding.extend(bytes(size - _BYTES) for _ in range(number))


def keep() -> int:
    """Move the pools of this process to a file that its forks' memory can go back to.

    Returns the number of bytes. Raises OSError.
    """
    global _kept
    pools = [pool.address for pool in _pools()] if mmap.PAGESIZE == _PAGE else []
    if not pools:
        return 0
    prototype = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
    run = prototype(machine_code.place(_CODE, _NAME))
    size = len(pools) * _POOL
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        _move(run, pools, fd, size)
        # No process that has it may change what the others have.
        fcntl.fcntl(
            fd,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )
        image = memory_map(0, size, mmap.PROT_READ, mmap.MAP_SHARED, fd)
    finally:
        os.close(fd)
    moved = list(_mappings(f"/memfd:{_NAME}"))
    entries = (
        (address, image + offset + address - start)
        for start, end, offset in moved
        for address in range(start, end, _PAGE)
    )
    argument = _argument(entries, _MADVISE[os.uname().machine], _MADV_DONTNEED, 0, 0, image)
    spans = [(start, end - start) for start, end, _ in moved]
    for span in spans:
        _madvise(*span, _MADV_POPULATE_READ)  # forks inherit that
    _kept = _Kept(run, image, size, argument, spans)
    return sum(length for _, length in spans)


def _argument(entries: Iterable[tuple[int, int]], *others: int) -> array.array[int]:
    """Return the argument of the machine code, with the entries behind it."""
    words = array.array("Q", [0, 0, *others])
    for entry in entries:
        words.extend(entry)
    words[0] = words.buffer_info()[0] + _WORDS * words.itemsize
    words[1] = (len(words) - _WORDS) // 2
    return words


def _pools() -> Iterator[_Pool]:
    """Find the allocator's pools that are in use, by their headers."""
    for start, end, _ in _mappings(""):
        for address in range(-(-start // _POOL) * _POOL, end - _POOL + 1, _POOL):
            header = ctypes.string_at(address, _HEADER.size)
            used, size_class, next_offset, bound = _HEADER.unpack(header)
            size = (size_class + 1) * _STEP
            if size <= _LARGEST and bound == _POOL - size and 0 < next_offset <= _POOL:
                free = (_POOL - _HEADER.size) // size - used
                if used and free >= 0:
                    yield _Pool(address, size, free)


def _mappings(name: str) -> Iterator[tuple[int, int, int]]:
    """Find the private writable mappings of this name: start, end, and offset in the file."""
    with open("/proc/self/maps") as file:
        maps = file.read().splitlines()
    for line in maps:
        span, permissions, offset, _device, _inode, *path = line.split(maxsplit=5)
        if permissions == "rw-p" and (path[0].split(" ")[0] if path else "") == name:
            start, end = (int(address, 16) for address in span.split("-"))
            yield start, end, int(offset, 16)


def _move(run: Callable[[int], None], pools: Sequence[int], fd: int, size: int) -> None:
    """Map the file in the place of each page that has not changed since it was copied to it.

    Those in which this very function works stay where they are.
    """
    copy = memory_map(0, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd)
    entries = (
        (pool + page, copy + number * _POOL + page)
        for number, pool in enumerate(pools)
        for page in range(0, _POOL, _PAGE)
    )
    call, writable = _MMAP[os.uname().machine], mmap.PROT_READ | mmap.PROT_WRITE
    argument = _argument(entries, call, writable, mmap.MAP_PRIVATE | _MAP_FIXED, fd, copy)
    for number, pool in enumerate(pools):
        ctypes.memmove(copy + number * _POOL, pool, _POOL)
    run(argument.buffer_info()[0])
    _munmap(copy, size)


def may_be_copied() -> bool:
    """Whether this process has memory that it might give back."""
    return _kept is not None


def give_back() -> None:
    """Drop the copies of pages that are what they were when they were kept; it takes some ms."""
    if _kept is not None:
        _kept.run(_kept.argument.buffer_info()[0])
        _madvise(_kept.image, _kept.size, _MADV_DONTNEED)  # it was only looked at


def merge() -> None:
    """Let the kernel merge what this process and its forks change in these pages (KSM).

    What it finds equal in several processes it makes one page of. Memory of a guest's own is not
    among it: whether a page was merged shows in the time that writing to it takes, and no guest is
    to find out what another has. Raises OSError (EINVAL: the kernel has no KSM).
    """
    if _kept is not None:
        spans = _kept.spans
    else:  # no guest has mapped anything yet
        spans = [(start, end - start) for start, end, _ in _mappings("")]
    for start, length in spans:
        if _madvise(start, length, _MADV_MERGEABLE) < 0:
            fail("madvise", "MADV_MERGEABLE")
