"""wasi:sockets: the network, and what can go wrong there (library; runs in the guest).

To have a network says nothing: whether there is one, `Program.need_network` tells.
"""

from __future__ import annotations

import errno as linux
from typing import Final

from shim.component.host import Interface
from shim.wasi import words
from shim.wasi.errors import NotCapable
from shim.wasi.p2.io import ERROR, Error
from shim.wasi.program import Program

_ERRORS: Final = {
    **words.SOCKET_ERRORS,
    linux.EAGAIN: "would-block",
    linux.EINTR: "would-block",
    linux.EALREADY: "concurrency-conflict",
    linux.EMFILE: "new-socket-limit",
    linux.ENFILE: "new-socket-limit",
}


class Network:
    """The network."""


class NotInProgress(Exception):
    """What is to be finished was not started."""


def socket_error(error: Exception) -> str:
    """Return what an operation on sockets failed with; what is no such failure is raised again."""
    if isinstance(error, OSError):
        return _ERRORS.get(error.errno or 0, "unknown")
    if isinstance(error, NotCapable):
        return "access-denied"
    if isinstance(error, NotInProgress):
        return "not-in-progress"
    raise error


def declare_addresses(interface: Interface) -> None:
    """Declare the types of addresses, which 0.3 has, too."""
    interface.type("ip-address-family", "enum { ipv4, ipv6 }")
    interface.type("ipv4-address", "tuple<u8, u8, u8, u8>")
    interface.type("ipv6-address", "tuple<u16, u16, u16, u16, u16, u16, u16, u16>")
    interface.type("ip-address", "variant { ipv4(ipv4-address), ipv6(ipv6-address) }")
    interface.type("ipv4-socket-address", "record { port: u16, address: ipv4-address }")
    interface.type(
        "ipv6-socket-address",
        "record { port: u16, flow-info: u32, address: ipv6-address, scope-id: u32 }",
    )
    interface.type(
        "ip-socket-address", "variant { ipv4(ipv4-socket-address), ipv6(ipv6-socket-address) }"
    )


NETWORK: Final = Interface("wasi:sockets/network", "0.2")
NETWORK.use(ERROR, "error")
NETWORK.resource("network")
NETWORK.type(
    "error-code",
    "enum { unknown, access-denied, not-supported, invalid-argument, out-of-memory, timeout,"
    " concurrency-conflict, not-in-progress, would-block, invalid-state, new-socket-limit,"
    " address-not-bindable, address-in-use, remote-unreachable, connection-refused,"
    " connection-reset, connection-aborted, datagram-too-large, name-unresolvable,"
    " temporary-resolver-failure, permanent-resolver-failure }",
)
declare_addresses(NETWORK)

INSTANCE_NETWORK: Final = Interface("wasi:sockets/instance-network", "0.2")
INSTANCE_NETWORK.use(NETWORK, "network")

INTERFACES: Final = (NETWORK, INSTANCE_NETWORK)


@INSTANCE_NETWORK.function("instance-network", "func() -> network")
def instance_network(program: Program) -> Network:
    """Return the network."""
    return Network()


@NETWORK.function("network-error-code", "func(err: borrow<error>) -> option<error-code>")
def network_error_code(program: Program, error: Error) -> str | None:
    """Return why a stream over a connection has failed."""
    return _ERRORS.get(error.reason.errno or 0)
