"""A module's bytes, held still. A library.

A module is named by its digest, and its file may be written by somebody else while we read it: a
digest of one content with the code of another would poison the cache for everybody. So the file is
copied to where nobody can change it, and the copy is hashed.

Import this before any fork: libcrypto reads its configuration, which can name libraries to load,
when `hashlib` is imported, and must not find one in a container's root.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from typing import Final

MAX_MODULE: Final = 512 << 20
"""Bytes; larger ones are refused before they fill the memory of whoever takes the snapshot."""

_F_ADD_SEALS: Final = 1033
_SEAL, _SHRINK, _GROW, _WRITE = 1, 2, 4, 8


def snapshot(fd: int, limit: int = MAX_MODULE) -> tuple[int, bytes]:
    """Copy a file, from its start, to a sealed memfd; return that and the SHA-256 of its content.

    The file's own offset does not move. Raises OSError, EFBIG where there is more than `limit`
    bytes.
    """
    copy = os.memfd_create("module", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        size = 0
        while count := os.sendfile(copy, fd, size, limit + 1 - size):
            size += count
        if size > limit:
            raise OSError(errno.EFBIG, f"module is larger than {limit} bytes")
        seal(copy)
        return copy, digest(copy, size)
    except BaseException:
        os.close(copy)
        raise


def seal(memfd: int) -> None:
    """Make the content of a memfd final, for its creator too."""
    fcntl.fcntl(memfd, _F_ADD_SEALS, _SEAL | _SHRINK | _GROW | _WRITE)


def digest(fd: int, length: int) -> bytes:
    """Return the SHA-256 of the first `length` bytes of a file that does not change."""
    with contents(fd, length) as data:
        return hashlib.sha256(data).digest()


def contents(fd: int, length: int) -> mmap.mmap | memoryview:
    """Map the first `length` bytes of a file that does not change, read-only."""
    if length == 0:
        return memoryview(b"")  # which mmap(2) refuses
    # Private: before Linux 6.7 a sealed memfd could not be mapped shared, not even to read it.
    return mmap.mmap(fd, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
