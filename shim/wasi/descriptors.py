"""The guest's descriptors: numbers of its own, each with rights, over the kernel's (library).

A guest names descriptors by their place in this table and can name nothing else, so descriptors of
the host that happen to be open are out of its reach.
"""

from __future__ import annotations

import fcntl
import heapq
import os
from typing import TYPE_CHECKING, Final

from shim.wasi import errno, rights
from shim.wasi.directory_stream import DirectoryStream
from shim.wasi.errno import Refused
from shim.wasi.filetypes import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    REGULAR_FILE,
    SOCKET_DGRAM,
    SOCKET_STREAM,
    UNKNOWN,
    filetype,
)

if TYPE_CHECKING:
    from _socket import socket

_RIGHTS: Final = {
    DIRECTORY: rights.DIRECTORY,
    SOCKET_STREAM: rights.SOCKET,
    SOCKET_DGRAM: rights.SOCKET,
    UNKNOWN: rights.STREAM,
}
_SEEKABLE: Final = (DIRECTORY, REGULAR_FILE, BLOCK_DEVICE)  # lacks the right, not the ability
_ACCESS: Final = {
    os.O_RDONLY: ~rights.FD_WRITE,
    os.O_WRONLY: ~rights.FD_READ,
    os.O_RDWR: -1,
}


def applicable(fd: int, kind: int) -> int:
    """Return the rights that make sense on this descriptor, whose filetype is `kind`."""
    if kind == CHARACTER_DEVICE and os.isatty(fd):
        # This is how libc's isatty knows a terminal.
        return rights.FILE & ~(rights.FD_SEEK | rights.FD_TELL)
    return _RIGHTS.get(kind, rights.FILE)


class Descriptor:
    """One open file, directory, stream or socket, and what the guest may do with it."""

    __slots__ = (
        "base",
        "confined",
        "cwd",
        "fd",
        "given_up",
        "inheriting",
        "kind",
        "preopen",
        "readonly",
        "sock",
        "stream",
    )

    def __init__(
        self,
        fd: int,
        kind: int,
        base: int,
        inheriting: int = 0,
        *,
        readonly: bool = False,
        confined: bool = True,
        preopen: bytes | None = None,
    ) -> None:
        self.fd = fd
        self.kind = kind  # filetype
        self.base = base  # rights of this descriptor
        self.given_up = 0  # rights that the guest has renounced by itself
        self.inheriting = inheriting  # the most that a descriptor opened through it may have
        self.readonly = readonly  # refuses changes with EROFS, and so does all opened through it
        self.confined = confined  # no path from here leads out; else see `resolution`
        self.preopen = preopen  # the guest's name for it
        self.cwd: Descriptor | None = None  # the working directory that lies over this one
        self.stream: DirectoryStream | None = None  # of a directory: what fd_readdir knows of it
        self.sock: socket | None = None

    def writable(self) -> None:
        """Raise EROFS if nothing may be changed through this descriptor."""
        if self.readonly:
            raise Refused(errno.ROFS)


def inherited(fd: int) -> Descriptor:
    """Describe a descriptor that was handed over open by what the kernel says of it."""
    kind = filetype(os.fstat(fd).st_mode)
    access = _ACCESS[fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE]
    descriptor = Descriptor(fd, kind, applicable(fd, kind) & access)
    if kind == SOCKET_STREAM:
        import _socket

        descriptor.sock = _socket.socket(fileno=fd)
        if descriptor.sock.type == _socket.SOCK_DGRAM:
            descriptor.kind = SOCKET_DGRAM
    return descriptor


def stdio(fd: int) -> Descriptor:
    """Describe descriptor 0, 1 or 2.

    The pipes of a container are open for both directions, so that neither end depends on the other
    being there. The guest gets the one that is meant: it must not read its own output.
    """
    descriptor = inherited(fd)
    if descriptor.kind == UNKNOWN:
        descriptor.base &= ~(rights.FD_READ if fd else rights.FD_WRITE)
    return descriptor


class Table:
    """Descriptors by the guest's numbers; a new one gets the lowest that is free, as in POSIX."""

    __slots__ = ("_free", "opened")

    def __init__(self) -> None:
        self.opened: dict[int, Descriptor] = {}
        self._free: list[
            int
        ] = []  # heap of the numbers given back, all below len(open) + len(free)

    def add(self, descriptor: Descriptor) -> int:
        """Enter a descriptor; return its number."""
        number = heapq.heappop(self._free) if self._free else len(self.opened)
        self.opened[number] = descriptor
        return number

    def get(self, number: int) -> Descriptor:
        """Return the descriptor, or raise EBADF."""
        try:
            return self.opened[number]
        except KeyError:
            raise Refused(errno.BADF) from None

    def need(self, number: int, right: int) -> Descriptor:
        """Return the descriptor if it has all of `right`.

        Raises EBADF as POSIX does for reading what is write-only and the reverse, ESPIPE for a
        position in what has none, ENOTDIR for a path below what is no directory, otherwise
        ENOTCAPABLE.
        """
        try:
            descriptor = self.opened[number]
        except KeyError:
            raise Refused(errno.BADF) from None
        if descriptor.base & right != right:
            missing = right & ~descriptor.base
            if missing & (rights.FD_READ | rights.FD_WRITE):
                raise Refused(errno.BADF)
            if missing & (rights.FD_SEEK | rights.FD_TELL) and descriptor.kind not in _SEEKABLE:
                raise Refused(errno.SPIPE)
            if right & rights.DIRECTORY & ~rights.FILE and descriptor.kind != DIRECTORY:
                raise Refused(errno.NOTDIR)
            raise Refused(errno.NOTCAPABLE)
        return descriptor

    def close(self, number: int) -> None:
        """Close a descriptor; its number may be given out again."""
        descriptor = self.get(number)
        del self.opened[number]
        heapq.heappush(self._free, number)
        _release(descriptor)

    def renumber(self, source: int, target: int) -> None:
        """Move a descriptor over another one, which is closed."""
        moved, replaced = self.get(source), self.get(target)
        if source == target:
            return
        del self.opened[source]
        heapq.heappush(self._free, source)
        self.opened[target] = moved
        _release(replaced)


def _release(descriptor: Descriptor) -> None:
    if descriptor.sock is not None:
        descriptor.sock.detach()
    if descriptor.cwd is not None:
        _release(descriptor.cwd)
    os.close(descriptor.fd)
