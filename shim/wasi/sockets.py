"""Sockets that were handed over open (library; runs in the guest). Preview 1 cannot make any."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from shim.wasi import descriptors, errno, rights
from shim.wasi.abi import U32, Fd, Ptr, Size, host
from shim.wasi.descriptors import Descriptor
from shim.wasi.errno import Refused
from shim.wasi.fds import NONBLOCK
from shim.wasi.program import Program

if TYPE_CHECKING:
    from _socket import socket

_PEEK: Final = 1  # riflags
_WAITALL: Final = 2
_TRUNCATED: Final = 1  # roflags
_RD: Final = 1  # sdflags
_WR: Final = 2


def _socket_of(program: Program, fd: int, right: int) -> tuple[Descriptor, socket]:
    import _socket

    descriptor = program.descriptors.get(fd)
    if descriptor.kind not in (descriptors.SOCKET_STREAM, descriptors.SOCKET_DGRAM):
        raise Refused(errno.NOTSOCK)
    program.descriptors.need(fd, right)
    if descriptor.sock is None:  # accepted
        descriptor.sock = _socket.socket(fileno=descriptor.fd)
    return descriptor, descriptor.sock


@host
def sock_accept(program: Program, fd: Fd, flags: U32, result: Ptr) -> None:
    """Accept a connection; only NONBLOCK may be asked for the new descriptor."""
    listener, sock = _socket_of(program, fd, rights.SOCK_ACCEPT)
    if flags & ~NONBLOCK:
        raise Refused(errno.INVAL)
    accepted, _peer = sock._accept()  # type: ignore[attr-defined]  # under socket.accept
    os.set_blocking(accepted, not flags & NONBLOCK)
    new = Descriptor(accepted, listener.kind, rights.SOCKET & ~rights.SOCK_ACCEPT)
    program.memory.write_u32(result, program.descriptors.add(new))


@host
def sock_recv(
    program: Program, fd: Fd, iovecs: Ptr, count: Size, flags: U32, size: Ptr, out_flags: Ptr
) -> None:
    """Receive into guest memory."""
    import _socket

    _, sock = _socket_of(program, fd, rights.FD_READ)
    if flags & ~(_PEEK | _WAITALL):
        raise Refused(errno.INVAL)
    linux = (_socket.MSG_PEEK if flags & _PEEK else 0) | (
        _socket.MSG_WAITALL if flags & _WAITALL else 0
    )
    got, _, received, _ = sock.recvmsg_into(program.memory.buffers(iovecs, count), 0, linux)
    truncated = _TRUNCATED if received & _socket.MSG_TRUNC else 0
    program.memory.write(out_flags, truncated.to_bytes(2, "little"))
    program.memory.write_u32(size, got)


@host
def sock_send(program: Program, fd: Fd, iovecs: Ptr, count: Size, flags: U32, size: Ptr) -> None:
    """Send from guest memory."""
    _, sock = _socket_of(program, fd, rights.FD_WRITE)
    if flags:
        raise Refused(errno.INVAL)
    program.memory.write_u32(size, sock.sendmsg(program.memory.buffers(iovecs, count)))


@host
def sock_shutdown(program: Program, fd: Fd, how: U32) -> None:
    """End one direction of a connection, or both."""
    _, sock = _socket_of(program, fd, rights.SOCK_SHUTDOWN)
    if how not in (_RD, _WR, _RD | _WR):
        raise Refused(errno.INVAL)
    sock.shutdown(how - 1)
