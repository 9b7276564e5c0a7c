"""Our WASI under wasmtime (library; called in the guest).

A `Func` of wasmtime-py's costs 15 microseconds a call, most of it for values that it makes and
unmakes. So our functions are given to wasmtime's C API as they are, as "unchecked" callbacks: one
gets the address of an array of 16-byte slots on the stack, takes its parameters from there and
leaves its result in the first slot. The linker knows the types and has checked them before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

import wasmtime
from wasmtime import _ffi as ffi

from shim.engines.base import internal_error, trapped
from shim.engines.slots import MEMORY, layout
from shim.engines.wasmtime_store import FORMATS
from shim.engines.wasmtime_types import Types
from shim.wasi.preview1.abi import Bound

# wasm_trap_t *(*)(void *data, wasmtime_caller_t *caller, wasmtime_val_raw_t *slots, size_t count):
# a callee may take fewer parameters than it is given, and ctypes spends time on each.
_Callback: Final = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t
)
_NO_FINALIZER: Final = ctypes.cast(0, ctypes.CFUNCTYPE(None, ctypes.c_void_p))


def _entry(bound: Bound) -> Callable[[int, int, int], None]:
    """Return what wasmtime calls for `bound`.

    No exception may leave it: ctypes would print and then forget it. Nor is a trap returned: there
    is nobody who could handle it.
    """
    unpack = layout(bound.params, FORMATS).unpack_from
    pack = layout(bound.results, FORMATS).pack_into if bound.results else None
    call = bound.call
    memory = MEMORY

    def entry(_data: int, _caller: int, slots: int) -> None:
        try:
            result = call(*unpack(memory, slots))
            if pack is not None:
                pack(memory, slots, result)
        except BaseException as error:
            trapped(internal_error(error))

    return entry


class HostFunction:
    """A host function, for linkers that live no longer than it.

    Made before the fork: afterwards no callback can be (`shim.linux.callbacks`).
    """

    def __init__(self, bound: Bound, types: Types) -> None:
        self._callback = _Callback(_entry(bound))  # of which native code has only the address
        self._kind = types.function(bound.params, bound.results)

    def define(self, linker: wasmtime.Linker, module: str, name: str) -> None:
        """Enter it in a linker, maybe in the place of another one."""
        error = ffi.wasmtime_linker_define_func_unchecked(
            linker.ptr(),
            *_text(module),
            *_text(name),
            self._kind.ptr(),
            ctypes.cast(self._callback, ffi.wasmtime_func_unchecked_callback_t),
            None,
            _NO_FINALIZER,
        )
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)


def _text(text: str) -> tuple[Any, int]:
    data = text.encode()
    return ctypes.create_string_buffer(data), len(data)
