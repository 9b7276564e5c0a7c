"""Operations on paths below a directory descriptor (library; runs in the guest).

The kernel resolves every path, with `openat2` and RESOLVE_BENEATH: what `..`, an absolute path or a
symlink means is never decided here, and leaving the directory ends in ENOTCAPABLE. Where a call
acts on a name rather than on a file (unlink, rename, ...), the directory of that name is opened
the same way, and the kernel is handed the last component as it stands: none of these calls follows
a symlink or walks into `..` there.
"""

from __future__ import annotations

import errno as linux
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shim.linux.files import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2
from shim.wasi import errno, rights
from shim.wasi.abi import U32, U64, Fd, Ptr, Size, host
from shim.wasi.descriptors import DIRECTORY, Descriptor, applicable, filetype
from shim.wasi.errno import Refused
from shim.wasi.fds import FDFLAGS, filestat
from shim.wasi.memory import Memory
from shim.wasi.program import Program
from shim.wasi.times import set_times

_BENEATH: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
_PATH_MAX: Final = 4096

_FOLLOW: Final = 1  # lookupflags

# oflags
_CREAT: Final = 1
_DIRECTORY: Final = 2
_EXCL: Final = 4
_TRUNC: Final = 8
_OFLAGS: Final = _CREAT | _DIRECTORY | _EXCL | _TRUNC
_ALL_FDFLAGS: Final = sum(flag for flag, _ in FDFLAGS)


def _path(memory: Memory, address: int, size: int) -> bytes:
    if size & 0xFFFFFFFF > _PATH_MAX:
        raise Refused(errno.NAMETOOLONG)
    path = bytes(memory.span(address, size))
    if b"\0" in path:  # the kernel would take the part before it
        raise Refused(errno.INVAL)
    return path


def _open(directory: Descriptor, path: bytes, flags: int, mode: int = 0) -> int:
    try:
        return openat2(directory.fd, path, flags, mode, _BENEATH)
    except OSError as error:
        if error.errno == linux.EXDEV:
            raise Refused(errno.NOTCAPABLE) from None
        raise


@contextmanager
def _resolved(directory: Descriptor, path: bytes, lookup: int) -> Iterator[int]:
    """Yield an O_PATH descriptor of what `path` names."""
    flags = os.O_PATH if lookup & _FOLLOW else os.O_PATH | os.O_NOFOLLOW
    fd = _open(directory, path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _parent(directory: Descriptor, path: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield a descriptor of the directory that holds `path`, and the name there.

    Slashes at the end stay with the name, since they mean something to the kernel: `a/b//` is the
    name `b//` in `a`.
    """
    bare = path.rstrip(b"/")
    slash = bare.rfind(b"/")
    if slash < 0 and bare:
        yield directory.fd, path
        return
    # An absolute path (or nothing but slashes) has a parent that starts at `/`: refused there.
    fd = _open(directory, path[: slash + 1] or path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd, path[slash + 1 :]
    finally:
        os.close(fd)


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
    """Open or create a file or directory.

    Whether it is opened for reading, writing or both follows from the rights asked for; those that
    the directory cannot pass on, or that make no sense on what was found, are left out.
    """
    needed = rights.PATH_OPEN
    if oflags & _CREAT:
        needed |= rights.PATH_CREATE_FILE
    if oflags & _TRUNC:
        needed |= rights.PATH_FILESTAT_SET_SIZE
    directory = program.descriptors.need(fd, needed)
    if oflags & ~_OFLAGS or fdflags & ~_ALL_FDFLAGS:
        raise Refused(errno.INVAL)
    name = _path(program.memory, path, path_size)

    base &= directory.inheriting
    if base & rights.FD_WRITE:
        flags = os.O_RDWR if base & rights.FD_READ else os.O_WRONLY
    else:
        flags = os.O_RDONLY
    flags |= os.O_NOCTTY
    if not lookup & _FOLLOW:
        flags |= os.O_NOFOLLOW
    if oflags & _DIRECTORY:
        flags |= os.O_DIRECTORY
    if oflags & _TRUNC:
        flags |= os.O_TRUNC
    if fdflags:
        for flag, bits in FDFLAGS:
            if fdflags & flag:
                flags |= bits

    if directory.readonly and (oflags & (_CREAT | _TRUNC) or base & rights.FD_WRITE):
        opened = _open_unchanged(directory, name, flags, oflags)
    elif oflags & _CREAT:
        flags |= os.O_CREAT | os.O_EXCL if oflags & _EXCL else os.O_CREAT
        opened = _open(directory, name, flags, 0o666)
    else:
        opened = _open(directory, name, flags)

    try:
        kind = filetype(os.fstat(opened).st_mode)
        number = program.descriptors.add(
            Descriptor(
                opened,
                kind,
                base & applicable(opened, kind),
                inheriting & directory.inheriting if kind == DIRECTORY else 0,
                readonly=directory.readonly,
            )
        )
    except BaseException:
        os.close(opened)
        raise
    program.memory.write_u32(result, number)


def _open_unchanged(directory: Descriptor, name: bytes, flags: int, oflags: int) -> int:
    """Open below a read-only directory as Linux does on a read-only filesystem.

    EROFS answers only what would change something: creating what exists is opening it.
    """
    try:
        opened = _open(directory, name, flags & ~(os.O_TRUNC | os.O_ACCMODE))
    except FileNotFoundError:
        raise Refused(errno.ROFS if oflags & _CREAT else errno.NOENT) from None
    if oflags & _CREAT and oflags & _EXCL:
        os.close(opened)
        raise Refused(errno.EXIST)
    if oflags & _TRUNC or flags & os.O_ACCMODE != os.O_RDONLY:
        os.close(opened)
        raise Refused(errno.ROFS)
    return opened


@host
def path_create_directory(program: Program, fd: Fd, path: Ptr, size: Size) -> None:
    """Create a directory."""
    directory = program.descriptors.need(fd, rights.PATH_CREATE_DIRECTORY)
    directory.writable()
    with _parent(directory, _path(program.memory, path, size)) as (parent, name):
        os.mkdir(name, 0o777, dir_fd=parent)


@host
def path_remove_directory(program: Program, fd: Fd, path: Ptr, size: Size) -> None:
    """Remove an empty directory."""
    directory = program.descriptors.need(fd, rights.PATH_REMOVE_DIRECTORY)
    directory.writable()
    with _parent(directory, _path(program.memory, path, size)) as (parent, name):
        os.rmdir(name, dir_fd=parent)


@host
def path_unlink_file(program: Program, fd: Fd, path: Ptr, size: Size) -> None:
    """Remove the name of what is no directory."""
    directory = program.descriptors.need(fd, rights.PATH_UNLINK_FILE)
    directory.writable()
    with _parent(directory, _path(program.memory, path, size)) as (parent, name):
        os.unlink(name, dir_fd=parent)


@host
def path_rename(
    program: Program, fd: Fd, path: Ptr, size: Size, new_fd: Fd, new_path: Ptr, new_size: Size
) -> None:
    """Rename a file or directory, over an existing one if there is."""
    source = program.descriptors.need(fd, rights.PATH_RENAME_SOURCE)
    target = program.descriptors.need(new_fd, rights.PATH_RENAME_TARGET)
    source.writable()
    target.writable()
    old, new = _path(program.memory, path, size), _path(program.memory, new_path, new_size)
    with _parent(source, old) as (old_dir, old_name), _parent(target, new) as (new_dir, new_name):
        os.rename(old_name, new_name, src_dir_fd=old_dir, dst_dir_fd=new_dir)


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
    source = program.descriptors.need(fd, rights.PATH_LINK_SOURCE)
    target = program.descriptors.need(new_fd, rights.PATH_LINK_TARGET)
    if lookup & _FOLLOW:  # the kernel would follow it out of the directory
        raise Refused(errno.INVAL)
    source.writable()
    target.writable()
    old, new = _path(program.memory, path, size), _path(program.memory, new_path, new_size)
    with _parent(source, old) as (old_dir, old_name), _parent(target, new) as (new_dir, new_name):
        os.link(old_name, new_name, src_dir_fd=old_dir, dst_dir_fd=new_dir, follow_symlinks=False)


@host
def path_symlink(
    program: Program, target: Ptr, target_size: Size, fd: Fd, path: Ptr, size: Size
) -> None:
    """Create a symlink. An absolute target is refused: it could only ever point outside."""
    directory = program.descriptors.need(fd, rights.PATH_SYMLINK)
    directory.writable()
    points_to = _path(program.memory, target, target_size)
    if points_to.startswith(b"/"):
        raise Refused(errno.NOTCAPABLE)
    with _parent(directory, _path(program.memory, path, size)) as (parent, name):
        os.symlink(points_to, name, dir_fd=parent)


@host
def path_readlink(
    program: Program, fd: Fd, path: Ptr, size: Size, buffer: Ptr, room: Size, result: Ptr
) -> None:
    """Store what a symlink points to, cut off where the buffer ends."""
    directory = program.descriptors.need(fd, rights.PATH_READLINK)
    with _resolved(directory, _path(program.memory, path, size), 0) as found:
        try:
            points_to = os.readlink(b"", dir_fd=found)
        except FileNotFoundError:  # with an empty path the kernel says so of what is no symlink
            raise Refused(errno.INVAL) from None
    points_to = points_to[: room & 0xFFFFFFFF]
    program.memory.write(buffer, points_to)
    program.memory.write_u32(result, len(points_to))


@host
def path_filestat_get(
    program: Program, fd: Fd, lookup: U32, path: Ptr, size: Size, result: Ptr
) -> None:
    """Store a file's attributes."""
    directory = program.descriptors.need(fd, rights.PATH_FILESTAT_GET)
    with _resolved(directory, _path(program.memory, path, size), lookup) as found:
        program.memory.write(result, filestat(os.fstat(found)))


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
    directory = program.descriptors.need(fd, rights.PATH_FILESTAT_SET_TIMES)
    directory.writable()
    with _resolved(directory, _path(program.memory, path, size), lookup) as found:
        set_times(found, atim, mtim, flags)
