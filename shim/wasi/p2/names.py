"""wasi:sockets: names to addresses (library; runs in the guest).

A name is looked up when it is asked for, and that blocks: what asks is one thread, which waits for
the answer next.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from collections.abc import Iterator
from typing import Final

from shim.component.host import Interface
from shim.wasi import resolver, words
from shim.wasi.p2.io import POLL, Pollable
from shim.wasi.p2.network import NETWORK, Network, socket_error
from shim.wasi.program import Program

_FAMILIES: Final = (AF_INET, AF_INET6)

Address = tuple[str, tuple[int, ...]]


def _error(error: Exception) -> str:
    if isinstance(error, resolver.NoSuchName):
        return "name-unresolvable"
    if isinstance(error, resolver.TryAgain):
        return "temporary-resolver-failure"
    return socket_error(error)


class AddressStream:
    """The addresses of a name."""

    __slots__ = ("addresses",)

    def __init__(self, addresses: Iterator[Address]) -> None:
        self.addresses = addresses


NAMES: Final = Interface("wasi:sockets/ip-name-lookup", "0.2", errors=_error)
NAMES.use(POLL, "pollable")
NAMES.use(NETWORK, "network", "error-code", "ip-address")
NAMES.resource("resolve-address-stream")

INTERFACES: Final = (NAMES,)


@NAMES.function(
    "resolve-addresses",
    "func(network: borrow<network>, name: string) -> result<resolve-address-stream, error-code>",
)
def resolve_addresses(program: Program, network: Network, name: str) -> AddressStream:
    """Look a name up; an address in text is its own."""
    program.need_network()
    return AddressStream(iter(words.addresses(name, _FAMILIES)))


@NAMES.function(
    "[method]resolve-address-stream.resolve-next-address",
    "func(self: borrow<resolve-address-stream>) -> result<option<ip-address>, error-code>",
)
def resolve_next_address(program: Program, stream: AddressStream) -> Address | None:
    """Return the next address."""
    return next(stream.addresses, None)


@NAMES.function(
    "[method]resolve-address-stream.subscribe",
    "func(self: borrow<resolve-address-stream>) -> pollable",
)
def subscribe(program: Program, stream: AddressStream) -> Pollable:
    """Return a pollable that is ready."""
    return Pollable(lambda: None)
