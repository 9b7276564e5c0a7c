"""WASI 0.3: interfaces of host functions, a file for each package (library; runs in the guest).

Written from the packages' WIT; where it leaves something open, as wasmtime has it. What 0.3 has in
common with 0.2 but for the words is 0.2's function under another type.
"""

from __future__ import annotations

from typing import Final

from shim.component.host import Interface
from shim.wasi.p3 import cli, clocks, filesystem, random, sockets

INTERFACES: Final[tuple[Interface, ...]] = (
    *cli.INTERFACES,
    *clocks.INTERFACES,
    *filesystem.INTERFACES,
    *random.INTERFACES,
    *sockets.INTERFACES,
)
"""All that a component may import of 0.3 but `wasi:http`."""
