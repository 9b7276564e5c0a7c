"""wasi:sockets 0.3: TCP, UDP, names (library; runs in the guest)."""

from __future__ import annotations

import errno as linux
import select
from _socket import AF_INET, AF_INET6
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

from shim.component.host import Interface
from shim.component.streams import COMPLETED, DROPPED, AnyBuffer, Promise, Shared, SharedStream
from shim.component.types import U8, Own
from shim.wasi import resolver, sockets, words
from shim.wasi.errors import NotCapable
from shim.wasi.p2.network import declare_addresses
from shim.wasi.p2.options import BUFFERS, HOPS, KEEP_ALIVE, Address, Option, declare
from shim.wasi.p3.bytes import Reading, Writing, nothing
from shim.wasi.p3.clocks import TYPES as CLOCKS
from shim.wasi.program import Program
from shim.wasi.reactor import Reactor

Case = tuple[str, Any]

_ERRORS: Final = {
    **words.SOCKET_ERRORS,
    linux.EPIPE: "connection-broken",
    linux.EDESTADDRREQ: "invalid-argument",
    linux.EAFNOSUPPORT: "invalid-argument",
}
_SCARCE: Final = (linux.EMFILE, linux.ENFILE, linux.ENOBUFS, linux.ENOMEM)
_PATIENCE: Final = 100_000_000
"""Nanoseconds until a connection is asked for again that there was no room for."""


def _error(error: Exception) -> Case:
    if isinstance(error, OSError):
        label = _ERRORS.get(error.errno or 0)
        return ("other", error.strerror) if label is None else (label, None)
    if isinstance(error, NotCapable):
        return "access-denied", None
    raise error


class TcpSocket:
    """A socket, and which directions of its connection are in use."""

    __slots__ = ("received", "sent", "socket")

    def __init__(self, socket: sockets.TcpSocket) -> None:
        self.socket = socket
        self.sent = False
        self.received = False

    def close(self) -> None:
        """Close the socket; its streams go on for as long as they last."""
        self.socket.close()


class UdpSocket:
    """A socket."""

    __slots__ = ("socket",)

    def __init__(self, socket: sockets.UdpSocket) -> None:
        self.socket = socket

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


TYPES: Final = Interface("wasi:sockets/types", "0.3", errors=_error)
TYPES.use(CLOCKS, "duration")
TYPES.type(
    "error-code",
    "variant { access-denied, not-supported, invalid-argument, out-of-memory, timeout,"
    " invalid-state, address-not-bindable, address-in-use, remote-unreachable, connection-refused,"
    " connection-broken, connection-reset, connection-aborted, datagram-too-large,"
    " other(option<string>) }",
)
declare_addresses(TYPES)
_TCP: Final = Own(TYPES.resource("tcp-socket", TcpSocket.close))
TYPES.resource("udp-socket", UdpSocket.close)
_RESULT: Final = TYPES.parse("result<_, error-code>")


def _name_error(error: Exception) -> Case:
    if isinstance(error, resolver.NoSuchName):
        return "name-unresolvable", None
    if isinstance(error, resolver.TryAgain):
        return "temporary-resolver-failure", None
    if isinstance(error, NotCapable):
        return "access-denied", None
    if isinstance(error, OSError):
        return "other", error.strerror
    raise error


NAMES: Final = Interface("wasi:sockets/ip-name-lookup", "0.3", errors=_name_error)
NAMES.use(TYPES, "ip-address")
NAMES.type(
    "error-code",
    "variant { access-denied, invalid-argument, name-unresolvable, temporary-resolver-failure,"
    " permanent-resolver-failure, other(option<string>) }",
)

INTERFACES: Final = (TYPES, NAMES)

_SELF: Final = {"tcp": "self: borrow<tcp-socket>", "udp": "self: borrow<udp-socket>"}


def _method(
    kind: str, name: str, parameters: str, result: str, *, is_async: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a method of a socket."""
    all_ = ", ".join(filter(None, (_SELF[kind], parameters)))
    text = f"{'async ' * is_async}func({all_}) -> {result}"
    return TYPES.function(f"[method]{kind}-socket.{name}", text)


_NO_RESULT: Final = "result<_, error-code>"


@TYPES.function(
    "[static]tcp-socket.create",
    "func(address-family: ip-address-family) -> result<tcp-socket, error-code>",
)
def create_tcp(program: Program, family: str) -> TcpSocket:
    """Make a socket."""
    return TcpSocket(sockets.TcpSocket.open(program, words.FAMILIES[family]))


@TYPES.function(
    "[static]udp-socket.create",
    "func(address-family: ip-address-family) -> result<udp-socket, error-code>",
)
def create_udp(program: Program, family: str) -> UdpSocket:
    """Make a socket."""
    return UdpSocket(sockets.UdpSocket.open(program, words.FAMILIES[family]))


# What both have, alike.


def bind(program: Program, holder: TcpSocket | UdpSocket, address: Address) -> None:
    """Give a socket an address of its own."""
    holder.socket.bind(words.sockaddr(address))


for _kind in _SELF:
    _method(_kind, "bind", "local-address: ip-socket-address", _NO_RESULT)(bind)

declare(TYPES, "tcp-socket", (*BUFFERS, Option("hop-limit", "u8", *HOPS), *KEEP_ALIVE), "get-")
declare(TYPES, "udp-socket", (*BUFFERS, Option("unicast-hop-limit", "u8", *HOPS)), "get-")


# TCP.


@_method("tcp", "connect", "remote-address: ip-socket-address", _NO_RESULT, is_async=True)
async def connect_tcp(program: Program, tcp: TcpSocket, address: Address) -> None:
    """Connect."""
    tcp.socket.start_connect(words.sockaddr(address))
    await program.reactor.ready(tcp.socket.descriptor.fd, select.POLLOUT)
    tcp.socket.finish_connect()


@_method("tcp", "listen", "", "result<stream<tcp-socket>, error-code>")
def listen(program: Program, tcp: TcpSocket) -> Shared:
    """Return the connections that come from now on."""
    tcp.socket.listen()
    return _Accepting(program.reactor, tcp.socket).shared


class _Accepting:
    """The connections that come to a listener, which it keeps open."""

    def __init__(self, reactor: Reactor, listener: sockets.TcpSocket) -> None:
        self.shared = SharedStream(_TCP, self)
        self._reactor = reactor
        self._listener = listener
        self._forget: Callable[[], None] | None = None
        listener.descriptor.share()

    def give(self, buffer: AnyBuffer) -> int | None:
        """See `Source.give`."""
        if not buffer.remaining:
            return COMPLETED
        while True:
            try:
                accepted = TcpSocket(self._listener.accept())
            except BlockingIOError:
                if self._forget is None:
                    fd = self._listener.descriptor.fd
                    self._forget = self._reactor.watch(fd, select.POLLIN, self._resume)
                return None
            except ConnectionAbortedError:
                continue  # that one, not the listener
            except OSError as error:
                if error.errno not in _SCARCE:
                    return DROPPED
                if self._forget is None:  # who has come waits until others have gone
                    moment = monotonic_ns() + _PATIENCE
                    self._forget = self._reactor.at(moment, self._resume)
                return None
            buffer.write([accepted])
            return COMPLETED

    def _resume(self) -> None:
        self._forget = None
        self.shared.resume()

    def close(self) -> None:
        """See `Source.close`."""
        if self._forget is not None:
            self._forget()
        self._listener.close()


@_method("tcp", "send", "data: stream<u8>", "future<result<_, error-code>>")
def send_tcp(program: Program, tcp: TcpSocket, data: Shared) -> Shared:
    """Send a stream to the peer; return how that went."""
    if tcp.sent or tcp.socket.state != "connected":
        data.drop()
        return _refused()
    tcp.sent = True
    descriptor = tcp.socket.descriptor.share()
    writing = Writing(program.reactor, descriptor, _RESULT, _error)
    writing.before_close = lambda: tcp.socket.shutdown(sockets.SEND)
    writing.drain(data)
    return writing.outcome.future


@_method("tcp", "receive", "", "tuple<stream<u8>, future<result<_, error-code>>>")
def receive_tcp(program: Program, tcp: TcpSocket) -> tuple[Shared, Shared]:
    """Return what the peer sends, and how that went."""
    if tcp.received or tcp.socket.state != "connected":
        return nothing(U8), _refused()
    tcp.received = True
    descriptor = tcp.socket.descriptor.share()
    reading = Reading(program.reactor, descriptor, _RESULT, _error)
    reading.before_close = lambda: tcp.socket.shutdown(sockets.RECEIVE)
    return reading.shared, reading.outcome.future


def _refused() -> Shared:
    outcome = Promise(_RESULT)
    outcome.keep(("error", ("invalid-state", None)))
    return outcome.future


@_method("tcp", "get-is-listening", "", "bool")
def is_listening(program: Program, tcp: TcpSocket) -> bool:
    """Tell whether it accepts connections."""
    return tcp.socket.state == "listening"


@_method("tcp", "set-listen-backlog-size", "value: u64", _NO_RESULT)
def set_listen_backlog_size(program: Program, tcp: TcpSocket, value: int) -> None:
    """Set how many connections may wait."""
    tcp.socket.set_backlog(value)


# UDP.


@_method("udp", "connect", "remote-address: ip-socket-address", _NO_RESULT)
def connect_udp(program: Program, udp: UdpSocket, address: Address) -> None:
    """Have one peer only."""
    udp.socket.connect(words.sockaddr(address))


@_method("udp", "disconnect", "", _NO_RESULT)
def disconnect(program: Program, udp: UdpSocket) -> None:
    """Have no peer."""
    udp.socket.disconnect()


@_method(
    "udp",
    "send",
    "data: list<u8>, remote-address: option<ip-socket-address>",
    _NO_RESULT,
    is_async=True,
)
async def send_udp(
    program: Program, udp: UdpSocket, data: memoryview, address: Address | None
) -> None:
    """Send a datagram."""
    kept = bytes(data)  # while it waits, the guest goes on
    receiver = None if address is None else words.sockaddr(address)
    while True:
        try:
            udp.socket.send(kept, receiver)
        except BlockingIOError:
            await program.reactor.ready(udp.socket.descriptor.fd, select.POLLOUT)
        else:
            return


@_method(
    "udp",
    "receive",
    "",
    "result<tuple<list<u8>, ip-socket-address>, error-code>",
    is_async=True,
)
async def receive_udp(program: Program, udp: UdpSocket) -> tuple[bytes, Address]:
    """Return the next datagram, and who has sent it."""
    while True:
        try:
            data, sender = udp.socket.receive()
        except BlockingIOError:
            await program.reactor.ready(udp.socket.descriptor.fd, select.POLLIN)
        else:
            return data, words.socket_address(sender)


# Names.

_FAMILIES: Final = (AF_INET6, AF_INET)


@NAMES.function(
    "resolve-addresses", "async func(name: string) -> result<list<ip-address>, error-code>"
)
def resolve_addresses(program: Program, name: str) -> list[Address]:
    """Look a name up; an address in text is its own. All tasks wait for the answer."""
    program.need_network()
    return words.addresses(name, _FAMILIES)
