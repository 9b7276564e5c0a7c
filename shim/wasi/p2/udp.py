"""wasi:sockets: UDP (library; runs in the guest)."""

from __future__ import annotations

import errno as linux
import select
from typing import Any, Final

from shim.component.errors import Trap
from shim.component.host import Interface
from shim.wasi import sockets, words
from shim.wasi.errors import failure
from shim.wasi.p2.io import POLL, Pollable
from shim.wasi.p2.network import NETWORK, Network, NotInProgress, socket_error
from shim.wasi.p2.options import BUFFERS, HOPS, Address, Option, declare
from shim.wasi.program import Program

_MOST: Final = 16  # datagrams at a time
_BYTES: Final = 1 << 16  # received after which no more are

Incoming = tuple[bytes, Address]
Outgoing = tuple[memoryview, "Address | None"]


class UdpSocket:
    """A socket, whether it is being bound, and how many streams it has."""

    __slots__ = ("binding", "socket", "streams")

    def __init__(self, socket: sockets.UdpSocket) -> None:
        self.socket = socket
        self.binding = False
        self.streams = 0

    def close(self) -> None:
        """Close the socket; streams and pollables go on for as long as they last."""
        self.socket.close()


class DatagramStream:
    """One direction of a socket, which it keeps open."""

    __slots__ = ("permit", "udp")

    def __init__(self, udp: UdpSocket) -> None:
        self.udp = udp
        self.permit = 0
        udp.streams += 1
        udp.socket.descriptor.share()

    def close(self) -> None:
        """Let go of the socket."""
        self.udp.streams -= 1
        self.udp.socket.close()

    def pollable(self, mask: int) -> Pollable:
        """Return a pollable for this direction."""
        descriptor = self.udp.socket.descriptor
        return Pollable(lambda: (descriptor.fd, mask), descriptor)


UDP: Final = Interface("wasi:sockets/udp", "0.2", errors=socket_error)
UDP.use(POLL, "pollable")
UDP.use(NETWORK, "network", "error-code", "ip-socket-address", "ip-address-family")
UDP.type("incoming-datagram", "record { data: list<u8>, remote-address: ip-socket-address }")
UDP.type(
    "outgoing-datagram", "record { data: list<u8>, remote-address: option<ip-socket-address> }"
)
UDP.resource("udp-socket", UdpSocket.close)
UDP.resource("incoming-datagram-stream", DatagramStream.close)
UDP.resource("outgoing-datagram-stream", DatagramStream.close)

CREATE: Final = Interface("wasi:sockets/udp-create-socket", "0.2", errors=socket_error)
CREATE.use(NETWORK, "network", "error-code", "ip-address-family")
CREATE.use(UDP, "udp-socket")

INTERFACES: Final = (UDP, CREATE)

declare(UDP, "udp-socket", (*BUFFERS, Option("unicast-hop-limit", "u8", *HOPS)))


@CREATE.function(
    "create-udp-socket", "func(address-family: ip-address-family) -> result<udp-socket, error-code>"
)
def create_udp_socket(program: Program, family: str) -> UdpSocket:
    """Make a socket."""
    return UdpSocket(sockets.UdpSocket.open(program, words.FAMILIES[family]))


@UDP.function(
    "[method]udp-socket.start-bind",
    "func(self: borrow<udp-socket>, network: borrow<network>, local-address: ip-socket-address)"
    " -> result<_, error-code>",
)
def start_bind(program: Program, udp: UdpSocket, network: Network, address: Address) -> None:
    """Give a socket an address of its own."""
    if udp.binding:
        raise failure(linux.EALREADY)
    udp.socket.bind(words.sockaddr(address))
    udp.binding = True


@UDP.function(
    "[method]udp-socket.finish-bind", "func(self: borrow<udp-socket>) -> result<_, error-code>"
)
def finish_bind(program: Program, udp: UdpSocket) -> None:
    """See it through."""
    if not udp.binding:
        raise NotInProgress
    udp.binding = False


@UDP.function(
    "[method]udp-socket.stream",
    "func(self: borrow<udp-socket>, remote-address: option<ip-socket-address>)"
    " -> result<tuple<incoming-datagram-stream, outgoing-datagram-stream>, error-code>",
)
def stream(
    program: Program, udp: UdpSocket, address: Address | None
) -> tuple[DatagramStream, DatagramStream]:
    """Return both directions, to and from one peer or any."""
    if udp.streams:
        raise Trap("the streams that a socket had are still there")
    if udp.binding or not udp.socket.bound:
        raise failure(linux.ENOTCONN)
    if address is not None:
        udp.socket.connect(words.sockaddr(address))
    elif udp.socket.peer is not None:
        udp.socket.disconnect()
    return DatagramStream(udp), DatagramStream(udp)


@UDP.function("[method]udp-socket.subscribe", "func(self: borrow<udp-socket>) -> pollable")
def subscribe(program: Program, udp: UdpSocket) -> Pollable:
    """Return a pollable for what is in progress, which nothing ever is."""
    return Pollable(lambda: None)


@UDP.function(
    "[method]incoming-datagram-stream.receive",
    "func(self: borrow<incoming-datagram-stream>, max-results: u64)"
    " -> result<list<incoming-datagram>, error-code>",
)
def receive(program: Program, stream: DatagramStream, most: int) -> list[Incoming]:
    """Return the datagrams that there are. An error comes when there are no others before it."""
    found: list[Incoming] = []
    size = 0
    while len(found) < min(most, _MOST) and size < _BYTES:
        try:
            data, sender = stream.udp.socket.receive()
        except BlockingIOError:
            break
        except OSError:
            if not found:
                raise
            break
        found.append((data, words.socket_address(sender)))
        size += len(data) + 1
    return found


@UDP.function(
    "[method]incoming-datagram-stream.subscribe",
    "func(self: borrow<incoming-datagram-stream>) -> pollable",
)
def subscribe_incoming(program: Program, stream: DatagramStream) -> Pollable:
    """Return a pollable for the next datagram."""
    return stream.pollable(select.POLLIN)


@UDP.function(
    "[method]outgoing-datagram-stream.check-send",
    "func(self: borrow<outgoing-datagram-stream>) -> result<u64, error-code>",
)
def check_send(program: Program, stream: DatagramStream) -> int:
    """Permit datagrams; the kernel may find no room for all of them."""
    stream.permit = _MOST
    return _MOST


@UDP.function(
    "[method]outgoing-datagram-stream.send",
    "func(self: borrow<outgoing-datagram-stream>, datagrams: list<outgoing-datagram>)"
    " -> result<u64, error-code>",
)
def send(program: Program, stream: DatagramStream, datagrams: list[Outgoing]) -> int:
    """Send datagrams; return how many were. An error comes when none was."""
    if not datagrams:
        return 0
    if len(datagrams) > stream.permit:
        raise Trap(f"{len(datagrams)} datagrams, where {stream.permit} were permitted")
    stream.permit = 0
    sent = 0
    for data, address in datagrams:
        receiver: Any = None if address is None else words.sockaddr(address)
        try:
            stream.udp.socket.send(data, receiver)
        except BlockingIOError:
            break
        except OSError:
            if not sent:
                raise
            break
        sent += 1
    return sent


@UDP.function(
    "[method]outgoing-datagram-stream.subscribe",
    "func(self: borrow<outgoing-datagram-stream>) -> pollable",
)
def subscribe_outgoing(program: Program, stream: DatagramStream) -> Pollable:
    """Return a pollable for room for a datagram."""
    return stream.pollable(select.POLLOUT)
