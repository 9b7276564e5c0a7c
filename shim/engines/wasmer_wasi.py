"""Our WASI under wasmer (library; called in the guest).

A host function gets the address of an array of 8-byte slots on the stack, takes its parameters from
there and leaves its result in the first slot. The standard C API, which is all that a library has
that we have not built, passes the addresses of two vectors instead: a size, and a pointer to slots
of 16 bytes on the heap, each a kind and a value. That takes 0.4 µs more.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Final

from shim.engines import libwasmer
from shim.engines.base import internal_error, trapped
from shim.engines.slots import MEMORY, WORDS, layout
from shim.engines.wasmer_store import FORMATS
from shim.wasi.preview1.abi import Bound

# void (*)(uint64_t *slots, void *environment): a callee may take fewer than it is given.
_Callback: Final = ctypes.CFUNCTYPE(None, ctypes.c_size_t)

# wasm_trap_t *(*)(const wasm_val_vec_t *arguments, wasm_val_vec_t *results)
_StandardCallback: Final = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


def _entry(bound: Bound) -> Callable[[int], None]:
    """Return what wasmer calls for `bound`.

    No exception may leave it: ctypes would print and then forget it. Nor is a trap returned: there
    is nobody who could handle it.
    """
    unpack = layout(bound.params, FORMATS).unpack_from
    pack = layout(bound.results, FORMATS).pack_into if bound.results else None
    call, memory = bound.call, MEMORY

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
    unpack = layout(bound.params, FORMATS).unpack_from
    pack = struct.Struct("<Qi").pack_into if bound.results else None
    kind = libwasmer.KINDS["i32"]
    call, memory, words = bound.call, MEMORY, WORDS

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
            address = ctypes.cast(self._callback, ctypes.c_void_p)
            function = libwasmer.our_func_new(store, kind, address, None)
        else:
            self._callback = _StandardCallback(_standard_entry(bound))
            address = ctypes.cast(self._callback, ctypes.c_void_p)
            function = libwasmer.func_new(store, kind, address)
        self.extern: int = libwasmer.func_as_extern(libwasmer.made(function))
