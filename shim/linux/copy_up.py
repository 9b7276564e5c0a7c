"""Copying a directory of an image into the tmpfs that is about to cover it (library).

The option `tmpcopyup`. The directory may be hostile: nothing in it is opened through a symlink, and
what is not a file, directory, symlink or FIFO is not copied.
"""

from __future__ import annotations

import os
import stat
from typing import Final

_CHUNK: Final = 1 << 20
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH: Final = 200  # each level is an open directory on both sides


def copy(source: int, target: int, depth: int = 0) -> None:
    """Copy one directory to another, with owners, modes and times, its own among them.

    Raises OSError: ENOSPC where the tmpfs is too small.
    """
    if depth > _DEPTH:
        raise OSError(0, f"more than {_DEPTH} directories inside each other")
    with os.scandir(source) as entries:
        for entry in entries:
            _copy(source, target, entry.name, depth)
    _like(target, os.fstat(source))


def _copy(source: int, target: int, name: str, depth: int) -> None:
    found = os.stat(name, dir_fd=source, follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        os.mkdir(name, 0o700, dir_fd=target)
        _between(source, target, name, _DIRECTORY, _DIRECTORY, depth)
    elif stat.S_ISREG(found.st_mode):
        # Not blocking: somebody may have put a FIFO there since.
        reading = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        writing = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        _between(source, target, name, reading, writing, depth)
    elif stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    elif stat.S_ISFIFO(found.st_mode):
        os.mkfifo(name, 0o600, dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target)
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)


def _between(source: int, target: int, name: str, reading: int, writing: int, depth: int) -> None:
    ours = os.open(name, reading, dir_fd=source)
    try:
        theirs = os.open(name, writing, 0o600, dir_fd=target)
        try:
            found = os.fstat(ours)
            if stat.S_ISDIR(found.st_mode):
                copy(ours, theirs, depth + 1)
            elif stat.S_ISREG(found.st_mode):
                while os.sendfile(theirs, ours, None, _CHUNK):
                    pass
                _like(theirs, found)
        finally:
            os.close(theirs)
    finally:
        os.close(ours)


def _like(fd: int, found: os.stat_result) -> None:
    os.fchown(fd, found.st_uid, found.st_gid)
    os.fchmod(fd, stat.S_IMODE(found.st_mode))  # after the owner: a change of that takes bits away
    os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))
