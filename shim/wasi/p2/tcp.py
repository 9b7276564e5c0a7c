"""wasi:sockets: TCP (library; runs in the guest).

What is started is finished by a second call. Linux does most of it at once: only a connection takes
until its pollable is ready.
"""

from __future__ import annotations

import errno as linux
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from shim.component.host import Interface
from shim.wasi import sockets, words
from shim.wasi.errors import failure
from shim.wasi.p2.clocks import MONOTONIC
from shim.wasi.p2.io import POLL, STREAMS, InputStream, Interest, OutputStream, Pollable
from shim.wasi.p2.network import NETWORK, Network, NotInProgress, socket_error
from shim.wasi.p2.options import BUFFERS, HOPS, KEEP_ALIVE, Address, Option, declare
from shim.wasi.program import Program
from shim.wasi.waiting import wait


class TcpSocket:
    """A socket, what is in progress on it, and the streams of its connection."""

    __slots__ = ("_input", "_output", "pending", "socket")

    def __init__(self, socket: sockets.TcpSocket) -> None:
        self.socket = socket
        self.pending = ""
        self._input: InputStream | None = None
        self._output: OutputStream | None = None

    @contextmanager
    def starting(self, operation: str) -> Iterator[None]:
        """Have an operation in progress if it begins. Raises EALREADY if there is one."""
        if self.pending:
            raise failure(linux.EALREADY)
        yield
        self.pending = operation

    def finish(self, operation: str) -> None:
        """Raise `NotInProgress` if this operation is not."""
        if self.pending != operation:
            raise NotInProgress
        self.pending = ""

    def connected(self) -> tuple[InputStream, OutputStream]:
        """Return the streams of the connection; each ends its direction where it ends."""
        descriptor = self.socket.descriptor
        self._input = InputStream(descriptor.share(), end=self._ended(sockets.RECEIVE))
        self._output = OutputStream(descriptor.share(), end=self._ended(sockets.SEND))
        return self._input, self._output

    def _ended(self, how: int) -> Callable[[], None]:
        def end() -> None:
            try:
                self.socket.shutdown(how)
            except OSError:
                pass  # the peer was faster

        return end

    def shutdown(self, how: str) -> None:
        """End one direction of the connection, or both; what was written arrives before."""
        if how != "receive" and self._output is not None:
            self._output.finish()
        if how != "send" and self._input is not None:
            self._input.closed = True
        self.socket.shutdown(_SHUTDOWN[how])

    def interest(self) -> Interest:
        """Return what there is to wait for: a connection, or the end of making one."""
        if self.pending == "connect":
            return self.socket.descriptor.fd, select.POLLOUT
        if self.socket.state == "listening":
            return self.socket.descriptor.fd, select.POLLIN
        return None

    def close(self) -> None:
        """Close the socket; streams and pollables go on for as long as they last."""
        self.socket.close()


_SHUTDOWN: Final = {"receive": sockets.RECEIVE, "send": sockets.SEND, "both": sockets.BOTH}

TCP: Final = Interface("wasi:sockets/tcp", "0.2", errors=socket_error)
TCP.use(STREAMS, "input-stream", "output-stream")
TCP.use(POLL, "pollable")
TCP.use(MONOTONIC, "duration")
TCP.use(NETWORK, "network", "error-code", "ip-socket-address", "ip-address-family")
TCP.type("shutdown-type", "enum { receive, send, both }")
TCP.resource("tcp-socket", TcpSocket.close)

CREATE: Final = Interface("wasi:sockets/tcp-create-socket", "0.2", errors=socket_error)
CREATE.use(NETWORK, "network", "error-code", "ip-address-family")
CREATE.use(TCP, "tcp-socket")

INTERFACES: Final = (TCP, CREATE)


@CREATE.function(
    "create-tcp-socket", "func(address-family: ip-address-family) -> result<tcp-socket, error-code>"
)
def create_tcp_socket(program: Program, family: str) -> TcpSocket:
    """Make a socket."""
    return TcpSocket(sockets.TcpSocket.open(program, words.FAMILIES[family]))


@TCP.function(
    "[method]tcp-socket.start-bind",
    "func(self: borrow<tcp-socket>, network: borrow<network>, local-address: ip-socket-address)"
    " -> result<_, error-code>",
)
def start_bind(program: Program, tcp: TcpSocket, network: Network, address: Address) -> None:
    """Give a socket an address of its own."""
    with tcp.starting("bind"):
        tcp.socket.bind(words.sockaddr(address))


@TCP.function(
    "[method]tcp-socket.finish-bind", "func(self: borrow<tcp-socket>) -> result<_, error-code>"
)
def finish_bind(program: Program, tcp: TcpSocket) -> None:
    """See it through."""
    tcp.finish("bind")


@TCP.function(
    "[method]tcp-socket.start-connect",
    "func(self: borrow<tcp-socket>, network: borrow<network>, remote-address: ip-socket-address)"
    " -> result<_, error-code>",
)
def start_connect(program: Program, tcp: TcpSocket, network: Network, address: Address) -> None:
    """Begin to connect."""
    with tcp.starting("connect"):
        tcp.socket.start_connect(words.sockaddr(address))


@TCP.function(
    "[method]tcp-socket.finish-connect",
    "func(self: borrow<tcp-socket>) -> result<tuple<input-stream, output-stream>, error-code>",
)
def finish_connect(program: Program, tcp: TcpSocket) -> tuple[InputStream, OutputStream]:
    """Return the streams of the connection, once it is there."""
    tcp.finish("connect")
    fd = tcp.socket.descriptor.fd
    if not wait({fd: select.POLLOUT}, 0):
        tcp.pending = "connect"
        raise failure(linux.EAGAIN)
    tcp.socket.finish_connect()
    return tcp.connected()


@TCP.function(
    "[method]tcp-socket.start-listen", "func(self: borrow<tcp-socket>) -> result<_, error-code>"
)
def start_listen(program: Program, tcp: TcpSocket) -> None:
    """Begin to accept connections; to what address must have been said."""
    with tcp.starting("listen"):
        if not tcp.socket.bound:
            raise failure(linux.ENOTCONN)
        tcp.socket.listen()


@TCP.function(
    "[method]tcp-socket.finish-listen", "func(self: borrow<tcp-socket>) -> result<_, error-code>"
)
def finish_listen(program: Program, tcp: TcpSocket) -> None:
    """See it through."""
    tcp.finish("listen")


@TCP.function(
    "[method]tcp-socket.accept",
    "func(self: borrow<tcp-socket>)"
    " -> result<tuple<tcp-socket, input-stream, output-stream>, error-code>",
)
def accept(program: Program, tcp: TcpSocket) -> tuple[TcpSocket, InputStream, OutputStream]:
    """Return the next connection."""
    accepted = TcpSocket(tcp.socket.accept())
    return (accepted, *accepted.connected())


@TCP.function("[method]tcp-socket.is-listening", "func(self: borrow<tcp-socket>) -> bool")
def is_listening(program: Program, tcp: TcpSocket) -> bool:
    """Tell whether it accepts connections."""
    return tcp.socket.state == "listening"


@TCP.function("[method]tcp-socket.subscribe", "func(self: borrow<tcp-socket>) -> pollable")
def subscribe(program: Program, tcp: TcpSocket) -> Pollable:
    """Return a pollable for what is in progress, or the next connection."""
    return Pollable(tcp.interest, tcp.socket.descriptor)


@TCP.function(
    "[method]tcp-socket.shutdown",
    "func(self: borrow<tcp-socket>, shutdown-type: shutdown-type) -> result<_, error-code>",
)
def shutdown(program: Program, tcp: TcpSocket, how: str) -> None:
    """End one direction of a connection, or both."""
    tcp.shutdown(how)


@TCP.function(
    "[method]tcp-socket.set-listen-backlog-size",
    "func(self: borrow<tcp-socket>, value: u64) -> result<_, error-code>",
)
def set_listen_backlog_size(program: Program, tcp: TcpSocket, value: int) -> None:
    """Set how many connections may wait."""
    tcp.socket.set_backlog(value)


declare(TCP, "tcp-socket", (*BUFFERS, Option("hop-limit", "u8", *HOPS), *KEEP_ALIVE))
