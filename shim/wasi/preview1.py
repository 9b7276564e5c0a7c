"""All functions of `wasi_snapshot_preview1`, bound to a program (library).

These are the specification's 46, and what WasmEdge adds.
"""

from __future__ import annotations

from typing import Final

# Importing an area is what registers its functions.
from shim.wasi import (
    abi,
    addrinfo,
    clocks,
    directories,
    fds,
    paths,
    poll,
    process,
    sockets,
    strings,
    transfers,
    wasmedge,
)
from shim.wasi.abi import Bound
from shim.wasi.program import Program

MODULE: Final = "wasi_snapshot_preview1"
AREAS: Final = (
    *(addrinfo, clocks, directories, fds, paths, poll, process, sockets),
    *(strings, transfers, wasmedge),
)


def bind(program: Program) -> dict[str, Bound]:
    """Return every host function by name, working on `program`."""
    functions = {
        name: Bound(abi.bind(function, program), abi.params(function), ("i32",))
        for name, function in abi.HOSTS.items()
    }
    functions["proc_exit"] = Bound(process.proc_exit, ("i32",), ())
    return functions


def bind_variants(program: Program) -> dict[str, Bound]:
    """Return the functions that have a name in common with another one, by that name.

    An engine links an import to the one of the two that has the parameters it was declared with.
    """
    return {
        name: Bound(abi.bind(function, program), abi.params(function), ("i32",))
        for name, function in wasmedge.VARIANTS.items()
    }
