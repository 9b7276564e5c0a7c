"""Operations on paths below a directory descriptor (library; runs in the guest)."""

from __future__ import annotations

import os
from typing import Final

from shim.wasi import errno, own_links, rights
from shim.wasi.descriptors import Descriptor, applicable
from shim.wasi.errno import Refused
from shim.wasi.filetypes import DIRECTORY, REGULAR_FILE, SYMBOLIC_LINK, filetype
from shim.wasi.preview1.abi import U32, U64, Fd, Ptr, Size, host
from shim.wasi.preview1.fds import FDFLAGS, FILESTAT, Attributes, attributes
from shim.wasi.program import Program
from shim.wasi.resolution import FOLLOW, look_up, parent, read_path, resolve, start
from shim.wasi.times import set_times

# oflags
_CREAT: Final = 1
_DIRECTORY: Final = 2
_EXCL: Final = 4
_TRUNC: Final = 8
_OFLAGS: Final = _CREAT | _DIRECTORY | _EXCL | _TRUNC
_ALL_FDFLAGS: Final = sum(flag for flag, _ in FDFLAGS)


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
    directory = program.descriptors.need(fd, needed)
    # Go's os.Root opens its directory without this right, and truncates below it all the same.
    if oflags & _TRUNC and directory.given_up & rights.PATH_FILESTAT_SET_SIZE:
        raise Refused(errno.NOTCAPABLE)
    both = oflags & (_CREAT | _DIRECTORY)  # of which Linux before 6.4 made a file
    if oflags & ~_OFLAGS or fdflags & ~_ALL_FDFLAGS or both == _CREAT | _DIRECTORY:
        raise Refused(errno.INVAL)
    name = read_path(program.memory, path, path_size)
    where, name = start(directory, name, creating=bool(oflags & _CREAT))

    base &= directory.inheriting
    if base & rights.FD_WRITE:
        flags = os.O_RDWR if base & rights.FD_READ else os.O_WRONLY
    else:
        flags = os.O_RDONLY
    flags |= os.O_NOCTTY
    if not lookup & FOLLOW:
        flags |= os.O_NOFOLLOW
    if oflags & _DIRECTORY:
        flags |= os.O_DIRECTORY
    if oflags & _TRUNC:
        flags |= os.O_TRUNC
    if fdflags:
        for flag, bits in FDFLAGS:
            if fdflags & flag:
                flags |= bits

    try:
        if where.readonly and (oflags & (_CREAT | _TRUNC) or base & rights.FD_WRITE):
            opened = _open_unchanged(where, name, flags, oflags)
        elif oflags & _CREAT:
            flags |= os.O_CREAT | os.O_EXCL if oflags & _EXCL else os.O_CREAT
            opened = look_up(where, name, flags, 0o666)
        else:
            opened = look_up(where, name, flags)
    except OSError as error:
        if flags & (os.O_NOFOLLOW | os.O_EXCL):
            raise
        own = program.descriptors.get(own_links.own(program.descriptors, where, name, error))
        if oflags & _DIRECTORY and own.kind != DIRECTORY:
            raise Refused(errno.NOTDIR) from None
        inheriting &= directory.inheriting
        again = own_links.again(own, base, inheriting, emptied=bool(oflags & _TRUNC))
        program.memory.write_u32(result, program.descriptors.add(again))
        return

    try:
        kind = filetype(os.fstat(opened).st_mode)
        number = program.descriptors.add(
            Descriptor(
                opened,
                kind,
                base & applicable(opened, kind),
                inheriting & directory.inheriting if kind == DIRECTORY else 0,
                readonly=where.readonly,
                confined=where.confined,
            )
        )
    except BaseException:
        os.close(opened)
        raise
    program.memory.write_u32(result, number)


def _open_unchanged(directory: Descriptor, name: bytes, flags: int, oflags: int) -> int:
    """Open below a read-only directory as Linux does on a read-only filesystem.

    EROFS answers only what would change something: creating what exists is opening it, and neither
    a device nor a pipe is changed by writing.
    """
    exclusive = oflags & _CREAT and oflags & _EXCL
    try:
        opened = look_up(
            directory, name, os.O_PATH | os.O_NOFOLLOW if exclusive else flags & ~os.O_TRUNC
        )
    except FileNotFoundError:
        raise Refused(errno.ROFS if oflags & _CREAT else errno.NOENT) from None
    if exclusive:
        os.close(opened)
        raise Refused(errno.EXIST)
    changing = oflags & _TRUNC or flags & os.O_ACCMODE != os.O_RDONLY
    if changing and filetype(os.fstat(opened).st_mode) in (DIRECTORY, REGULAR_FILE):
        os.close(opened)
        raise Refused(errno.ROFS)
    return opened


def _may_create(directory: Descriptor, path: bytes) -> None:
    """Raise EROFS if nothing may be created there; as Linux does, EEXIST comes before that."""
    if not directory.readonly:
        return
    try:
        os.close(resolve(directory, path, 0))
    except FileNotFoundError:
        raise Refused(errno.ROFS) from None
    raise Refused(errno.EXIST)


@host
def path_create_directory(program: Program, fd: Fd, path: Ptr, size: Size) -> None:
    """Create a directory."""
    directory = program.descriptors.need(fd, rights.PATH_CREATE_DIRECTORY)
    where, name = start(directory, read_path(program.memory, path, size), creating=True)
    _may_create(where, name)
    with parent(where, name) as (holder, name):
        os.mkdir(name, 0o777, dir_fd=holder)


@host
def path_remove_directory(program: Program, fd: Fd, path: Ptr, size: Size) -> None:
    """Remove an empty directory."""
    directory = program.descriptors.need(fd, rights.PATH_REMOVE_DIRECTORY)
    where, name = start(directory, read_path(program.memory, path, size))
    where.writable()
    with parent(where, name) as (holder, name):
        os.rmdir(name, dir_fd=holder)


@host
def path_unlink_file(program: Program, fd: Fd, path: Ptr, size: Size) -> None:
    """Remove the name of what is no directory."""
    directory = program.descriptors.need(fd, rights.PATH_UNLINK_FILE)
    where, name = start(directory, read_path(program.memory, path, size))
    where.writable()
    with parent(where, name) as (holder, name):
        os.unlink(name, dir_fd=holder)


@host
def path_rename(
    program: Program, fd: Fd, path: Ptr, size: Size, new_fd: Fd, new_path: Ptr, new_size: Size
) -> None:
    """Rename a file or directory, over an existing one if there is."""
    source = program.descriptors.need(fd, rights.PATH_RENAME_SOURCE)
    target = program.descriptors.need(new_fd, rights.PATH_RENAME_TARGET)
    source, old = start(source, read_path(program.memory, path, size))
    target, new = start(target, read_path(program.memory, new_path, new_size), creating=True)
    source.writable()
    target.writable()
    with parent(source, old) as (old_dir, old_name), parent(target, new) as (new_dir, new_name):
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
    if lookup & FOLLOW:  # the kernel would follow it out of the directory
        raise Refused(errno.INVAL)
    source, old = start(source, read_path(program.memory, path, size))
    target, new = start(target, read_path(program.memory, new_path, new_size), creating=True)
    source.writable()
    _may_create(target, new)
    with parent(source, old) as (old_dir, old_name), parent(target, new) as (new_dir, new_name):
        os.link(old_name, new_name, src_dir_fd=old_dir, dst_dir_fd=new_dir, follow_symlinks=False)


@host
def path_symlink(
    program: Program, target: Ptr, target_size: Size, fd: Fd, path: Ptr, size: Size
) -> None:
    """Create a symlink. An absolute target is for who may use absolute paths in that place."""
    directory = program.descriptors.need(fd, rights.PATH_SYMLINK)
    where, name = start(directory, read_path(program.memory, path, size), creating=True)
    _may_create(where, name)
    points_to = read_path(program.memory, target, target_size)
    if points_to.startswith(b"/") and (where.confined or where.preopen is None):
        raise Refused(errno.NOTCAPABLE)
    with parent(where, name) as (holder, name):
        os.symlink(points_to, name, dir_fd=holder)


@host
def path_readlink(
    program: Program, fd: Fd, path: Ptr, size: Size, buffer: Ptr, room: Size, result: Ptr
) -> None:
    """Store what a symlink points to, cut off where the buffer ends."""
    directory = program.descriptors.need(fd, rights.PATH_READLINK)
    where, name = start(directory, read_path(program.memory, path, size))
    points_to = own_links.link(program.descriptors, where, name) or _read_link(where, name)
    points_to = points_to[: room & 0xFFFFFFFF]
    program.memory.write(buffer, points_to)
    program.memory.write_u32(result, len(points_to))


def _read_link(directory: Descriptor, name: bytes) -> bytes:
    found = resolve(directory, name, 0)
    try:
        return os.readlink(b"", dir_fd=found)
    except FileNotFoundError:  # with an empty path the kernel says so of what is no symlink
        raise Refused(errno.INVAL) from None
    finally:
        os.close(found)


@host
def path_filestat_get(
    program: Program, fd: Fd, lookup: U32, path: Ptr, size: Size, result: Ptr
) -> None:
    """Store a file's attributes."""
    found = attributes_at(program, fd, lookup, path, size)
    program.memory.write(result, FILESTAT.pack(*found))


def attributes_at(program: Program, fd: int, lookup: int, path: int, size: int) -> Attributes:
    """Return a file's attributes."""
    directory = program.descriptors.need(fd, rights.PATH_FILESTAT_GET)
    where, name = start(directory, read_path(program.memory, path, size))
    try:
        found = resolve(where, name, lookup)
    except OSError as error:
        number = own_links.own(program.descriptors, where, name, error)
        own = program.descriptors.need(number, rights.FD_FILESTAT_GET)
        return attributes(os.fstat(own.fd), None if lookup & FOLLOW else SYMBOLIC_LINK)
    try:
        return attributes(os.fstat(found))
    finally:
        os.close(found)


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
    where, name = start(directory, read_path(program.memory, path, size))
    where.writable()
    found = resolve(where, name, lookup)
    try:
        set_times(found, atim, mtim, flags)
    finally:
        os.close(found)
