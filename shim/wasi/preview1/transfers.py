"""Reading and writing, straight from and to guest memory (library; runs in the guest).

These are most of the calls of most programs, so each function has a shortcut besides: the usual
case, one buffer and nothing wrong, written out in a single Python function, which takes two thirds
of the time. Whatever is unusual it leaves to the function itself, before anything has happened.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Final

from shim.wasi import rights
from shim.wasi.preview1 import errno
from shim.wasi.preview1.abi import S64, Fd, Ptr, Size, host, shortcut
from shim.wasi.preview1.errno import FROM_LINUX, Refused
from shim.wasi.preview1.memory import MASK, pack_u32, unpack_iovec
from shim.wasi.preview1.program import Program

_READ_AT: Final = rights.FD_READ | rights.FD_SEEK
_WRITE_AT: Final = rights.FD_WRITE | rights.FD_SEEK


@host
def fd_read(program: Program, fd: Fd, iovecs: Ptr, count: Size, result: Ptr) -> None:
    """Read at the descriptor's position."""
    descriptor = program.descriptors.need(fd, rights.FD_READ)
    memory = program.memory
    memory.write_u32(result, os.readv(descriptor.fd, memory.buffers(iovecs, count)))


@host
def fd_write(program: Program, fd: Fd, iovecs: Ptr, count: Size, result: Ptr) -> None:
    """Write at the descriptor's position."""
    descriptor = program.descriptors.need(fd, rights.FD_WRITE)
    memory = program.memory
    memory.write_u32(result, os.writev(descriptor.fd, memory.buffers(iovecs, count)))


@host
def fd_pread(program: Program, fd: Fd, iovecs: Ptr, count: Size, at: S64, result: Ptr) -> None:
    """Read at an offset, without moving the position."""
    descriptor = program.descriptors.need(fd, _READ_AT)
    if at < 0:  # to the system call underneath, -1 means the position
        raise Refused(errno.INVAL)
    memory = program.memory
    memory.write_u32(result, os.preadv(descriptor.fd, memory.buffers(iovecs, count), at))


@host
def fd_pwrite(program: Program, fd: Fd, iovecs: Ptr, count: Size, at: S64, result: Ptr) -> None:
    """Write at an offset, without moving the position."""
    descriptor = program.descriptors.need(fd, _WRITE_AT)
    if at < 0:  # to the system call underneath, -1 means the position
        raise Refused(errno.INVAL)
    memory = program.memory
    memory.write_u32(result, os.pwritev(descriptor.fd, memory.buffers(iovecs, count), at))


def _at_position(
    transfer: Callable[[int, list[memoryview]], int], right: int
) -> Callable[[Program, Callable[..., int]], Callable[..., int]]:
    def bind(program: Program, whole: Callable[..., int]) -> Callable[..., int]:
        opened, memory = program.descriptors.opened, program.memory

        def call(fd: int, iovecs: int, count: int, result: int) -> int:
            view = memory.view
            room = len(view)
            result &= MASK
            try:
                descriptor = opened[fd]
                start, size = unpack_iovec(view, iovecs & MASK)
            except (KeyError, struct.error):
                return whole(fd, iovecs, count, result)
            end = start + size
            if count != 1 or end > room or result + 4 > room or not descriptor.base & right:
                return whole(fd, iovecs, count, result)
            try:
                pack_u32(view, result, transfer(descriptor.fd, [view[start:end]]))
            except OSError as error:
                return FROM_LINUX.get(error.errno or 0, errno.IO)
            return 0

        return call

    return bind


def _at_offset(
    transfer: Callable[[int, list[memoryview], int], int], right: int
) -> Callable[[Program, Callable[..., int]], Callable[..., int]]:
    def bind(program: Program, whole: Callable[..., int]) -> Callable[..., int]:
        opened, memory = program.descriptors.opened, program.memory

        def call(fd: int, iovecs: int, count: int, at: int, result: int) -> int:
            view = memory.view
            room = len(view)
            result &= MASK
            try:
                descriptor = opened[fd]
                start, size = unpack_iovec(view, iovecs & MASK)
            except (KeyError, struct.error):
                return whole(fd, iovecs, count, at, result)
            end = start + size
            usual = count == 1 and end <= room and result + 4 <= room and at >= 0
            if not usual or descriptor.base & right != right:
                return whole(fd, iovecs, count, at, result)
            try:
                pack_u32(view, result, transfer(descriptor.fd, [view[start:end]], at))
            except OSError as error:
                return FROM_LINUX.get(error.errno or 0, errno.IO)
            return 0

        return call

    return bind


shortcut(fd_read, _at_position(os.readv, rights.FD_READ))
shortcut(fd_write, _at_position(os.writev, rights.FD_WRITE))
shortcut(fd_pread, _at_offset(os.preadv, _READ_AT))
shortcut(fd_pwrite, _at_offset(os.pwritev, _WRITE_AT))
