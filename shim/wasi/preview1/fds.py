"""Operations on open descriptors (library; runs in the guest)."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from shim.wasi import files, filetypes, rights
from shim.wasi.files import Attributes
from shim.wasi.preview1 import errno
from shim.wasi.preview1.abi import S64, U32, U64, Fd, Ptr, Size, host
from shim.wasi.preview1.errno import Refused
from shim.wasi.preview1.filetypes import NUMBERS
from shim.wasi.preview1.program import Program
from shim.wasi.times import NOW, Time

_U64: Final = 0xFFFFFFFFFFFFFFFF

# fdflags
APPEND: Final = 1
DSYNC: Final = 2
NONBLOCK: Final = 4
RSYNC: Final = 8
SYNC: Final = 16
FDFLAGS: Final = (  # Linux's O_SYNC includes the bit of O_DSYNC
    (APPEND, os.O_APPEND),
    (DSYNC, os.O_DSYNC),
    (NONBLOCK, os.O_NONBLOCK),
    (RSYNC, os.O_RSYNC),
    (SYNC, os.O_SYNC),
)
_ANY: Final = os.O_APPEND | os.O_NONBLOCK | os.O_SYNC

# fstflags
_ATIM: Final = 1
_ATIM_NOW: Final = 2
_MTIM: Final = 4
_MTIM_NOW: Final = 8

_WHENCE: Final = (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)

# fdstat:   | u8 filetype | pad | u16 flags | pad 4 | u64 rights | u64 inheriting |  24 bytes
_FDSTAT: Final = struct.Struct("<BxHxxxxQQ")
# filestat: | u64 dev | u64 ino | u8 filetype | pad 7 | u64 nlink | u64 size |
#           | u64 atim | u64 mtim | u64 ctim |                                            64 bytes
_FILESTAT: Final = struct.Struct("<QQBxxxxxxxQQQQQ")
# prestat:  | u8 0: a directory | pad 3 | u32 length of the name |
_PRESTAT: Final = struct.Struct("<BxxxI")


@host
def fd_seek(program: Program, fd: Fd, offset: S64, whence: U32, result: Ptr) -> None:
    """Move the position; store the new one."""
    needed = rights.FD_TELL if offset == 0 and whence == 1 else rights.FD_SEEK
    descriptor = program.descriptors.need(fd, needed)
    if not 0 <= whence < len(_WHENCE):
        raise Refused(errno.INVAL)
    program.memory.write_u64(result, os.lseek(descriptor.fd, offset, _WHENCE[whence]))


@host
def fd_tell(program: Program, fd: Fd, result: Ptr) -> None:
    """Store the position."""
    descriptor = program.descriptors.need(fd, rights.FD_TELL)
    program.memory.write_u64(result, os.lseek(descriptor.fd, 0, os.SEEK_CUR))


@host
def fd_close(program: Program, fd: Fd) -> None:
    """Close a descriptor."""
    program.descriptors.close(fd)


@host
def fd_renumber(program: Program, source: Fd, target: Fd) -> None:
    """Move a descriptor over another open one."""
    program.descriptors.renumber(source, target)


@host
def fd_sync(program: Program, fd: Fd) -> None:
    """Write data and metadata to the disk."""
    files.synchronize(program.descriptors.get(fd))


@host
def fd_datasync(program: Program, fd: Fd) -> None:
    """Write data to the disk."""
    files.synchronize_data(program.descriptors.get(fd))


@host
def fd_advise(program: Program, fd: Fd, offset: S64, size: S64, advice: U32) -> None:
    """Tell the kernel how a range will be used."""
    descriptor = program.descriptors.get(fd)
    if not 0 <= advice < len(files.ADVICE) or offset < 0 or size < 0:
        raise Refused(errno.INVAL)
    files.advise(descriptor, offset, size, files.ADVICE[advice])


@host
def fd_allocate(program: Program, fd: Fd, offset: S64, size: S64) -> None:
    """Make room for a range, growing the file if it ends before."""
    files.allocate(program.descriptors.get(fd), offset, size)


@host
def fd_fdstat_get(program: Program, fd: Fd, result: Ptr) -> None:
    """Store filetype, flags and rights."""
    descriptor = program.descriptors.get(fd)
    linux = fcntl.fcntl(descriptor.fd, fcntl.F_GETFL)
    flags = 0
    if linux & _ANY:  # seldom, and libc asks before it opens anything
        for flag, bits in FDFLAGS:
            if linux & bits == bits:
                flags |= flag
    program.memory.write(
        result,
        _FDSTAT.pack(NUMBERS[descriptor.kind], flags, descriptor.base, descriptor.inheriting),
    )


@host
def fd_fdstat_set_flags(program: Program, fd: Fd, flags: U32) -> None:
    """Change APPEND and NONBLOCK. Linux cannot change the others on an open file."""
    descriptor = program.descriptors.need(fd, rights.FD_FDSTAT_SET_FLAGS)
    if flags & ~(APPEND | DSYNC | NONBLOCK | RSYNC | SYNC):
        raise Refused(errno.INVAL)
    linux = fcntl.fcntl(descriptor.fd, fcntl.F_GETFL)
    if any(bits & ~linux for flag, bits in FDFLAGS if flag & flags & (DSYNC | RSYNC | SYNC)):
        raise Refused(errno.NOTSUP)
    linux &= ~(os.O_APPEND | os.O_NONBLOCK)
    for flag, bits in FDFLAGS:
        if flag & flags:
            linux |= bits
    fcntl.fcntl(descriptor.fd, fcntl.F_SETFL, linux)


@host
def fd_fdstat_set_rights(program: Program, fd: Fd, base: U64, inheriting: U64) -> None:
    """Give rights up; ENOTCAPABLE for one that the descriptor does not have."""
    descriptor = program.descriptors.get(fd)
    base, inheriting = base & _U64, inheriting & _U64
    if base & ~descriptor.base or inheriting & ~descriptor.inheriting:
        raise Refused(errno.NOTCAPABLE)
    descriptor.given_up |= descriptor.base & ~base
    descriptor.base = base
    descriptor.inheriting = inheriting


@host
def fd_filestat_get(program: Program, fd: Fd, result: Ptr) -> None:
    """Store a file's attributes."""
    program.memory.write(result, filestat(files.attributes_of(program.descriptors.get(fd))))


def filestat(found: Attributes) -> bytes:
    """Return attributes as they are laid out."""
    device, inode, kind, links, size, atim, mtim, ctim = found
    return _FILESTAT.pack(device, inode, NUMBERS[kind], links, size, atim, mtim, ctim)


@host
def fd_filestat_set_size(program: Program, fd: Fd, size: S64) -> None:
    """Cut a file off, or extend it with zeros."""
    files.set_size(program.descriptors.get(fd), size)


@host
def fd_filestat_set_times(program: Program, fd: Fd, atim: U64, mtim: U64, flags: U32) -> None:
    """Set the times of access and modification."""
    files.set_times_of(program.descriptors.get(fd), *times(atim, mtim, flags))


def times(atim: int, mtim: int, flags: int) -> tuple[Time, Time]:
    """Return the times that `flags` name. Raises EINVAL for contradicting flags."""
    if flags & ~(_ATIM | _ATIM_NOW | _MTIM | _MTIM_NOW):
        raise Refused(errno.INVAL)
    return _time(atim, flags & _ATIM, flags & _ATIM_NOW), _time(
        mtim, flags & _MTIM, flags & _MTIM_NOW
    )


def _time(time: int, given: int, now: int) -> Time:
    if given and now:
        raise Refused(errno.INVAL)
    if now:
        return NOW
    return time & _U64 if given else None


@host
def fd_prestat_get(program: Program, fd: Fd, result: Ptr) -> None:
    """Describe a preopened directory. EBADF for any other descriptor tells libc to stop looking.

    A listener is in front of the directories, so it answers too, with a tag that is none of
    preview 1's: wasi-libc and Go then look at the next one, and Zig takes it for one more name.
    """
    descriptor = program.descriptors.get(fd)
    if descriptor.preopen is None:
        raise Refused(errno.BADF)
    tag = 0 if descriptor.kind == filetypes.DIRECTORY else 1
    program.memory.write(result, _PRESTAT.pack(tag, len(descriptor.preopen)))


@host
def fd_prestat_dir_name(program: Program, fd: Fd, buffer: Ptr, size: Size) -> None:
    """Store a preopened directory's name, without a NUL."""
    name = program.descriptors.get(fd).preopen
    if name is None:
        raise Refused(errno.BADF)
    if len(name) > size & 0xFFFFFFFF:
        raise Refused(errno.NAMETOOLONG)
    program.memory.write(buffer, name)
