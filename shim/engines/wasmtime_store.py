"""Modules that are linked by hand, under wasmtime (library; used in the guest).

By the C API itself: wasmtime-py makes a Python object of each export of an instance, in 37
microseconds, and of each number that it passes. A store's names here are those of `base.Store`.

A trap crosses frames of Python and wasm in turns as what each of them knows: an exception, or a
`wasm_trap_t`. Of an exception the store keeps hold while it is one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import wasmtime
from wasmtime import WasmtimeError
from wasmtime import _ffi as ffi

from shim.engines.base import Extern, Module, ModuleError, Trap
from shim.engines.slots import guest_function, host_entry, make_sure_of_room, window
from shim.engines.wasmtime_traps import cause, told
from shim.engines.wasmtime_types import Types
from shim.linux.messages import one_line

SLOT: Final = 16  # bytes of a wasmtime_val_raw_t
FORMATS: Final = {"i32": "i12x", "i64": "q8x", "f32": "f12x", "f64": "d8x"}

_FUNCTION: Final[Any] = ffi.WASMTIME_EXTERN_FUNC.value
_MEMORY: Final[Any] = ffi.WASMTIME_EXTERN_MEMORY.value
_MISMATCHES: Final = ("incompatible import type", "expected ")
"""How what is said begins where imports are others than the module's."""

# With the interpreter lock held: there is no other thread to give it to.
_library: Final = ctypes.PyDLL(ffi.dll._name)
_instance_new: Final = _library.wasmtime_instance_new
_instance_new.restype = ctypes.c_void_p
_instance_new.argtypes = (*(ctypes.c_void_p,) * 3, ctypes.c_size_t, *(ctypes.c_void_p,) * 2)
_export_get: Final = _library.wasmtime_instance_export_get
_export_get.restype = ctypes.c_bool
_export_get.argtypes = (*(ctypes.c_void_p,) * 2, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
_trap_new: Final = _library.wasmtime_trap_new
_trap_new.restype, _trap_new.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_size_t)
_func_new: Final = _library.wasmtime_func_new_unchecked
_func_new.restype = None
_func_new.argtypes = (*(ctypes.c_void_p,) * 3, ctypes.py_object, *(ctypes.c_void_p,) * 2)

# These are quickest with arguments of ctypes' own types that are made once, and none declared.
_func_call: Final = _library.wasmtime_func_call_unchecked
_func_call.restype = ctypes.c_void_p
_memory_data: Final = _library.wasmtime_memory_data
_memory_data.restype = ctypes.c_void_p
_memory_size: Final = _library.wasmtime_memory_data_size
_memory_size.restype = ctypes.c_size_t

_HOST_TRAP: Final = b"a host function failed"  # which nobody gets to see

# wasm_trap_t *(*)(void *data, wasmtime_caller_t *caller, wasmtime_val_raw_t *slots, size_t count):
# a callee may take fewer parameters than it is given, and ctypes spends time on each.
_Callback: Final = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.py_object, ctypes.c_size_t, ctypes.c_size_t
)


def _enter(entry: Callable[[int, int], int | None], _caller: int, slots: int) -> int | None:
    return entry(slots, slots)


class Entrance:
    """By which wasmtime calls all host functions, each of which it is given as the data.

    Made before the fork: afterwards no callback can be (`shim.linux.callbacks`).
    """

    def __init__(self) -> None:
        self._callback = _Callback(_enter)
        self.address = ctypes.cast(self._callback, ctypes.c_void_p).value


class Store:
    """See `base.Store`."""

    def __init__(self, engine: wasmtime.Engine, entrance: Entrance, types: Types) -> None:
        self.native = wasmtime.Store(engine)
        self.context = context_of(self.native)
        self.trap = ctypes.c_void_p()
        self.types = types
        self._entrance = entrance
        self._entries: list[object] = []  # of which native code has only the addresses
        self._raised: BaseException | None = None

    def instantiate(self, module: Module, imports: Sequence[Extern]) -> Instance:
        """See `base.Store.instantiate`."""
        native = getattr(module, "native", None)
        assert isinstance(native, wasmtime.Module)
        externs: Any = imports
        array = (ffi.wasmtime_extern_t * len(externs))(*externs)
        instance = ffi.wasmtime_instance_t()
        make_sure_of_room()
        error = _instance_new(
            self.context,
            ctypes.cast(native.ptr(), ctypes.c_void_p),
            array,
            len(array),
            ctypes.byref(instance),
            ctypes.byref(self.trap),
        )
        if error is not None or self.trap.value is not None:
            raise self.failure(error)
        return Instance(self, instance)

    def function(
        self, params: Sequence[str], results: Sequence[str], call: Callable[..., Any]
    ) -> Extern:
        """See `base.Store.function`."""
        entry = host_entry(call, params, results, FORMATS, self._failed)
        self._entries.append(entry)
        made = ffi.wasmtime_extern_t(kind=_FUNCTION)
        kind = self.types.function(params, results)
        _func_new(
            self.context,
            ctypes.cast(kind.ptr(), ctypes.c_void_p),
            self._entrance.address,
            entry,
            None,
            ctypes.byref(made.of.func),
        )
        return made

    def _failed(self, error: BaseException, _target: int) -> int | None:
        self._raised = error
        trap: int | None = _trap_new(_HOST_TRAP, len(_HOST_TRAP))
        return trap

    def failure(self, error: int | None) -> BaseException:
        """Return what to raise after a call that returned this error, or left a trap."""
        raised, self._raised = self._raised, None
        trap, self.trap.value = self.trap.value, None
        if error is not None:
            said = WasmtimeError._from_ptr(ctypes.cast(error, ctypes.POINTER(ffi.wasmtime_error_t)))
            if str(said).startswith(_MISMATCHES):
                return ModuleError(_mismatch(str(said)))
            return Trap(cause(said)) if raised is None else raised
        assert trap is not None
        found = wasmtime.Trap._from_ptr(ctypes.cast(trap, ctypes.POINTER(ffi.wasm_trap_t)))
        return Trap(*told(found)) if raised is None else raised


class Instance:
    """See `base.Instance`."""

    def __init__(self, store: Store, instance: ffi.wasmtime_instance_t) -> None:
        self._store = store
        self._instance = instance

    def extern(self, name: str) -> ffi.wasmtime_extern_t:
        """See `base.Instance.extern`."""
        found = ffi.wasmtime_extern_t()
        text = name.encode()
        context, instance = self._store.context, ctypes.byref(self._instance)
        if not _export_get(context, instance, text, len(text), ctypes.byref(found)):
            raise ModuleError(f"the module has no export `{name}`")
        return found

    def function(self, name: str) -> Callable[..., Any]:
        """See `base.Instance.function`."""
        store, found = self._store, self.extern(name)
        if found.kind != _FUNCTION:
            raise ModuleError(f"export `{name}` is not a function")
        kind = ffi.wasmtime_func_type(store.native._context(), ctypes.byref(found.of.func))
        params, results = store.types.signature(wasmtime.FuncType._from_ptr(kind, None))
        count = max(len(params), len(results), 1)
        slots = (ctypes.c_ubyte * (SLOT * count))()
        invoke = partial(
            _func_call,
            ctypes.c_void_p(store.context),
            ctypes.pointer(found.of.func),
            slots,
            ctypes.c_size_t(count),
            ctypes.pointer(store.trap),
        )
        return guest_function(slots, params, results, FORMATS, invoke, store.trap, store.failure)

    def memory(self, name: str) -> Callable[[], memoryview]:
        """See `base.Instance.memory`."""
        store, found = self._store, self.extern(name)
        if found.kind != _MEMORY:
            raise ModuleError(f"export `{name}` is not a memory of one thread")
        if wasmtime.Memory._from_raw(found.of.memory).type(store.native).is_64:
            raise ModuleError(f"memory `{name}` is of 64 bits")
        return fetch(store.native, found.of.memory)


def _mismatch(said: str) -> str:
    what, _, why = said.replace("::", ".").partition("\n\nCaused by:\n")
    return one_line(f"{what}: {why}" if why else what)


def fetch(store: wasmtime.Store, memory: ffi.wasmtime_memory_t) -> Callable[[], memoryview]:
    """Return what returns a view of all of a memory, as long as it is then.

    The memory must not move when it grows: `Config.memory_may_move`.
    """
    context, pointer = ctypes.c_void_p(context_of(store)), ctypes.pointer(memory)
    size, address = (partial(ask, context, pointer) for ask in (_memory_size, _memory_data))
    return window(size, address, store)


def context_of(store: wasmtime.Store) -> int | None:
    """Return the address of a store's context."""
    return ctypes.cast(store._context(), ctypes.c_void_p).value
