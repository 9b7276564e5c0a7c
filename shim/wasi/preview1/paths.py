"""Operations on paths below a directory descriptor (library; runs in the guest)."""

from __future__ import annotations

import os
from typing import Final

from shim.wasi import paths
from shim.wasi.files import Attributes
from shim.wasi.preview1 import errno
from shim.wasi.preview1.abi import U32, U64, Fd, Ptr, Size, host
from shim.wasi.preview1.errno import Refused
from shim.wasi.preview1.fds import FDFLAGS, filestat, times
from shim.wasi.preview1.memory import MASK, Memory
from shim.wasi.preview1.program import Program
from shim.wasi.resolution import whole

_PATH_MAX: Final = 4096
_FOLLOW: Final = 1  # lookupflags

# oflags
_CREAT: Final = 1
_DIRECTORY: Final = 2
_EXCL: Final = 4
_TRUNC: Final = 8
_OFLAGS: Final = tuple(
    (os.O_CREAT if flags & _CREAT else 0)
    | (os.O_DIRECTORY if flags & _DIRECTORY else 0)
    | (os.O_EXCL if flags & _EXCL and flags & _CREAT else 0)
    | (os.O_TRUNC if flags & _TRUNC else 0)
    for flags in range(_CREAT + _DIRECTORY + _EXCL + _TRUNC + 1)
)
_ALL_FDFLAGS: Final = sum(flag for flag, _ in FDFLAGS)


def _path(memory: Memory, address: int, size: int) -> bytes:
    """Return a path that the guest passes. Raises ENAMETOOLONG, and EINVAL for one with a NUL."""
    if size & MASK > _PATH_MAX:
        raise Refused(errno.NAMETOOLONG)
    return whole(bytes(memory.span(address, size)))


@host
def path_open(
    program: Program,
    fd: Fd,
    lookup: U32,
    path: Ptr,
    path_size: Size,
    oflags: U32,
    base: U64,
    inheriting: U64,
    fdflags: U32,
    result: Ptr,
) -> None:
    """Open or create a file or directory, as the rights asked for say."""
    descriptors, memory = program.descriptors, program.memory
    directory = descriptors.get(fd)
    if not 0 <= oflags < len(_OFLAGS) or fdflags & ~_ALL_FDFLAGS:
        raise Refused(errno.INVAL)
    flags = _OFLAGS[oflags]
    if not lookup & _FOLLOW:
        flags |= os.O_NOFOLLOW
    if fdflags:
        for flag, bits in FDFLAGS:
            if fdflags & flag:
                flags |= bits
    name = _path(memory, path, path_size)
    opened = paths.open_at(descriptors.opened, directory, name, flags, base, inheriting)
    memory.write_u32(result, descriptors.add(opened))


@host
def path_create_directory(program: Program, fd: Fd, path: Ptr, size: Size) -> None:
    """Create a directory."""
    directory = program.descriptors.get(fd)
    paths.create_directory_at(directory, _path(program.memory, path, size))


@host
def path_remove_directory(program: Program, fd: Fd, path: Ptr, size: Size) -> None:
    """Remove an empty directory."""
    directory = program.descriptors.get(fd)
    paths.remove_directory_at(directory, _path(program.memory, path, size))


@host
def path_unlink_file(program: Program, fd: Fd, path: Ptr, size: Size) -> None:
    """Remove the name of what is no directory."""
    directory = program.descriptors.get(fd)
    paths.unlink_file_at(directory, _path(program.memory, path, size))


@host
def path_rename(
    program: Program, fd: Fd, path: Ptr, size: Size, new_fd: Fd, new_path: Ptr, new_size: Size
) -> None:
    """Rename a file or directory, over an existing one if there is."""
    source, target = program.descriptors.get(fd), program.descriptors.get(new_fd)
    memory = program.memory
    paths.rename_at(source, _path(memory, path, size), target, _path(memory, new_path, new_size))


@host
def path_link(
    program: Program,
    fd: Fd,
    lookup: U32,
    path: Ptr,
    size: Size,
    new_fd: Fd,
    new_path: Ptr,
    new_size: Size,
) -> None:
    """Give a file another name. Only the name itself is linked, never what a symlink points to."""
    source, target = program.descriptors.get(fd), program.descriptors.get(new_fd)
    old = _path(program.memory, path, size)
    new = _path(program.memory, new_path, new_size)
    paths.link_at(source, old, target, new, follow=bool(lookup & _FOLLOW))


@host
def path_symlink(
    program: Program, target: Ptr, target_size: Size, fd: Fd, path: Ptr, size: Size
) -> None:
    """Create a symlink."""
    directory = program.descriptors.get(fd)
    points_to = _path(program.memory, target, target_size)
    paths.symlink_at(points_to, directory, _path(program.memory, path, size))


@host
def path_readlink(
    program: Program, fd: Fd, path: Ptr, size: Size, buffer: Ptr, room: Size, result: Ptr
) -> None:
    """Store what a symlink points to, cut off where the buffer ends."""
    descriptors, memory = program.descriptors, program.memory
    name = _path(memory, path, size)
    points_to = paths.read_link_at(descriptors.opened, descriptors.get(fd), name)[: room & MASK]
    memory.write(buffer, points_to)
    memory.write_u32(result, len(points_to))


@host
def path_filestat_get(
    program: Program, fd: Fd, lookup: U32, path: Ptr, size: Size, result: Ptr
) -> None:
    """Store a file's attributes."""
    found = attributes_of_path(program, fd, lookup, path, size)
    program.memory.write(result, filestat(found))


def attributes_of_path(program: Program, fd: int, lookup: int, path: int, size: int) -> Attributes:
    """Return a file's attributes."""
    directory = program.descriptors.get(fd)
    name = _path(program.memory, path, size)
    return paths.attributes_at(
        program.descriptors.opened, directory, name, follow=bool(lookup & _FOLLOW)
    )


@host
def path_filestat_set_times(
    program: Program,
    fd: Fd,
    lookup: U32,
    path: Ptr,
    size: Size,
    atim: U64,
    mtim: U64,
    flags: U32,
) -> None:
    """Set the times of access and modification."""
    directory = program.descriptors.get(fd)
    name = _path(program.memory, path, size)
    access, modification = times(atim, mtim, flags)
    paths.set_times_at(directory, name, access, modification, follow=bool(lookup & _FOLLOW))
