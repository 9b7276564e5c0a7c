"""wasmer by its wheels, with our own WASI (library).

They end with 1.1.0, of 2022, for CPython 3.10; `shim.engines.flaws` is in front of them.

The store, the host functions and the import object are made once, before any fork; a guest only
deserializes its artifact, instantiates it and calls `_start`. Loading uses an engine without a
compiler.

wasmer-python's types come without stubs, hence the `Any`s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import wasmer
import wasmer_compiler_cranelift  # here, because the compiler process has no file to import from

from shim.engines.base import (
    START,
    Grants,
    ModuleError,
    backtrace,
    cpu,
    internal_error,
    not_instantiated,
    raised_in,
    trapped,
)
from shim.engines.gil_pool import GilPool
from shim.engines.linking import Signature, check_export, link, signature_of
from shim.engines.text import assembled
from shim.engines.wheel_store import Store, functype, signature, trap_of
from shim.wasi import preview1
from shim.wasi.preview1.abi import Bound
from shim.wasi.preview1.program import Program

NAME: Final = "wasmer"
_INITIALIZE: Final = "_initialize"


class Host:
    """Everything of wasmer's that does not depend on the module, and the program it serves."""

    def __init__(self) -> None:
        self.program = Program()
        self.store = wasmer.Store(wasmer.engine.Universal(None))
        provided = preview1.provide(self.program)
        functions = {bound: self._function(bound) for bound in dict.fromkeys(provided.values())}
        self._functions: dict[str, dict[str, Any]] = {}
        for (module, name), bound in provided.items():
            self._functions.setdefault(module, {})[name] = functions[bound]
        self.signatures = {place: signature_of(bound) for place, bound in provided.items()}
        self.variants: dict[tuple[str, Signature], Any] = {}
        for name, bound in preview1.bind_variants(self.program).items():
            self.variants[name, signature_of(bound)] = self._function(bound)
        self._imports = self._object({})
        self.gil_pool = GilPool(wasmer.wasmer.__file__, self._nest)

    def _function(self, bound: Bound) -> Any:
        return wasmer.Function(self.store, bound.call, functype(bound.params, bound.results))

    def imports(self, variants: Mapping[str, Any]) -> Any:
        """Return the import object, with these functions in the place of others."""
        return self._object(variants) if variants else self._imports

    def _object(self, variants: Mapping[str, Any]) -> Any:
        imports = wasmer.ImportObject()
        for module, functions in self._functions.items():
            others = variants if module == preview1.MODULE else {}
            imports.register(module, {**functions, **others})
        return imports

    def _nest(self, look: Callable[[], None]) -> None:
        """Call `look` 1, 2, 4 and 2 extension calls deep (see `GilPool`)."""

        class Annotation:
            def __str__(self) -> str:
                look()
                return ""

        def annotated() -> None: ...

        annotated.__annotations__ = {"parameter": Annotation()}
        try:  # one deep: the extension asks for the text of an annotation, and then dislikes it
            wasmer.Function(self.store, annotated)
        except RuntimeError:
            pass
        # Calling a host function from Python goes into the extension and back: two deep.
        nothing = wasmer.FunctionType([], [])
        inner = wasmer.Function(self.store, look, nothing)

        def outer() -> None:
            look()
            inner()
            look()

        wasmer.Function(self.store, outer, nothing)()


class WasmerModule:
    """A module ready to be instantiated, once."""

    def __init__(self, host: Host, module: Any) -> None:
        self._host = host
        self.native = module
        self._variants: dict[str, Any] = {}

    def check(self, function: str = START) -> None:
        """See `Module.check`."""
        wanted = [(w.module, w.name, signature(w.type)) for w in self.native.imports]
        host = self._host
        for variant in link(wanted, host.signatures, host.variants).items():
            self._variants[variant[0]] = host.variants[variant]
        found = [export.type for export in self.native.exports if export.name == function]
        check_export(function, bool(found), signature(found[0]) if found else None)

    def run(self, grants: Grants, function: str = START) -> NoReturn:
        """See `Module.run`."""
        host = self._host
        exports = {export.name for export in self.native.exports}
        try:
            grants.give(host.program)
            instance = wasmer.Instance(self.native, host.imports(self._variants))
            found = instance.exports
            if "memory" in exports and isinstance(found.memory, wasmer.Memory):
                memory = found.memory
                host.program.memory.attach(lambda: memoryview(memory.buffer))
            if function != START and _INITIALIZE in exports:
                host.gil_pool.drained(getattr(found, _INITIALIZE))
            host.gil_pool.drained(getattr(found, function))
        except BaseException as error:
            trapped(_message(error))
        os._exit(0)


def _message(error: BaseException) -> str:
    """Tell a trap, which wasmer raises itself, from what escaped a host function of ours."""
    if isinstance(error, RuntimeError) and raised_in(error) in ("drained", "run"):
        trap = trap_of(error)
        return backtrace(str(trap), trap.frames) if trap else not_instantiated(error)
    return internal_error(error)


class WasmerWheel:
    """The engine."""

    name: Final = NAME
    maps: Final = False
    version: Final[str] = wasmer.__version__
    others: Final = ()

    def __init__(self) -> None:
        self.host = Host()

    def fingerprint(self) -> str:
        """See `Engine.fingerprint`."""
        return f"{NAME} {self.version} cranelift universal {cpu()}"

    def compile(self, wasm: bytes | memoryview) -> bytes:
        """See `Engine.compile`."""
        binary = assembled(wasm)
        store = wasmer.Store(wasmer.engine.Universal(wasmer_compiler_cranelift.Compiler))
        try:
            artifact: bytes = wasmer.Module(store, binary).serialize()
        except RuntimeError as error:
            raise ModuleError(f"invalid wasm module: {error}") from None
        return artifact

    def load(self, artifact: bytes | memoryview) -> WasmerModule:
        """See `Engine.load`."""
        try:
            module = wasmer.Module.deserialize(self.host.store, bytes(artifact))
        except RuntimeError as error:
            raise ModuleError(f"unusable artifact: {error}") from None
        return WasmerModule(self.host, module)

    def load_file(self, path: str) -> WasmerModule:
        """See `Engine.load_file`."""
        try:
            with open(path, "rb") as file:
                return self.load(file.read())
        except OSError as error:
            raise ModuleError(f"unusable artifact: {error.strerror}") from None

    def store(self) -> Store:
        """See `Engine.store`."""
        return Store(self.host.store, self.host.gil_pool)

    def with_stack(self, run: Callable[[], NoReturn]) -> NoReturn:
        """See `Engine.with_stack`: wasmer brings its own."""
        run()
