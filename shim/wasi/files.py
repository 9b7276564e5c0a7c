"""Operations on open descriptors (library; runs in the guest).

Each needs the descriptor's right for it, and raises EROFS where nothing may be changed.
"""

from __future__ import annotations

import os
from typing import Final, TypeAlias

from shim.wasi import filetypes, rights
from shim.wasi.descriptors import Descriptor
from shim.wasi.times import Time, set_times

_U64: Final = 0xFFFFFFFFFFFFFFFF
ADVICE: Final = (  # in the order that all dialects have them in
    os.POSIX_FADV_NORMAL,
    os.POSIX_FADV_SEQUENTIAL,
    os.POSIX_FADV_RANDOM,
    os.POSIX_FADV_WILLNEED,
    os.POSIX_FADV_DONTNEED,
    os.POSIX_FADV_NOREUSE,
)

Attributes: TypeAlias = tuple[int, int, int, int, int, int, int, int]
"""Device, inode, filetype, links, size; times of access, modification and change in ns."""


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


def attributes_of(descriptor: Descriptor) -> Attributes:
    """Return a file's attributes."""
    descriptor.need(rights.FD_FILESTAT_GET)
    return attributes(os.fstat(descriptor.fd))


def synchronize(descriptor: Descriptor) -> None:
    """Write data and metadata to the disk."""
    descriptor.need(rights.FD_SYNC)
    os.fsync(descriptor.fd)


def synchronize_data(descriptor: Descriptor) -> None:
    """Write data to the disk."""
    descriptor.need(rights.FD_DATASYNC)
    os.fdatasync(descriptor.fd)


def advise(descriptor: Descriptor, offset: int, size: int, advice: int) -> None:
    """Tell the kernel how a range will be used."""
    descriptor.need(rights.FD_ADVISE)
    os.posix_fadvise(descriptor.fd, offset, size, advice)


def allocate(descriptor: Descriptor, offset: int, size: int) -> None:
    """Make room for a range, growing the file if it ends before."""
    descriptor.need(rights.FD_ALLOCATE)
    descriptor.writable()
    os.posix_fallocate(descriptor.fd, offset, size)


def set_size(descriptor: Descriptor, size: int) -> None:
    """Cut a file off, or extend it with zeros."""
    descriptor.need(rights.FD_FILESTAT_SET_SIZE)
    descriptor.writable()
    os.ftruncate(descriptor.fd, size)


def set_times_of(descriptor: Descriptor, access: Time, modification: Time) -> None:
    """Set the times of access and modification."""
    descriptor.need(rights.FD_FILESTAT_SET_TIMES)
    descriptor.writable()
    set_times(descriptor.fd, access, modification)
