"""The guest's descriptors: each with rights, over one of the kernel's (library; in the guest)."""

from __future__ import annotations

import errno as linux
import fcntl
import os
from typing import TYPE_CHECKING, Final

from shim.wasi import rights
from shim.wasi.errors import NotCapable, failure
from shim.wasi.filetypes import (
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILES,
    SOCKET_DGRAM,
    SOCKET_STREAM,
    UNKNOWN,
    filetype,
)

if TYPE_CHECKING:
    from _socket import socket

    from shim.wasi.directory_stream import DirectoryStream

_RIGHTS: Final = {
    DIRECTORY: rights.DIRECTORY,
    SOCKET_STREAM: rights.SOCKET,
    SOCKET_DGRAM: rights.SOCKET,
    FIFO: rights.STREAM,
    UNKNOWN: rights.STREAM,
}
_SEEKABLE: Final = (DIRECTORY, *FILES)  # lacks the right, not the ability
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
    """One open file, directory, stream or socket, and what the guest may do with it.

    Who keeps it says so by `share`, and no longer by `close`; the last one closes it.
    """

    __slots__ = (
        "base",
        "confined",
        "cwd",
        "fd",
        "flags",
        "given_up",
        "inheriting",
        "kind",
        "nonblocking",
        "preopen",
        "readonly",
        "sock",
        "stream",
        "users",
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
        self.stream: DirectoryStream[bytes] | None = None  # a directory as preview 1 reads it
        self.sock: socket | None = None
        self.flags: frozenset[str] | None = None  # as 0.2 and 0.3 have opened it with
        self.nonblocking = False  # is ours alone, and never blocks
        self.users = 1

    def writable(self) -> None:
        """Raise EROFS if nothing may be changed through this descriptor."""
        if self.readonly:
            raise failure(linux.EROFS)

    def need(self, right: int) -> None:
        """Raise what `refusal` returns if it lacks any of `right`."""
        if self.base & right != right:
            raise self.refusal(right)

    def refusal(self, right: int) -> Exception:
        """Return why it cannot be used for all of `right`.

        EBADF as POSIX has it for reading what is write-only and the reverse, ESPIPE for a position
        in what has none, ENOTDIR for a path below what is no directory, otherwise `NotCapable`.
        """
        missing = right & ~self.base
        if missing & (rights.FD_READ | rights.FD_WRITE):
            return failure(linux.EBADF)
        if missing & (rights.FD_SEEK | rights.FD_TELL) and self.kind not in _SEEKABLE:
            return failure(linux.ESPIPE)
        if right & rights.DIRECTORY & ~rights.FILE and self.kind != DIRECTORY:
            return failure(linux.ENOTDIR)
        return NotCapable()

    def share(self) -> Descriptor:
        """Return it for one more to keep."""
        self.users += 1
        return self

    def close(self) -> None:
        """Close it, unless somebody else keeps it."""
        self.users -= 1
        if self.users:
            return
        if self.sock is not None:
            self.sock.detach()
        if self.cwd is not None:
            self.cwd.close()
        os.close(self.fd)


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
    if descriptor.kind == FIFO:
        descriptor.base &= ~(rights.FD_READ if fd else rights.FD_WRITE)
    return descriptor
