"""All functions that a module may import, bound to a program (library).

Of `wasi_snapshot_preview1` these are the specification's 46, and what WasmEdge adds; of its
predecessor `wasi_unstable` the same without what WasmEdge has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

# Importing an area is what registers its functions.
from shim.wasi.preview1 import (
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
    unstable,
    wasmedge,
)
from shim.wasi.preview1.abi import Bound
from shim.wasi.preview1.program import Program

MODULE: Final = "wasi_snapshot_preview1"
UNSTABLE: Final = "wasi_unstable"
AREAS: Final = (
    *(addrinfo, clocks, directories, fds, paths, poll, process, sockets),
    *(strings, transfers, wasmedge),
)


def bind(program: Program) -> dict[str, Bound]:
    """Return every host function of preview 1 by name, working on `program`."""
    functions = _bound(abi.HOSTS, program)
    functions["proc_exit"] = Bound(process.proc_exit, ("i32",), ())
    return functions


def provide(program: Program) -> dict[tuple[str, str], Bound]:
    """Return all that may be imported, by module and name; what modules share is one object."""
    functions = bind(program)
    old = {name: bound for name, bound in functions.items() if name not in wasmedge.VARIANTS}
    old |= _bound(unstable.HOSTS, program)
    return {(MODULE, name): bound for name, bound in functions.items()} | {
        (UNSTABLE, name): bound for name, bound in old.items()
    }


def bind_variants(program: Program) -> dict[str, Bound]:
    """Return the functions that have a name in common with another one, by that name.

    An engine links an import to the one of the two that has the parameters it was declared with.
    """
    return _bound(wasmedge.VARIANTS, program)


def _bound(functions: Mapping[str, Callable[..., None]], program: Program) -> dict[str, Bound]:
    return {
        name: Bound(abi.bind(function, program), abi.params(function), ("i32",))
        for name, function in functions.items()
    }
