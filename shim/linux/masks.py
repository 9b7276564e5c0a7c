"""Paths of a container that it may not see, or not change (library).

Mostly in /proc and /sys: files of the kernel that belong to no namespace. All of it from outside,
before the root is changed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from shim.linux import security_labels
from shim.linux.inside import magic, open_inside, reopen_mounted
from shim.linux.mounts import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    mount,
    seal,
    umount,
)

_MISSING: Final = (errno.ENOENT, errno.ENOTDIR)
_EMPTY: Final = "size=4k,nr_inodes=2,mode=755"
_NULL: Final = os.makedev(1, 3)


def mask(root: int, paths: Iterable[str], mount_label: str = "") -> None:
    """Hide `linux.maskedPaths` inside `root`: directories are empty, files are /dev/null.

    What is missing needs no mask. Needs the host's /dev and /proc. Raises OSError with the path.
    """
    null = -1
    try:
        for path in paths:
            with _naming("linux.maskedPaths", path):
                below = _find(root, path)
                if below < 0:
                    continue
                try:
                    if stat.S_ISDIR(os.fstat(below).st_mode):
                        data = security_labels.mount_data("tmpfs", _EMPTY, mount_label)
                        flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
                        mount("tmpfs", magic(below), "tmpfs", flags, data)
                    else:
                        if null < 0:
                            null = _open_null()
                        mount(magic(null), magic(below), None, MS_BIND)
                        # It is the host's, whose mode and owner are not the container's to change.
                        _seal(root, path, below, os.fstat(null))
                finally:
                    os.close(below)
    finally:
        if null >= 0:
            os.close(null)


def make_readonly(root: int, paths: Iterable[str]) -> None:
    """Make `linux.readonlyPaths` inside `root` read-only, with their other flags as they are.

    What is missing needs nothing. Needs /proc. Raises OSError with the path.
    """
    for path in paths:
        with _naming("linux.readonlyPaths", path):
            below = _find(root, path)
            if below < 0:
                continue
            try:
                mount(magic(below), magic(below), None, MS_BIND | MS_REC)
                _seal(root, path, below, os.fstat(below))
            finally:
                os.close(below)


def _seal(root: int, path: str, below: int, expected: os.stat_result) -> None:
    """Make read-only what was just mounted on `below`, or unmount it again."""
    above = reopen_mounted(root, path, below, expected)
    try:
        seal(above)
    except OSError:
        with suppress(OSError):
            umount(magic(above), MNT_DETACH)
        raise
    finally:
        os.close(above)


@contextmanager
def _naming(field: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise OSError(e.errno, f"{field}: {e.strerror}", path) from e


def _find(root: int, path: str) -> int:
    try:
        return open_inside(root, path)
    except OSError as e:
        if e.errno in _MISSING:
            return -1
        raise


def _open_null() -> int:
    fd = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _NULL:
        os.close(fd)
        raise OSError(errno.ENODEV, "the host's /dev/null is something else")
    return fd
