"""Modules that are linked by hand, under wasmer (library; used in the guest).

With a library of ours arguments and results lie in slots of 8 bytes, and a host function fails by
leaving something in the last one. The standard C API has slots of 16, each a kind and a value, and
takes a `wasm_trap_t`; there all takes twice as long.

An extern is the address of a wasm_extern_t, which lives as long as the store: what makes it keeps
a reference to that.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, cast

from shim.engines import libwasmer
from shim.engines.base import Extern, Module, ModuleError, Trap
from shim.engines.interface import Interface
from shim.engines.libwasmer import KINDS, OURS, SLOTS, Vec, WasmerError, made
from shim.engines.slots import MEMORY, WORDS, guest_function, host_entry, make_sure_of_room, window
from shim.engines.wasmer_traps import told
from shim.linux.libc import memory_move
from shim.linux.messages import one_line

FORMATS: Final = (
    {"i32": "i4x", "i64": "q", "f32": "f4x", "f64": "d"}
    if OURS
    else {"i32": "8xi4x", "i64": "8xq", "f32": "8xf4x", "f64": "8xd"}
)
_SLOT: Final = 8 if OURS else 16  # bytes

_HOST_TRAP: Final = ctypes.create_string_buffer(b"a host function failed")  # nobody gets to see it
_MISMATCH: Final = "Error while importing "

_Entry = Callable[[int, int], int | None]

# void (*)(uint64_t *slots, void *environment)
_Callback: Final = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.py_object)
# wasm_trap_t *(*)(void *environment, const wasm_val_vec_t *arguments, wasm_val_vec_t *results)
_StandardCallback: Final = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.py_object, ctypes.c_size_t, ctypes.c_size_t
)


def _enter(slots: int, entry: _Entry) -> None:
    entry(slots, slots)


def _enter_standard(entry: _Entry, arguments: int, results: int) -> int | None:
    return entry(WORDS[(arguments >> 3) + 1], WORDS[(results >> 3) + 1])


class Entrance:
    """By which wasmer calls all host functions, each of which it is given as the environment.

    Made before the fork: afterwards no callback can be (`shim.linux.callbacks`).
    """

    def __init__(self) -> None:
        callback = _Callback(_enter) if OURS else _StandardCallback(_enter_standard)
        self._callback = callback  # of which native code has only the address
        self.address = ctypes.cast(callback, ctypes.c_void_p).value


class Placed(NamedTuple):
    """A module's data, in private memory of whole pages, and its place in the module's memory."""

    offset: int
    pages: mmap.mmap
    of_file: bool

    def put(self, memory: int, *, keep: bool) -> None:
        """Bring the pages to their place in a memory that nobody has written to, at this address.

        To `keep` them is for more memories; those of a file are shared by all until written to.
        """
        size, goal = len(self.pages), memory + self.offset
        source = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        if self.of_file or not keep:
            try:
                memory_move(source, size, goal, keep=keep)
            except OSError:
                pass  # it has no pages of this size, say, or the kernel is old
            else:
                return
        ctypes.memmove(goal, source, size)


class Loaded(NamedTuple):
    """A module, as wasmer has it, and what wasmer does not have of it."""

    native: int
    interface: Interface
    data: Placed | None


class Store:
    """See `base.Store`."""

    def __init__(self, engine: int, entrance: Entrance) -> None:
        self.trap = ctypes.c_void_p()
        self._entrance = entrance
        self._entries: list[object] = []  # of which native code has only the addresses
        self._raised: BaseException | None = None
        self._native = made(libwasmer.store_new(engine))
        # The native store ends with the last of them.
        self._owned: list[tuple[Callable[[Any], None], Any]] = [
            (libwasmer.store_delete, self._native)
        ]

    def __del__(self) -> None:
        for delete, native in reversed(self._owned):
            delete(native)

    def instantiate(self, module: Module, imports: Sequence[Extern]) -> Instance:
        """See `base.Store.instantiate`."""
        loaded: Loaded = cast("Any", module).loaded
        externs: Any = imports
        array = (ctypes.c_void_p * len(externs))(*externs)
        wanted = len(loaded.interface.imports)
        if len(array) != wanted:
            raise ModuleError(f"the module has {wanted} imports, not {len(array)}")
        vector = Vec(len(array), ctypes.addressof(array))
        make_sure_of_room()
        native = libwasmer.instance_new(self._native, loaded.native, vector, self.trap)
        if native is None:
            raise self._refusal()
        exports = Vec()
        libwasmer.instance_exports(native, exports)
        self._owned += [
            (libwasmer.instance_delete, native),
            (libwasmer.extern_vec_delete, exports),
        ]
        return Instance(self, loaded, exports.pointers())

    def _refusal(self) -> BaseException:
        """Return what to raise where there is no instance."""
        trap, self.trap.value = self.trap.value, None
        if trap is not None:
            return self.failure(trap)
        try:
            made(None)
        except WasmerError as error:
            reason = one_line(error)
            return ModuleError(reason) if _MISMATCH in reason else Trap(reason)
        raise AssertionError

    def function(
        self, params: Sequence[str], results: Sequence[str], call: Callable[..., Any]
    ) -> Extern:
        """See `base.Store.function`."""
        entry = host_entry(call, params, results, FORMATS, self._failed)
        kind = libwasmer.functype(tuple(params), tuple(results))
        if OURS:
            new = libwasmer.our_func_new(self._native, kind, self._entrance.address, entry)
        else:
            entry = _with_kind(entry, results)
            new = libwasmer.func_new_with_env(
                self._native, kind, self._entrance.address, entry, None
            )
        self._entries.append(entry)
        function = made(new)
        self._owned.append((libwasmer.func_delete, function))
        extern: int = libwasmer.func_as_extern(function)
        return extern

    def _failed(self, error: BaseException, target: int) -> int | None:
        self._raised = error
        if OURS:
            WORDS[(target >> 3) + SLOTS - 1] = 1
            return None
        message = Vec(len(_HOST_TRAP), ctypes.addressof(_HOST_TRAP))
        trap: int | None = libwasmer.trap_new(self._native, message)
        return trap

    def failure(self, trap: int | None) -> BaseException:
        """Return what to raise after a call that returned this trap, which is deleted."""
        raised, self._raised = self._raised, None
        found = Trap(*told(made(trap)))
        return found if raised is None else raised


def _with_kind(entry: _Entry, results: Sequence[str]) -> _Entry:
    """Return an entry that also says of which kind the result is, if there is one."""
    kind = KINDS[results[0]] if results else None

    def standard(arguments: int, target: int) -> int | None:
        trap = entry(arguments, target)
        if kind is not None:
            MEMORY[target] = kind
        return trap

    return standard


class Instance:
    """See `base.Instance`."""

    def __init__(self, store: Store, loaded: Loaded, exports: Sequence[int]) -> None:
        self._store = store
        self._interface = loaded.interface
        self._exports = exports
        self._positions = {name: i for i, name in enumerate(loaded.interface.exports)}
        if loaded.data is not None:
            memory = made(libwasmer.extern_as_memory(self.extern("memory")))
            loaded.data.put(libwasmer.memory_data(memory), keep=True)

    def extern(self, name: str) -> int:
        """See `base.Instance.extern`."""
        try:
            return self._exports[self._positions[name]]
        except KeyError:
            raise ModuleError(f"the module has no export `{name}`") from None

    def function(self, name: str) -> Callable[..., Any]:
        """See `base.Instance.function`."""
        function = libwasmer.extern_as_func(self.extern(name))
        kind = self._interface.exported(name)
        if function is None or kind is None:
            raise ModuleError(f"export `{name}` is not a function")
        params, results = kind
        count = max(len(params), len(results), 1)
        slots = (ctypes.c_ubyte * (_SLOT * count))()
        invoke: Callable[[], int | None]
        if OURS:
            invoke = partial(
                libwasmer.our_func_call, ctypes.c_void_p(function), slots, ctypes.c_size_t(count)
            )
        else:
            invoke = _standard_invoke(function, slots, params, results)
        store = self._store
        return guest_function(slots, params, results, FORMATS, invoke, store.trap, store.failure)

    def memory(self, name: str) -> Callable[[], memoryview]:
        """See `base.Instance.memory`."""
        memory = libwasmer.extern_as_memory(self.extern(name))
        if memory is None:
            raise ModuleError(f"export `{name}` is not a memory")
        return fetch(memory, self._store)


def _standard_invoke(
    function: int,
    slots: ctypes.Array[ctypes.c_ubyte],
    params: Sequence[str],
    results: Sequence[str],
) -> Callable[[], int | None]:
    kinds = [(index * _SLOT, KINDS.get(kind, 0)) for index, kind in enumerate(params)]
    address = ctypes.addressof(slots)
    arguments, returned = Vec(len(params), address), Vec(len(results), address)

    def invoke() -> int | None:
        for position, kind in kinds:
            slots[position] = kind
        trap: int | None = libwasmer.func_call(function, arguments, returned)
        return trap

    return invoke


def fetch(memory: int, keep: object) -> Callable[[], memoryview]:
    """Return what returns a view of all of a memory, as long as it is then, and keeps an object.

    It does not move when it grows: wasmer reserves address space for 4 GiB.
    """
    pointer = ctypes.c_void_p(memory)
    ask_size, ask_address = libwasmer.memory_data_size, libwasmer.memory_data
    return window(partial(ask_size, pointer), partial(ask_address, pointer), keep)
