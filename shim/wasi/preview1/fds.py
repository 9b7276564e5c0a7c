"""Operations on open descriptors (library; runs in the guest)."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final, TypeAlias

from shim.wasi import errno, filetypes, rights
from shim.wasi.errno import Refused
from shim.wasi.preview1.abi import S64, U32, U64, Fd, Ptr, Size, host
from shim.wasi.program import Program
from shim.wasi.times import set_times

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

_WHENCE: Final = (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)
_ADVICE: Final = (
    os.POSIX_FADV_NORMAL,
    os.POSIX_FADV_SEQUENTIAL,
    os.POSIX_FADV_RANDOM,
    os.POSIX_FADV_WILLNEED,
    os.POSIX_FADV_DONTNEED,
    os.POSIX_FADV_NOREUSE,
)

# fdstat:   | u8 filetype | pad | u16 flags | pad 4 | u64 rights | u64 inheriting |  24 bytes
_FDSTAT: Final = struct.Struct("<BxHxxxxQQ")
# filestat: | u64 dev | u64 ino | u8 filetype | pad 7 | u64 nlink | u64 size |
#           | u64 atim | u64 mtim | u64 ctim |                                            64 bytes
FILESTAT: Final = struct.Struct("<QQBxxxxxxxQQQQQ")
Attributes: TypeAlias = tuple[int, int, int, int, int, int, int, int]
"""What a filestat is made of."""
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
    os.fsync(program.descriptors.need(fd, rights.FD_SYNC).fd)


@host
def fd_datasync(program: Program, fd: Fd) -> None:
    """Write data to the disk."""
    os.fdatasync(program.descriptors.need(fd, rights.FD_DATASYNC).fd)


@host
def fd_advise(program: Program, fd: Fd, offset: S64, size: S64, advice: U32) -> None:
    """Tell the kernel how a range will be used."""
    descriptor = program.descriptors.need(fd, rights.FD_ADVISE)
    if not 0 <= advice < len(_ADVICE) or offset < 0 or size < 0:
        raise Refused(errno.INVAL)
    os.posix_fadvise(descriptor.fd, offset, size, _ADVICE[advice])


@host
def fd_allocate(program: Program, fd: Fd, offset: S64, size: S64) -> None:
    """Make room for a range, growing the file if it ends before."""
    descriptor = program.descriptors.need(fd, rights.FD_ALLOCATE)
    descriptor.writable()
    os.posix_fallocate(descriptor.fd, offset, size)


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
        result, _FDSTAT.pack(descriptor.kind, flags, descriptor.base, descriptor.inheriting)
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
    program.memory.write(result, FILESTAT.pack(*attributes_of(program, fd)))


def attributes_of(program: Program, fd: int) -> Attributes:
    """Return a file's attributes."""
    return attributes(os.fstat(program.descriptors.need(fd, rights.FD_FILESTAT_GET).fd))


@host
def fd_filestat_set_size(program: Program, fd: Fd, size: S64) -> None:
    """Cut a file off, or extend it with zeros."""
    descriptor = program.descriptors.need(fd, rights.FD_FILESTAT_SET_SIZE)
    descriptor.writable()
    os.ftruncate(descriptor.fd, size)


@host
def fd_filestat_set_times(program: Program, fd: Fd, atim: U64, mtim: U64, flags: U32) -> None:
    """Set the times of access and modification."""
    descriptor = program.descriptors.need(fd, rights.FD_FILESTAT_SET_TIMES)
    descriptor.writable()
    set_times(descriptor.fd, atim, mtim, flags)


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


def attributes(found: os.stat_result, kind: int | None = None) -> Attributes:
    """Return what a guest sees of a file's attributes; `kind`, if it is not what the mode says.

    Times are unsigned: before 1970 is 0, and what is after 2554 happens at the end of that.
    """
    return (
        found.st_dev,
        found.st_ino,
        filetypes.filetype(found.st_mode) if kind is None else kind,
        found.st_nlink,
        found.st_size,
        min(max(found.st_atime_ns, 0), _U64),
        min(max(found.st_mtime_ns, 0), _U64),
        min(max(found.st_ctime_ns, 0), _U64),
    )
