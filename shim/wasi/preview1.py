"""All 46 functions of `wasi_snapshot_preview1`, bound to a program (library)."""

from __future__ import annotations

from typing import Final

# Importing an area is what registers its functions.
from shim.wasi import abi, clocks, directories, fds, paths, poll, process, sockets, strings
from shim.wasi.abi import Bound
from shim.wasi.program import Program

MODULE: Final = "wasi_snapshot_preview1"
AREAS: Final = (clocks, directories, fds, paths, poll, process, sockets, strings)


def bind(program: Program) -> dict[str, Bound]:
    """Return every host function by name, working on `program`."""
    functions = {
        name: Bound(abi.bind(function, program), abi.params(function), ("i32",))
        for name, function in abi.HOSTS.items()
    }
    functions["proc_exit"] = Bound(process.proc_exit, ("i32",), ())
    return functions
