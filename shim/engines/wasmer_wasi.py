"""Our WASI under wasmer (library; called in the guest).

A host function gets the address of an array of 8-byte slots on the stack, takes its parameters from
there and leaves its result in the first slot. The standard C API, which is all that a library has
that we have not built, passes the addresses of two vectors instead: a size, and a pointer to slots
of 16 bytes on the heap, each a kind and a value. That takes 0.4 µs more.

Both are read through one window onto all memory: a view made anew for each call would cost as much
as the call.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Final

from shim.engines import libwasmer
from shim.engines.base import internal_error, trapped
from shim.wasi.preview1.abi import Bound

_Callback: Final = ctypes.CFUNCTYPE(None, ctypes.c_size_t)
_SLOTS: Final = {"i32": "i4x", "i64": "q"}

# wasm_trap_t *(*)(const wasm_val_vec_t *arguments, wasm_val_vec_t *results)
_StandardCallback: Final = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_VALUES: Final = {"i32": "8xi4x", "i64": "8xq"}

_ADDRESSES: Final = 1 << 48  # what a process has, on the machines that there are
_memory: Final = memoryview((ctypes.c_char * _ADDRESSES).from_address(0)).cast("B")
_words: Final = _memory.cast("Q")


def _entry(bound: Bound) -> Callable[[int], None]:
    """Return what wasmer calls for `bound`.

    No exception may leave it: ctypes would print and then forget it. Nor is a trap returned: there
    is nobody who could handle it.
    """
    unpack = struct.Struct("<" + "".join(_SLOTS[kind] for kind in bound.params)).unpack_from
    pack = struct.Struct("<i").pack_into if bound.results else None
    call, memory = bound.call, _memory

    def entry(slots: int) -> None:
        try:
            result = call(*unpack(memory, slots))
            if pack is not None:
                pack(memory, slots, result)
        except BaseException as error:
            trapped(internal_error(error))

    return entry


def _standard_entry(bound: Bound) -> Callable[[int, int], None]:
    """Return the same for the standard C API."""
    unpack = struct.Struct("<" + "".join(_VALUES[kind] for kind in bound.params)).unpack_from
    pack = struct.Struct("<Qi").pack_into if bound.results else None
    kind = libwasmer.KINDS["i32"]
    call, memory, words = bound.call, _memory, _words

    def entry(arguments: int, results: int) -> None:
        try:
            result = call(*unpack(memory, words[(arguments >> 3) + 1]))
            if pack is not None:
                pack(memory, words[(results >> 3) + 1], kind, result)
        except BaseException as error:
            trapped(internal_error(error))

    return entry


class HostFunction:
    """A host function, for a store that lives no longer than it.

    Made before the fork: afterwards no callback can be (`shim.linux.callbacks`).
    """

    def __init__(self, store: int, bound: Bound) -> None:
        kind = libwasmer.functype(bound.params, bound.results)
        # Of the callback native code has only the address.
        if libwasmer.OURS:
            self._callback = _Callback(_entry(bound))
            new = libwasmer.our_func_new
        else:
            self._callback = _StandardCallback(_standard_entry(bound))
            new = libwasmer.func_new
        function = libwasmer.made(new(store, kind, ctypes.cast(self._callback, ctypes.c_void_p)))
        self.extern: int = libwasmer.func_as_extern(function)
