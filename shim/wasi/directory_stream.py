"""A directory as numbered entries, from any number on (library; runs in the guest).

Numbers count the entries, since wasi-libc's telldir has 32 bits for one and the kernel's own
cookies need 64. A directory may be large, so of all that was read only the last part is
kept, and of each part before where it began.
"""

from __future__ import annotations

import ctypes
import errno as linux
import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

from shim.wasi.errors import failure
from shim.wasi.filetypes import filetype

_LINUX: Final = struct.Struct("=QqHB")  # struct linux_dirent64: inode, next, its size, type; name
_PART: Final = 32768  # what libc reads at a time

_getdents64 = ctypes.CDLL(None, use_errno=True).getdents64
_getdents64.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_getdents64.restype = ctypes.c_ssize_t


_Entry = TypeVar("_Entry")


class DirectoryStream(Generic[_Entry]):
    """A directory as far as it was read.

    `make` makes an entry of the number behind it, inode, filetype and name.

    What the kernel promises for its cookies holds here: what is neither created nor removed
    meanwhile is seen once.
    """

    __slots__ = ("_cookies", "_entries", "_fd", "_first", "_make", "_numbers")

    def __init__(self, fd: int, make: Callable[[int, int, int, bytearray], _Entry]) -> None:
        self._fd = fd
        self._make = make
        self._numbers = [0]  # of the first entry in each part, and in the one not yet read
        self._cookies = [0]  # the kernel's, for the same
        self._first = -1  # number of the first of
        self._entries: list[_Entry] = []  # the part read last

    def entries(self, number: int) -> Iterator[_Entry]:
        """Yield all entries behind the first `number` ones."""
        part = bisect_right(self._numbers, number) - 1
        if self._numbers[part] != self._first:
            os.lseek(self._fd, self._cookies[part], os.SEEK_SET)
            del self._numbers[part + 1 :], self._cookies[part + 1 :]
            self._read()
        while number - self._first >= len(self._entries):
            if not self._read():
                return
        for place in range(number - self._first, len(self._entries)):
            yield self._entries[place]
        while self._read():
            yield from self._entries

    def _read(self) -> bool:
        """Read the next part; tell whether there was one."""
        buffer = bytearray(_PART)
        size: int = _getdents64(self._fd, (ctypes.c_char * _PART).from_buffer(buffer), _PART)
        if size < 0:
            code = ctypes.get_errno()
            if code == linux.EBADF:  # O_PATH, because this user may not read it
                raise failure(linux.EACCES)
            if code != linux.ENOENT:  # removed meanwhile, hence empty
                raise failure(code)
            size = 0
        self._first = number = self._numbers[-1]
        self._entries = []
        make = self._make
        at = cookie = 0
        while at < size:
            inode, cookie, length, kind = _LINUX.unpack_from(buffer, at)
            start = at + _LINUX.size
            name = buffer[start : buffer.index(0, start)]
            if name == b"..":  # may be outside of what the guest may see
                inode = os.fstat(self._fd).st_ino
            number += 1
            # The types are those of `st_mode`, and 0 where a filesystem does not tell.
            self._entries.append(make(number, inode, filetype(kind << 12), name))
            at += length
        if size:
            self._numbers.append(number)
            self._cookies.append(cookie)
        return size > 0
