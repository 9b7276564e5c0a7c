"""Sockets of 0.2 and 0.3: what they may do when, and their options (library; runs in the guest).

They raise OSError with the numbers that Linux has for the same: EISCONN and ENOTCONN in a state
that does not allow it, EINVAL for an address or a value that is none, EAGAIN where it would block.
None of them blocks.
"""

from __future__ import annotations

import ctypes
import errno as linux
import os
from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    IP_TTL,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_UNICAST_HOPS,
    IPV6_V6ONLY,
    MSG_DONTWAIT,
    SHUT_RD,
    SHUT_RDWR,
    SHUT_WR,
    SO_ERROR,
    SO_KEEPALIVE,
    SO_RCVBUF,
    SO_REUSEADDR,
    SO_SNDBUF,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    inet_pton,
    socket,
)
from typing import Any, Final

from shim.wasi import rights
from shim.wasi.descriptors import Descriptor
from shim.wasi.errors import failure
from shim.wasi.filetypes import SOCKET_DGRAM, SOCKET_STREAM
from shim.wasi.program import Program
from shim.wasi.words import Sockaddr

RECEIVE: Final = SHUT_RD
SEND: Final = SHUT_WR
BOTH: Final = SHUT_RDWR

_BACKLOG: Final = 128
_SECOND: Final = 1_000_000_000
_MOST_SECONDS: Final = 32767  # of Linux's keep-alive times
_MOST_PROBES: Final = 127
_MOST: Final = (1 << 31) - 1
_DATAGRAM: Final = 65535
_MAPPED: Final = bytes(10) + b"\xff\xff"
_LOCAL: Final = bytes(15) + b"\1"
_FAILED: Final = (  # of the connection, and not of accept(2)
    *(linux.ECONNRESET, linux.ENETRESET, linux.EHOSTUNREACH, linux.EHOSTDOWN, linux.ENETDOWN),
    *(linux.ENETUNREACH, linux.EPROTO, linux.ENOPROTOOPT, linux.ENONET, linux.EOPNOTSUPP),
)

_connect: Any = ctypes.CDLL(None, use_errno=True).connect
_connect.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_UNSPEC: Final = AF_UNSPEC.to_bytes(16, "little")  # a struct sockaddr


class Socket:
    """What sockets of TCP and UDP have in common: a descriptor, a family and options."""

    def __init__(self, sock: socket, kind: int) -> None:
        self.sock = sock
        self.family = sock.family
        self.descriptor = Descriptor(sock.fileno(), kind, rights.SOCKET)
        self.descriptor.sock = sock
        self.descriptor.nonblocking = True
        self.bound = False
        self._hops = (
            (IPPROTO_IP, IP_TTL) if self.family == AF_INET else (IPPROTO_IPV6, IPV6_UNICAST_HOPS)
        )

    def close(self) -> None:
        """Let go of the descriptor."""
        self.descriptor.close()

    def _option(self, level: int, name: int) -> int:
        return self.sock.getsockopt(level, name)

    def hop_limit(self) -> int:
        """Return how many hops a packet may take."""
        return self._option(*self._hops)

    def set_hop_limit(self, value: int) -> None:
        """Set it."""
        if not value:
            raise failure(linux.EINVAL)
        self.sock.setsockopt(*self._hops, value)

    def receive_buffer_size(self) -> int:
        """Return the size of the buffer; Linux's includes as much again for itself."""
        return self._option(SOL_SOCKET, SO_RCVBUF) // 2

    def set_receive_buffer_size(self, value: int) -> None:
        """Set it."""
        self._set_buffer(SO_RCVBUF, value)

    def send_buffer_size(self) -> int:
        """Return the size of the buffer; Linux's includes as much again for itself."""
        return self._option(SOL_SOCKET, SO_SNDBUF) // 2

    def set_send_buffer_size(self, value: int) -> None:
        """Set it."""
        self._set_buffer(SO_SNDBUF, value)

    def _set_buffer(self, option: int, value: int) -> None:
        if not value:
            raise failure(linux.EINVAL)
        self.sock.setsockopt(SOL_SOCKET, option, min(value, _MOST // 2))

    def _bind(self, address: Sockaddr) -> None:
        if self.bound:
            raise failure(linux.EISCONN)
        self.sock.bind(address)
        self.bound = True

    def _fits(self, address: Sockaddr) -> bytes:
        """Return the bytes of an address. Raises EINVAL for one of another family.

        The families do not mix: neither mapped addresses nor those once meant for compatibility.
        """
        if (AF_INET if len(address) == 2 else AF_INET6) != self.family:
            raise failure(linux.EINVAL)
        packed = inet_pton(self.family, address[0])
        if self.family == AF_INET6 and (
            packed.startswith(_MAPPED)
            or (packed.startswith(bytes(12)) and packed not in (bytes(16), _LOCAL))
        ):
            raise failure(linux.EINVAL)
        return packed

    def _remote(self, address: Sockaddr) -> bytes:
        """Return the bytes of an address that something can be sent to."""
        packed = self._fits(address)
        if not any(packed) or not address[1]:
            raise failure(linux.EINVAL)
        return packed

    def local_address(self) -> Sockaddr:
        """Return the socket's own address."""
        if not self.bound:
            raise failure(linux.ENOTCONN)
        found: Sockaddr = self.sock.getsockname()
        return found


def _unicast(packed: bytes) -> None:
    if packed[0] == 0xFF if len(packed) == 16 else 224 <= packed[0] < 240 or packed == b"\xff" * 4:
        raise failure(linux.EINVAL)


def _opened(family: int, kind: int) -> socket:
    sock = socket(family, kind | SOCK_NONBLOCK)
    if family == AF_INET6:
        sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
    return sock


class TcpSocket(Socket):
    """A socket of TCP, from its making to a listener or a connection.

    Without a network it may still become a listener that was granted, by binding to its address.
    """

    def __init__(self, program: Program, sock: socket, state: str = "new") -> None:
        super().__init__(sock, SOCKET_STREAM)
        self._program = program
        self.state = state  # new, listening, connecting, connected, closed
        self.backlog = _BACKLOG
        self.bound = state != "new"

    @classmethod
    def open(cls, program: Program, family: int) -> TcpSocket:
        """Make a socket. Raises `NotCapable` if there is to be no network."""
        if not program.listeners:
            program.need_network()
        return cls(program, _opened(family, SOCK_STREAM))

    def _need(self, *states: str) -> None:
        if self.state not in states:
            raise failure(linux.EISCONN)

    def bind(self, address: Sockaddr) -> None:
        """Give it an address of its own. TIME_WAIT on it does not matter."""
        self._need("new")
        if self.bound:
            raise failure(linux.EISCONN)
        _unicast(self._fits(address))
        if self._take_granted(address):
            return
        self._program.need_network()
        self.sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        self._bind(address)

    def _take_granted(self, address: Sockaddr) -> bool:
        """Become the listener that was granted with this address, if one was."""
        for listener in self._program.listeners:
            if listener.sock is not None and listener.sock.getsockname() == address:
                os.dup2(listener.fd, self.sock.fileno(), inheritable=False)
                self.sock.setblocking(False)
                self.bound = True
                return True
        return False

    def start_connect(self, address: Sockaddr) -> None:
        """Begin to connect."""
        self._need("new")
        self._program.need_network()
        _unicast(self._remote(address))
        error = self.sock.connect_ex(address)
        if error not in (0, linux.EINPROGRESS):
            self.state = "closed"
            raise failure(error)
        self.state = "connecting"
        self.bound = True

    def finish_connect(self) -> None:
        """See a connection through. Raises EAGAIN while it is not there; the caller has waited."""
        error = self._option(SOL_SOCKET, SO_ERROR)
        if error:
            self.state = "closed"
            raise failure(error)
        try:
            self.sock.getpeername()
        except OSError as lacking:
            if lacking.errno != linux.ENOTCONN:
                raise
            raise failure(linux.EAGAIN) from None
        self.state = "connected"

    def listen(self) -> None:
        """Accept connections from now on."""
        self._need("new")
        if not self.bound:
            self._program.need_network()
        self.sock.listen(self.backlog)
        self.state, self.bound = "listening", True

    def accept(self) -> TcpSocket:
        """Return the next connection. Raises EAGAIN if there is none."""
        if self.state != "listening":
            raise failure(linux.ENOTCONN)
        try:
            fd, _peer = self.sock._accept()  # type: ignore[attr-defined]  # under socket.accept
        except OSError as error:
            if error.errno in _FAILED:
                raise failure(linux.ECONNABORTED) from None
            raise
        os.set_blocking(fd, False)
        made = socket(self.sock.family, self.sock.type, self.sock.proto, fd)
        return TcpSocket(self._program, made, "connected")

    def remote_address(self) -> Sockaddr:
        """Return the peer's address."""
        if self.state != "connected":
            raise failure(linux.ENOTCONN)
        found: Sockaddr = self.sock.getpeername()
        return found

    def shutdown(self, how: int) -> None:
        """End one direction of a connection, or both."""
        if self.state != "connected":
            raise failure(linux.ENOTCONN)
        self.sock.shutdown(how)

    def set_backlog(self, value: int) -> None:
        """Set how many connections may wait; of a listener at once."""
        if not value:
            raise failure(linux.EINVAL)
        self._need("new", "listening")
        self.backlog = min(value, _MOST)
        if self.state == "listening":
            self.sock.listen(self.backlog)

    def keep_alive_enabled(self) -> bool:
        """Tell whether an idle connection is asked for a sign of life."""
        return bool(self._option(SOL_SOCKET, SO_KEEPALIVE))

    def set_keep_alive_enabled(self, value: bool) -> None:
        """Set it."""
        self.sock.setsockopt(SOL_SOCKET, SO_KEEPALIVE, value)

    def keep_alive_idle_time(self) -> int:
        """Return after how long, in ns."""
        return self._option(IPPROTO_TCP, TCP_KEEPIDLE) * _SECOND

    def set_keep_alive_idle_time(self, value: int) -> None:
        """Set it, in ns; Linux counts in seconds."""
        self.sock.setsockopt(IPPROTO_TCP, TCP_KEEPIDLE, _seconds(value))

    def keep_alive_interval(self) -> int:
        """Return the time from one question to the next, in ns."""
        return self._option(IPPROTO_TCP, TCP_KEEPINTVL) * _SECOND

    def set_keep_alive_interval(self, value: int) -> None:
        """Set it, in ns; Linux counts in seconds."""
        self.sock.setsockopt(IPPROTO_TCP, TCP_KEEPINTVL, _seconds(value))

    def keep_alive_count(self) -> int:
        """Return how many questions may be left without an answer."""
        return self._option(IPPROTO_TCP, TCP_KEEPCNT)

    def set_keep_alive_count(self, value: int) -> None:
        """Set it."""
        if not value:
            raise failure(linux.EINVAL)
        self.sock.setsockopt(IPPROTO_TCP, TCP_KEEPCNT, min(value, _MOST_PROBES))


def _seconds(value: int) -> int:
    if not value:
        raise failure(linux.EINVAL)
    return min(max(-(-value // _SECOND), 1), _MOST_SECONDS)


class UdpSocket(Socket):
    """A socket of UDP; connected, it knows one peer."""

    def __init__(self, sock: socket) -> None:
        super().__init__(sock, SOCKET_DGRAM)
        self.peer: Sockaddr | None = None

    @classmethod
    def open(cls, program: Program, family: int) -> UdpSocket:
        """Make a socket. Raises `NotCapable` if there is to be no network."""
        program.need_network()
        return cls(_opened(family, SOCK_DGRAM))

    def bind(self, address: Sockaddr) -> None:
        """Give it an address of its own."""
        self._fits(address)
        self._bind(address)

    def connect(self, address: Sockaddr) -> None:
        """Send to one peer only, and receive from it only."""
        self._remote(address)
        if self.peer is not None:  # or the address would stay, by which there may be no route
            self.disconnect()
        self.sock.connect(address)
        self.peer = self.sock.getpeername()
        self.bound = True

    def disconnect(self) -> None:
        """Send to anybody again."""
        if self.peer is None:
            raise failure(linux.ENOTCONN)
        port = self.sock.getsockname()[1]
        if _connect(self.sock.fileno(), _UNSPEC, len(_UNSPEC)) < 0:
            raise failure(ctypes.get_errno())
        self.peer = None
        if self.sock.getsockname()[1] != port:  # the kernel takes back what it has chosen itself
            self.sock.bind(("", port))

    def remote_address(self) -> Sockaddr:
        """Return the peer's address."""
        if self.peer is None:
            raise failure(linux.ENOTCONN)
        return self.peer

    def send(self, data: Any, address: Sockaddr | None) -> None:
        """Send a datagram, to the peer if there is one. Raises EAGAIN if there is no room."""
        if len(data) > _DATAGRAM:
            raise failure(linux.EMSGSIZE)
        if address is not None:
            self._remote(address)
        if self.peer is None:
            if address is None:
                raise failure(linux.EINVAL)
            self.sock.sendto(data, MSG_DONTWAIT, address)
            self.bound = True
            return
        if address is not None and not _same(address, self.peer):
            raise failure(linux.EINVAL)
        self.sock.send(data, MSG_DONTWAIT)

    def receive(self) -> tuple[bytes, Sockaddr]:
        """Return the next datagram and who has sent it. Raises EAGAIN if there is none.

        What had been there before the socket was connected may be from others.
        """
        if not self.bound:
            raise failure(linux.ENOTCONN)
        while True:
            data, sender = self.sock.recvfrom(_DATAGRAM, MSG_DONTWAIT)
            if self.peer is None or _same(sender, self.peer):
                return data, sender


def _same(one: Sockaddr, other: Sockaddr) -> bool:
    return one[:2] == other[:2]
