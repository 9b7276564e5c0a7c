"""A module's bytes: their digest, and a copy that is held still. A library.

A module is named by its digest, and its file may be written by somebody else while we read it. For
what the cache has, that is nothing to care about: an artifact is what its digest says, whatever the
file becomes. But what is compiled must be what was hashed, or the code of one content would be kept
under the name of another, for everybody. So that is copied to where nobody can change it, and the
copy is hashed.

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

_BLOCK: Final = 1 << 16
_F_ADD_SEALS: Final = 1033
_SEAL, _SHRINK, _GROW, _WRITE = 1, 2, 4, 8


def digest_now(fd: int, limit: int = MAX_MODULE) -> bytes:
    """Return the SHA-256 of a file, from its start, as it is read now.

    The file's own offset does not move. Raises OSError, EFBIG where there is more than `limit`
    bytes.
    """
    # Not mapped: who shortens a file ends those who look at it.
    size, hashed, block = 0, hashlib.sha256(), memoryview(bytearray(_BLOCK))
    while count := os.preadv(fd, [block], size):
        size += count
        if size > limit:
            raise _too_large(limit)
        hashed.update(block[:count])
    return hashed.digest()


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
            raise _too_large(limit)
        seal(copy)
        return copy, digest(copy, size)
    except BaseException:
        os.close(copy)
        raise


def _too_large(limit: int) -> OSError:
    return OSError(errno.EFBIG, f"module is larger than {limit} bytes")


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
