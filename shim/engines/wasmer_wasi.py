"""Our WASI under wasmer (library; called in the guest).

A host function of the C API gets the addresses of two vectors, of arguments and of results: a size,
and a pointer to slots of 16 bytes, which are a kind and a value. The vectors are on a stack and the
slots on the heap, so there is one window onto all memory to read them through; a view made anew for
each call would cost as much as the call.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Final

from shim.engines import libwasmer
from shim.engines.base import internal_error, trapped
from shim.wasi.abi import Bound

# wasm_trap_t *(*)(const wasm_val_vec_t *arguments, wasm_val_vec_t *results)
_Callback: Final = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_SLOTS: Final = {"i32": "8xi4x", "i64": "8xq"}
_ADDRESSES: Final = 1 << 47  # what a process has, on the machines that there are
_memory: Final = memoryview((ctypes.c_char * _ADDRESSES).from_address(0)).cast("B")
_words: Final = _memory.cast("Q")


def _entry(bound: Bound) -> Callable[[int, int], None]:
    """Return what wasmer calls for `bound`.

    No exception may leave it: ctypes would print and then forget it. Nor is a trap returned: there
    is nobody who could handle it.
    """
    unpack = struct.Struct("<" + "".join(_SLOTS[kind] for kind in bound.params)).unpack_from
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
        self._callback = _Callback(_entry(bound))  # of which native code has only the address
        kind = libwasmer.functype(bound.params, bound.results)
        function = libwasmer.func_new(store, kind, ctypes.cast(self._callback, ctypes.c_void_p))
        self.extern: int = libwasmer.func_as_extern(libwasmer.made(function))
