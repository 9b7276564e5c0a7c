"""wasi:sockets: options and addresses of sockets, which 0.3 has, too (library; in the guest)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from shim.component.host import Interface
from shim.wasi import sockets, words
from shim.wasi.program import Program


class Option(NamedTuple):
    """An option of a socket: its name, its type, and how it is asked for and set."""

    name: str
    type: str
    get: Callable[[Any], Any]
    set: Callable[[Any, Any], None]


Address = tuple[str, tuple[Any, ...]]


def local_address(program: Program, holder: Any) -> Address:
    """Return the socket's own address."""
    return words.socket_address(holder.socket.local_address())


def remote_address(program: Program, holder: Any) -> Address:
    """Return the peer's address."""
    return words.socket_address(holder.socket.remote_address())


def address_family(program: Program, holder: Any) -> str:
    """Return the family."""
    return words.family(holder.socket.family)


def declare(
    interface: Interface, resource: str, options: tuple[Option, ...], prefix: str = ""
) -> None:
    """Declare what asks for addresses, and the two functions of each option.

    The resource has its socket as `socket`. `prefix` is what the name of a function that asks
    begins with.
    """
    for name, result, ask in (
        ("local-address", "result<ip-socket-address, error-code>", local_address),
        ("remote-address", "result<ip-socket-address, error-code>", remote_address),
        ("address-family", "ip-address-family", address_family),
    ):
        interface.function(
            f"[method]{resource}.{prefix}{name}", f"func(self: borrow<{resource}>) -> {result}"
        )(ask)
    for option in options:

        def get(program: Program, holder: Any, option: Option = option) -> Any:
            return option.get(holder.socket)

        def set_(program: Program, holder: Any, value: Any, option: Option = option) -> None:
            option.set(holder.socket, value)

        interface.function(
            f"[method]{resource}.{prefix}{option.name}",
            f"func(self: borrow<{resource}>) -> result<{option.type}, error-code>",
        )(get)
        interface.function(
            f"[method]{resource}.set-{option.name}",
            f"func(self: borrow<{resource}>, value: {option.type}) -> result<_, error-code>",
        )(set_)


_Socket: Final = sockets.Socket
_Tcp: Final = sockets.TcpSocket
BUFFERS: Final = (
    Option(
        *("receive-buffer-size", "u64"),
        *(_Socket.receive_buffer_size, _Socket.set_receive_buffer_size),
    ),
    Option(
        *("send-buffer-size", "u64"),
        *(_Socket.send_buffer_size, _Socket.set_send_buffer_size),
    ),
)
KEEP_ALIVE: Final = (
    Option("keep-alive-enabled", "bool", _Tcp.keep_alive_enabled, _Tcp.set_keep_alive_enabled),
    Option(
        *("keep-alive-idle-time", "duration"),
        *(_Tcp.keep_alive_idle_time, _Tcp.set_keep_alive_idle_time),
    ),
    Option(
        *("keep-alive-interval", "duration"),
        *(_Tcp.keep_alive_interval, _Tcp.set_keep_alive_interval),
    ),
    Option("keep-alive-count", "u32", _Tcp.keep_alive_count, _Tcp.set_keep_alive_count),
)
HOPS: Final = (_Socket.hop_limit, _Socket.set_hop_limit)
