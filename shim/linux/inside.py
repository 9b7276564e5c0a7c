"""Paths inside a root that may be hostile, as descriptors (library).

Symlinks are an image's, so the kernel follows them as if the root was the root already, and no
string of ours decides where a path leads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from shim.linux.credentials import CAPABILITIES, Identity, acting_as
from shim.linux.files import (
    AT_EMPTY_PATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    openat2,
    read_small,
)
from shim.linux.libc import NUMBERS, fail, system_call

_INSIDE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_STATX_MNT_ID: Final = 0x1000
_STX_MNT_ID: Final = 0x90  # where it is in a struct statx, which begins with the mask
_STATX_SIZE: Final = 256
_SYMLINKS: Final = 40  # as many as the kernel follows in one path

_statx = system_call(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


class Owner(NamedTuple):
    """Whose the directories and files are that have to be created."""

    uid: int
    gid: int


def open_inside(root: int, path: str, flags: int = os.O_PATH, resolve: int = 0) -> int:
    """Open a path inside the directory `root`, close-on-exec. Raises OSError (openat2(2))."""
    return openat2(root, path, flags, resolve=_INSIDE | resolve)


def open_directory(root: int, path: str) -> int:
    """Open a directory inside `root`, O_PATH: whether it may be listed its user will find out."""
    return open_inside(root, path, os.O_PATH | os.O_DIRECTORY)


def read_inside(root: int, path: str, proc: int) -> int:
    """Open a regular file inside `root` for reading, close-on-exec; `proc` is the host's /proc.

    What it is, is known before it is opened: to open a device can be a deed in itself. Raises
    OSError, for anything else than a regular file too.
    """
    found = open_inside(root, path)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return os.open(f"self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    finally:
        os.close(found)


def create_inside(root: int, path: str, *, is_dir: bool, owner: Owner | None = None) -> int:
    """Open `path` inside `root`, O_PATH, after creating what is missing of it.

    That is directories, and at the end, unless `is_dir`, an empty file. Raises OSError: EINVAL for
    the root itself, ELOOP for too many symlinks.
    """
    if not _parts(path):
        raise OSError(errno.EINVAL, "destination is the root", path)
    try:
        return open_inside(root, path.lstrip("/"))
    except FileNotFoundError:
        return _open_made(root, path, is_dir, owner)


def split_inside(root: int, path: str, owner: Owner | None = None) -> tuple[int, str]:
    """Open the directory of `path` inside `root`, made if it is missing; and the name in it.

    The name itself may be anything, or nothing yet. Raises OSError as `create_inside` does.
    """
    *parents, name = _parts(path) or [".."]
    if name == "..":
        raise OSError(errno.EINVAL, "the path has no name at its end", path)
    parent = "/".join(parents)
    if not parent:
        return open_directory(root, "."), name
    return create_inside(root, parent, is_dir=True, owner=owner), name


def spelling(path: str) -> str:
    """Return the one spelling of a path inside a root: `/vol/`, `//vol` and `vol` are `/vol`."""
    return os.path.normpath(f"/{path.lstrip('/')}")


def is_below(path: str, directory: str) -> bool:
    """Whether a path inside a root is in a directory, or that itself, by their names alone."""
    path, directory = spelling(path), spelling(directory)
    return os.path.commonpath((path, directory)) == directory


def magic(fd: int | str) -> str:
    """The path by which a call that takes none but paths gets at a descriptor. Needs /proc."""
    return f"/proc/self/fd/{fd}"


def mount_id(fd: int) -> int:
    """Which mount a descriptor is on (statx(2)). Needs /proc before Linux 5.8. Raises OSError."""
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if _statx(NUMBERS["statx"], fd, b"", AT_EMPTY_PATH, _STATX_MNT_ID, found) < 0:
        fail("statx", f"fd {fd}")
    if struct.unpack_from("I", found)[0] & _STATX_MNT_ID:
        return int(struct.unpack_from("Q", found, _STX_MNT_ID)[0])
    info = read_small(f"/proc/self/fdinfo/{fd}").splitlines()
    return next(int(line.split()[1]) for line in info if line.startswith(b"mnt_id:"))


def reopen_mounted(root: int, path: str, below: int, expected: os.stat_result | None = None) -> int:
    """Open what was just mounted on `below`, which was found at `path`; O_PATH.

    Raises OSError EXDEV if it is not there, because somebody changed the path meanwhile; `expected`
    is what must be there now.
    """
    above = open_inside(root, path)
    arrived = mount_id(above) != mount_id(below)
    if not arrived or (expected and not os.path.samestat(os.fstat(above), expected)):
        os.close(above)
        raise OSError(errno.EXDEV, "mounted elsewhere: the path changed", path)
    return above


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _open_made(root: int, path: str, is_dir: bool, owner: Owner | None) -> int:
    todo = deque(_parts(path))
    done: list[str] = []
    symlinks = 0
    while todo:
        name = todo.popleft()
        if name == "..":
            del done[-1:]
            continue
        # One name at a time: neither mkdir nor O_EXCL follows a symlink, and the kernel vouches for
        # the directory. A symlink we follow ourselves, because its target may be missing, too.
        parent = open_directory(root, "/".join(done) or ".")
        try:
            link = _create(parent, name, is_dir=is_dir or bool(todo), owner=owner)
        finally:
            os.close(parent)
        if link is None:
            done.append(name)
            continue
        symlinks += 1
        if symlinks > _SYMLINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if link.startswith("/"):
            done.clear()
        todo.extendleft(reversed(_parts(link)))
    return open_inside(root, "/".join(done) or ".")


def _create(parent: int, name: str, *, is_dir: bool, owner: Owner | None) -> str | None:
    """Create `name` unless it exists; where it leads if it is a symlink."""
    try:
        with made_by(owner):
            if is_dir:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=parent))
    except FileExistsError:
        try:
            return os.readlink(name, dir_fd=parent)
        except OSError as e:
            if e.errno != errno.EINVAL:  # that is: no symlink
                raise
    return None


@contextmanager
def made_by(owner: Owner | None) -> Iterator[None]:
    """Let what is made in the block belong to `owner` from the beginning.

    To give it away afterwards would be to give what somebody may have put in its place. It also is
    the only way on a mount with mapped ids, where the host's root is nobody.
    """
    if owner is None or owner == (0, 0):
        yield
        return
    with acting_as(Identity(owner.uid, owner.gid, (), frozenset(CAPABILITIES))):
        yield
