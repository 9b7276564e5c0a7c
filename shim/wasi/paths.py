"""Operations on paths below a directory descriptor (library; runs in the guest).

Each needs the directory's right for it, and raises EROFS where nothing may be changed. `numbered`
are the descriptors that have paths of their own, see `own_links`.
"""

from __future__ import annotations

import errno as linux
import os
from typing import Final

from shim.wasi import own_links, rights
from shim.wasi.descriptors import Descriptor, applicable
from shim.wasi.errors import NotCapable, failure
from shim.wasi.files import Attributes, attributes
from shim.wasi.filetypes import DIRECTORY, REGULAR_FILE, SYMBOLIC_LINK, filetype
from shim.wasi.own_links import Numbered
from shim.wasi.resolution import look_up, parent, resolve, start
from shim.wasi.times import Time, set_times

_NO_FILE: Final = os.O_CREAT | os.O_DIRECTORY  # of which Linux before 6.4 made a file


def open_at(
    numbered: Numbered, directory: Descriptor, path: bytes, flags: int, base: int, inheriting: int
) -> Descriptor:
    """Open or create a file or directory, with `flags` of open(2) but for the access mode.

    Whether it is opened for reading, writing or both follows from the rights asked for; those that
    the directory cannot pass on, or that make no sense on what was found, are left out.
    """
    creating = flags & os.O_CREAT
    directory.need(rights.PATH_OPEN | rights.PATH_CREATE_FILE if creating else rights.PATH_OPEN)
    # Go's os.Root opens its directory without this right, and truncates below it all the same.
    if flags & os.O_TRUNC and directory.given_up & rights.PATH_FILESTAT_SET_SIZE:
        raise NotCapable
    if flags & _NO_FILE == _NO_FILE:
        raise failure(linux.EINVAL)
    where, name = start(directory, path, creating=bool(creating))

    base &= directory.inheriting
    inheriting &= directory.inheriting
    flags |= os.O_NOCTTY
    if base & rights.FD_WRITE:
        flags |= os.O_RDWR if base & rights.FD_READ else os.O_WRONLY
    try:
        if where.readonly and (creating or flags & os.O_TRUNC or base & rights.FD_WRITE):
            opened = _open_unchanged(where, name, flags)
        else:
            opened = look_up(where, name, flags, 0o666 if creating else 0)
    except OSError as error:
        if flags & (os.O_NOFOLLOW | os.O_EXCL):
            raise
        own = own_links.own(numbered, where, name, error)
        if flags & os.O_DIRECTORY and own.kind != DIRECTORY:
            raise failure(linux.ENOTDIR) from None
        return own_links.again(own, base, inheriting, emptied=bool(flags & os.O_TRUNC))

    try:
        kind = filetype(os.fstat(opened).st_mode)
        return Descriptor(
            opened,
            kind,
            base & applicable(opened, kind),
            inheriting if kind == DIRECTORY else 0,
            readonly=where.readonly,
            confined=where.confined,
        )
    except BaseException:
        os.close(opened)
        raise


def _open_unchanged(directory: Descriptor, name: bytes, flags: int) -> int:
    """Open below a read-only directory as Linux does on a read-only filesystem.

    EROFS answers only what would change something: creating what exists is opening it, and neither
    a device nor a pipe is changed by writing.
    """
    creating, exclusive = flags & os.O_CREAT, flags & os.O_CREAT and flags & os.O_EXCL
    unchanging = flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)
    try:
        opened = look_up(directory, name, os.O_PATH | os.O_NOFOLLOW if exclusive else unchanging)
    except FileNotFoundError:
        raise failure(linux.EROFS if creating else linux.ENOENT) from None
    if exclusive:
        os.close(opened)
        raise failure(linux.EEXIST)
    changing = flags & os.O_TRUNC or flags & os.O_ACCMODE != os.O_RDONLY
    if changing and filetype(os.fstat(opened).st_mode) in (DIRECTORY, REGULAR_FILE):
        os.close(opened)
        raise failure(linux.EROFS)
    return opened


def _may_create(directory: Descriptor, path: bytes) -> None:
    """Raise EROFS if nothing may be created there; as Linux does, EEXIST comes before that."""
    if not directory.readonly:
        return
    try:
        os.close(resolve(directory, path, follow=False))
    except FileNotFoundError:
        raise failure(linux.EROFS) from None
    raise failure(linux.EEXIST)


def create_directory_at(directory: Descriptor, path: bytes) -> None:
    """Create a directory."""
    directory.need(rights.PATH_CREATE_DIRECTORY)
    where, name = start(directory, path, creating=True)
    _may_create(where, name)
    with parent(where, name) as (holder, name):
        os.mkdir(name, 0o777, dir_fd=holder)


def remove_directory_at(directory: Descriptor, path: bytes) -> None:
    """Remove an empty directory."""
    directory.need(rights.PATH_REMOVE_DIRECTORY)
    where, name = start(directory, path)
    where.writable()
    with parent(where, name) as (holder, name):
        os.rmdir(name, dir_fd=holder)


def unlink_file_at(directory: Descriptor, path: bytes) -> None:
    """Remove the name of what is no directory."""
    directory.need(rights.PATH_UNLINK_FILE)
    where, name = start(directory, path)
    where.writable()
    with parent(where, name) as (holder, name):
        os.unlink(name, dir_fd=holder)


def rename_at(source: Descriptor, path: bytes, target: Descriptor, new_path: bytes) -> None:
    """Rename a file or directory, over an existing one if there is."""
    source.need(rights.PATH_RENAME_SOURCE)
    target.need(rights.PATH_RENAME_TARGET)
    source, old = start(source, path)
    target, new = start(target, new_path, creating=True)
    source.writable()
    target.writable()
    with parent(source, old) as (old_dir, old_name), parent(target, new) as (new_dir, new_name):
        os.rename(old_name, new_name, src_dir_fd=old_dir, dst_dir_fd=new_dir)


def link_at(
    source: Descriptor, path: bytes, target: Descriptor, new_path: bytes, *, follow: bool
) -> None:
    """Give a file another name. Only the name itself is linked, never what a symlink points to."""
    source.need(rights.PATH_LINK_SOURCE)
    target.need(rights.PATH_LINK_TARGET)
    if follow:  # the kernel would follow it out of the directory
        raise failure(linux.EINVAL)
    source, old = start(source, path)
    target, new = start(target, new_path, creating=True)
    source.writable()
    _may_create(target, new)
    with parent(source, old) as (old_dir, old_name), parent(target, new) as (new_dir, new_name):
        os.link(old_name, new_name, src_dir_fd=old_dir, dst_dir_fd=new_dir, follow_symlinks=False)


def symlink_at(points_to: bytes, directory: Descriptor, path: bytes) -> None:
    """Create a symlink. An absolute target is for who may use absolute paths in that place."""
    directory.need(rights.PATH_SYMLINK)
    where, name = start(directory, path, creating=True)
    _may_create(where, name)
    if points_to.startswith(b"/") and (where.confined or where.preopen is None):
        raise NotCapable
    with parent(where, name) as (holder, name):
        os.symlink(points_to, name, dir_fd=holder)


def read_link_at(numbered: Numbered, directory: Descriptor, path: bytes) -> bytes:
    """Return what a symlink points to."""
    directory.need(rights.PATH_READLINK)
    where, name = start(directory, path)
    return own_links.link(numbered, where, name) or _read_link(where, name)


def _read_link(directory: Descriptor, name: bytes) -> bytes:
    found = resolve(directory, name, follow=False)
    try:
        return os.readlink(b"", dir_fd=found)
    except FileNotFoundError:  # with an empty path the kernel says so of what is no symlink
        raise failure(linux.EINVAL) from None
    finally:
        os.close(found)


def attributes_at(
    numbered: Numbered, directory: Descriptor, path: bytes, *, follow: bool
) -> Attributes:
    """Return a file's attributes."""
    directory.need(rights.PATH_FILESTAT_GET)
    where, name = start(directory, path)
    try:
        found = resolve(where, name, follow=follow)
    except OSError as error:
        own = own_links.own(numbered, where, name, error)
        own.need(rights.FD_FILESTAT_GET)
        return attributes(os.fstat(own.fd), None if follow else SYMBOLIC_LINK)
    try:
        return attributes(os.fstat(found))
    finally:
        os.close(found)


def set_times_at(
    directory: Descriptor, path: bytes, access: Time, modification: Time, *, follow: bool
) -> None:
    """Set the times of access and modification."""
    directory.need(rights.PATH_FILESTAT_SET_TIMES)
    where, name = start(directory, path)
    where.writable()
    found = resolve(where, name, follow=follow)
    try:
        set_times(found, access, modification)
    finally:
        os.close(found)
