"""wasmtime, with our own WASI (library).

The engine and the linker are made once, before any fork: neither starts a thread, and a guest only
deserializes and instantiates.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

import wasmtime
from wasmtime import FuncType, MemoryType, Trap, WasmtimeError
from wasmtime import _ffi as ffi

from shim.engines.base import (
    START,
    Grants,
    ModuleError,
    backtrace,
    cpu,
    internal_error,
    not_instantiated,
    trapped,
)
from shim.engines.linking import Signature, check_export, link, signature_of
from shim.engines.text import assembled
from shim.engines.wasmtime_store import Entrance, Store, fetch
from shim.engines.wasmtime_traps import told
from shim.engines.wasmtime_types import Types
from shim.engines.wasmtime_wasi import HostFunction
from shim.wasi import preview1
from shim.wasi.preview1.program import Program

if TYPE_CHECKING:
    from wasmtime._instance import InstanceExports
    from wasmtime._types import AsExternType

NAME: Final = "wasmtime"
_INITIALIZE: Final = "_initialize"

_PROCESS_STACK: Final = 8 << 20  # bytes, which is Linux's default
_STACK: Final = 6 << 20  # of it; the rest is the interpreter's

PROPOSALS: Final = ("wasm_exceptions",)
"""What wasmtime has off by default, and compilers of today use."""


def _version() -> str:
    """Return the version of the package, which it does not tell itself.

    importlib.metadata would, and would cost every later fork 3 MB of modules to share.
    """
    for name in os.listdir(os.path.dirname(os.path.dirname(wasmtime.__file__))):
        if name.startswith("wasmtime-") and name.endswith(".dist-info"):
            return name.removeprefix("wasmtime-").removesuffix(".dist-info")
    return "unknown"


def _allow_deep_recursion(config: wasmtime.Config) -> None:
    """Let a guest have most of its process's stack, as wasmer does.

    wasmtime's default is 512 KiB, in which a JSON parser compiled from Go does not get far. It must
    be less than the size of stacks that are never used here, for which the package has no setter.
    """
    set_async_stack_size = ffi.dll.wasmtime_config_async_stack_size_set
    set_async_stack_size.argtypes = (ctypes.c_void_p, ctypes.c_uint64)
    set_async_stack_size.restype = None
    set_async_stack_size(ctypes.cast(config.ptr(), ctypes.c_void_p), _STACK + (1 << 20))
    config.max_wasm_stack = _STACK


class Host:
    """What does not depend on the module: the linker, and the program that it serves."""

    def __init__(self) -> None:
        config = wasmtime.Config()
        config.parallel_compilation = False
        _allow_deep_recursion(config)
        for proposal in PROPOSALS:
            setattr(config, proposal, True)
        self.engine = wasmtime.Engine(config)
        self.entrance = Entrance()
        self.types = Types()

        self.program = Program()
        provided = preview1.provide(self.program)
        self.functions = {
            bound: HostFunction(bound, self.types) for bound in dict.fromkeys(provided.values())
        }
        self.signatures = {place: signature_of(bound) for place, bound in provided.items()}
        self.linker = wasmtime.Linker(self.engine)
        self.linker.allow_shadowing = True  # for variants
        for place, bound in provided.items():
            self.functions[bound].define(self.linker, *place)
        self.variants = {
            (name, signature_of(bound)): HostFunction(bound, self.types)
            for name, bound in preview1.bind_variants(self.program).items()
        }


class WasmtimeModule:
    """A module ready to be instantiated."""

    def __init__(self, host: Host, module: wasmtime.Module) -> None:
        self._host = host
        self.native = module

    def check(self, function: str = START) -> None:
        """See `Module.check`."""
        try:
            self._host.linker.instantiate_pre(self.native)
        except WasmtimeError as error:
            self._choose_variants(error)
        found = [export.type for export in self.native.exports if export.name == function]
        check_export(function, bool(found), self._signature(found[0]) if found else None)

    def _choose_variants(self, error: WasmtimeError) -> None:
        """Link imports that are not what is provided by their name."""
        host = self._host
        wanted = []
        for item in self.native.imports:
            place = item.module, item.name or ""
            # Only where it matters: asking for a type that the C API has no word for is the end.
            known = place in host.signatures and isinstance(item.type, FuncType)
            wanted.append((*place, self._signature(item.type) if known else None))
        chosen = link(wanted, host.signatures, host.variants)
        for name, signature in chosen.items():
            host.variants[name, signature].define(host.linker, preview1.MODULE, name)
        if not chosen:  # it is something that we do not know of
            raise ModuleError(str(error).replace("::", ".")) from None

    def _signature(self, kind: AsExternType) -> Signature | None:
        """Return the type of an import or export, if it is a function."""
        return self._host.types.signature(kind) if isinstance(kind, FuncType) else None

    def run(self, grants: Grants, function: str = START) -> NoReturn:
        """See `Module.run`."""
        _with_stack(lambda: self._run(grants, function))

    def _run(self, grants: Grants, function: str) -> NoReturn:
        store = wasmtime.Store(self._host.engine)
        try:
            grants.give(self._host.program)
            exports = self._instantiate(store)
            for name in (_INITIALIZE, function) if function != START else (START,):
                if name != _INITIALIZE or _INITIALIZE in exports:
                    entry = exports[name]
                    assert isinstance(entry, wasmtime.Func)
                    entry(store)
        except Trap as trap:
            trapped(backtrace(*told(trap)))
        except WasmtimeError as error:
            trapped(not_instantiated(error))
        except BaseException as error:
            trapped(internal_error(error))
        os._exit(0)

    def _instantiate(self, store: wasmtime.Store) -> InstanceExports:
        exports = self._host.linker.instantiate(store, self.native).exports(store)
        memory = exports.get("memory")
        # One of 64 bits may move when it grows, and nothing of preview 1 could point into it.
        if isinstance(memory, wasmtime.Memory) and not memory.type(store).is_64:
            self._host.program.memory.attach(fetch(store, memory._memory))
        return exports


def _with_stack(run: Callable[[], NoReturn]) -> NoReturn:
    """Run on this process's stack, or on a thread's where that may not grow as a guest's may.

    wasmtime has been told how deep a guest may go, and beyond a stack's end the kernel kills. It is
    the last that this process does: it forks no more, and ends with the thread.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if limit == resource.RLIM_INFINITY or limit >= _PROCESS_STACK:
        run()
    _thread.stack_size(_PROCESS_STACK)
    ends_never = _thread.allocate_lock()
    ends_never.acquire()
    try:
        _thread.start_new_thread(run, ())
    except RuntimeError:  # its cgroup, or a limit, allows no more
        run()
    ends_never.acquire()
    raise AssertionError


class Wasmtime:
    """The engine."""

    name: Final = NAME
    maps: Final = True
    version: Final[str] = _version()
    others: Final = ()

    def __init__(self) -> None:
        self.host = Host()

    def fingerprint(self) -> str:
        """See `Engine.fingerprint`."""
        return f"{NAME} {self.version} {' '.join(PROPOSALS)} {cpu()}"

    def compile(self, wasm: bytes | memoryview) -> bytes:
        """See `Engine.compile`."""
        try:
            module = wasmtime.Module(self.host.engine, assembled(wasm))
            artifact = bytes(module.serialize())
        except WasmtimeError as error:
            raise ModuleError(f"invalid wasm module: {error}") from None
        for export in module.exports:
            if isinstance(export.type, MemoryType) and export.type.is_shared:
                # It could be compiled but not instantiated, which nobody would know before Start.
                raise ModuleError("shared memory is for threads, and WASI preview 1 has none")
        return artifact

    def load(self, artifact: bytes | memoryview) -> WasmtimeModule:
        """See `Engine.load`."""
        try:
            module = wasmtime.Module.deserialize(self.host.engine, bytes(artifact))
        except WasmtimeError as error:
            raise ModuleError(f"unusable artifact: {error}") from None
        return WasmtimeModule(self.host, module)

    def load_file(self, path: str) -> WasmtimeModule:
        """See `Engine.load_file`."""
        try:
            module = wasmtime.Module.deserialize_file(self.host.engine, path)
        except WasmtimeError as error:
            raise ModuleError(f"unusable artifact: {error}") from None
        return WasmtimeModule(self.host, module)

    def store(self) -> Store:
        """See `Engine.store`."""
        return Store(self.host.engine, self.host.entrance, self.host.types)

    def with_stack(self, run: Callable[[], NoReturn]) -> NoReturn:
        """See `Engine.with_stack`."""
        _with_stack(run)
