"""wasi:sockets: the options of sockets, which 0.3 has, too (library; runs in the guest)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from shim.component.host import Interface
from shim.wasi import sockets
from shim.wasi.program import Program


class Option(NamedTuple):
    """An option of a socket: its name, its type, and how it is asked for and set."""

    name: str
    type: str
    get: Callable[[Any], Any]
    set: Callable[[Any, Any], None]


def declare(
    interface: Interface, resource: str, options: tuple[Option, ...], prefix: str = ""
) -> None:
    """Declare the two functions of each option. The resource has its socket as `socket`.

    `prefix` is what the name of the one that asks begins with.
    """
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
