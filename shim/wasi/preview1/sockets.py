"""Sockets of preview 1: what can be done with one that is open (library; runs in the guest).

Preview 1 cannot make a socket. Where a guest's come from: `Program.grant` enters listeners, a
standard stream may be one, and `wasmedge` opens some.
"""

from __future__ import annotations

import os
from _socket import MSG_PEEK, MSG_TRUNC, MSG_WAITALL, socket
from typing import Final

from shim.wasi import rights
from shim.wasi.descriptors import Descriptor
from shim.wasi.filetypes import SOCKET_DGRAM, SOCKET_STREAM
from shim.wasi.preview1 import errno
from shim.wasi.preview1.abi import U32, Fd, Ptr, Size, host
from shim.wasi.preview1.errno import Refused
from shim.wasi.preview1.fds import NONBLOCK
from shim.wasi.preview1.program import Program

_PEEK: Final = 1  # riflags
_WAITALL: Final = 2
_NO_FLAGS: Final = b"\0\0"  # roflags, a u16
_TRUNCATED: Final = b"\1\0"
_RD: Final = 1  # sdflags
_WR: Final = 2

_CONNECTED: Final = rights.SOCKET & ~rights.SOCK_ACCEPT


def socket_of(program: Program, fd: int, right: int) -> tuple[Descriptor, socket]:
    """Return a descriptor that has `right`, and its socket; ENOTSOCK where it has none."""
    descriptor = program.descriptors.get(fd)
    if descriptor.kind not in (SOCKET_STREAM, SOCKET_DGRAM):
        raise Refused(errno.NOTSOCK)
    program.descriptors.need(fd, right)
    if descriptor.sock is None:
        descriptor.sock = socket(fileno=descriptor.fd)
    return descriptor, descriptor.sock


@host
def sock_accept(program: Program, fd: Fd, flags: U32, result: Ptr) -> None:
    """Accept a connection; only NONBLOCK may be asked for the new descriptor."""
    listener, sock = socket_of(program, fd, rights.SOCK_ACCEPT)
    if flags & ~NONBLOCK:
        raise Refused(errno.INVAL)
    program.memory.span(result, 4)  # a bad pointer must not cost a connection
    accepted, _peer = sock._accept()  # type: ignore[attr-defined]  # under socket.accept
    if flags:
        os.set_blocking(accepted, False)
    new = Descriptor(accepted, listener.kind, _CONNECTED)
    new.sock = socket(sock.family, sock.type, sock.proto, accepted)
    program.memory.write_u32(result, program.descriptors.add(new))


def receive(
    program: Program, sock: socket, iovecs: int, count: int, flags: int, size: int, out_flags: int
) -> tuple[str, int] | None:
    """Receive into guest memory; return the sender's address, if the kernel tells it."""
    if flags & ~(_PEEK | _WAITALL):
        raise Refused(errno.INVAL)
    memory = program.memory
    linux = (MSG_PEEK if flags & _PEEK else 0) | (MSG_WAITALL if flags & _WAITALL else 0)
    sender: tuple[str, int] | None
    got, _, received, sender = sock.recvmsg_into(memory.buffers(iovecs, count), 0, linux)
    memory.write(out_flags, _TRUNCATED if received & MSG_TRUNC else _NO_FLAGS)
    memory.write_u32(size, got)
    return sender


@host
def sock_recv(
    program: Program, fd: Fd, iovecs: Ptr, count: Size, flags: U32, size: Ptr, out_flags: Ptr
) -> None:
    """Receive into guest memory."""
    _, sock = socket_of(program, fd, rights.FD_READ)
    receive(program, sock, iovecs, count, flags, size, out_flags)


@host
def sock_send(program: Program, fd: Fd, iovecs: Ptr, count: Size, flags: U32, size: Ptr) -> None:
    """Send from guest memory."""
    _, sock = socket_of(program, fd, rights.FD_WRITE)
    if flags:
        raise Refused(errno.INVAL)
    # EPIPE never becomes a signal: Python ignores SIGPIPE, and the guest has no other way to it.
    program.memory.write_u32(size, sock.sendmsg(program.memory.buffers(iovecs, count)))


@host
def sock_shutdown(program: Program, fd: Fd, how: U32) -> None:
    """End one direction of a connection, or both."""
    _, sock = socket_of(program, fd, rights.SOCK_SHUTDOWN)
    if how not in (_RD, _WR, _RD | _WR):
        raise Refused(errno.INVAL)
    sock.shutdown(how - 1)
