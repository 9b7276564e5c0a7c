"""WASI 0.2: interfaces of host functions, a file for each package (library; runs in the guest).

Of every 0.2.x, since each contains the ones before it. Written from the packages' WIT; where it
leaves something open, as wasmtime has it. Only here, what 0.2 calls results and resources is made
of what `shim.wasi` returns and raises.
"""

from __future__ import annotations

from typing import Final

from shim.component.host import Interface
from shim.wasi.p2 import cli, clocks, filesystem, io, names, network, random, tcp, udp

INTERFACES: Final[tuple[Interface, ...]] = (
    *cli.INTERFACES,
    *clocks.INTERFACES,
    *filesystem.INTERFACES,
    *io.INTERFACES,
    *names.INTERFACES,
    *network.INTERFACES,
    *random.INTERFACES,
    *tcp.INTERFACES,
    *udp.INTERFACES,
)
"""All that a component may import of 0.2 but `wasi:http`."""
