"""wasmer, with our own WASI (library).

The store, the host functions and the import object are made once, before any fork; a guest only
deserializes its artifact, instantiates it and calls `_start`. Loading uses an engine without a
compiler.

wasmer-python's types come without stubs, hence the `Any`s.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, NoReturn

import wasmer
import wasmer_compiler_cranelift  # here, because the compiler process has no file to import from

from shim.engines.base import (
    START,
    Grants,
    ModuleError,
    backtrace,
    check_header,
    cpu,
    one_line,
    trapped,
)
from shim.engines.gil_pool import GilPool
from shim.wasi import preview1
from shim.wasi.program import Program

NAME: Final = "wasmer"
_INITIALIZE: Final = "_initialize"

_TYPES: Final = {"i32": wasmer.Type.I32, "i64": wasmer.Type.I64}
_TYPE_NAMES: Final = {
    int(getattr(wasmer.Type, name)): name.lower()
    for name in ("I32", "I64", "F32", "F64", "V128", "EXTERN_REF", "FUNC_REF")
}


def _signature(params: list[Any], results: list[Any]) -> str:
    names = ", ".join(_TYPE_NAMES[int(kind)] for kind in params)
    return f"({names}) -> ({', '.join(_TYPE_NAMES[int(kind)] for kind in results)})"


class Host:
    """Everything of wasmer's that does not depend on the module, and the program it serves."""

    def __init__(self) -> None:
        self.program = Program()
        self.store = wasmer.Store(wasmer.engine.Universal(None))
        self.imports = wasmer.ImportObject()
        self.signatures: dict[tuple[str, str], str] = {}
        functions: dict[str, Any] = {}
        for name, bound in preview1.bind(self.program).items():
            params = [_TYPES[kind] for kind in bound.params]
            results = [_TYPES[kind] for kind in bound.results]
            kind = wasmer.FunctionType(params, results)
            functions[name] = wasmer.Function(self.store, bound.call, kind)
            self.signatures[preview1.MODULE, name] = _signature(params, results)
        self.imports.register(preview1.MODULE, functions)
        self.gil_pool = GilPool(wasmer.wasmer.__file__, self._nest)

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
        self._module = module

    def check(self, function: str = START) -> None:
        """See `Module.check`."""
        signatures = self._host.signatures
        for wanted in self._module.imports:
            name = f"{wanted.module}.{wanted.name}"
            provided = signatures.get((wanted.module, wanted.name))
            if provided is None:
                raise ModuleError(f"unknown import `{name}`: nobody provides it")
            if not isinstance(wanted.type, wasmer.FunctionType):
                raise ModuleError(f"import `{name}` is a function, the module takes it for another")
            asked = _signature(wanted.type.params, wanted.type.results)
            if asked != provided:
                raise ModuleError(f"import `{name}` is {provided}, the module takes it for {asked}")
        for export in self._module.exports:
            if export.name == function:
                break
        else:
            raise ModuleError(f"the module exports no function `{function}`")
        if not isinstance(export.type, wasmer.FunctionType):
            raise ModuleError(f"export `{function}` is not a function")
        if export.type.params:
            asked = _signature(export.type.params, export.type.results)
            raise ModuleError(f"export `{function}` is {asked}, it must not take parameters")

    def run(self, grants: Grants, function: str = START) -> NoReturn:
        """See `Module.run`."""
        host = self._host
        exports = {export.name for export in self._module.exports}
        preopens = [(os.fsencode(p.name), p.fd, p.readonly) for p in grants.preopens]
        try:
            host.program.grant(grants.args, grants.environment(), preopens)
            instance = wasmer.Instance(self._module, host.imports)
            found = instance.exports
            if "memory" in exports and isinstance(found.memory, wasmer.Memory):
                memory = found.memory
                host.program.memory.attach(lambda: memoryview(memory.buffer))
            if function != START and _INITIALIZE in exports:
                _call(host, getattr(found, _INITIALIZE))
            _call(host, getattr(found, function))
        except BaseException as error:
            trapped(_message(error))
        os._exit(0)


def _call(host: Host, function: Callable[[], Any]) -> None:
    with host.gil_pool.drained():
        function()


def _message(error: BaseException) -> str:
    """Tell a trap, which wasmer raises itself, from what escaped a host function of ours."""
    inner = error.__traceback__
    while inner is not None and inner.tb_next is not None:
        inner = inner.tb_next
    place = inner.tb_frame.f_code.co_name if inner is not None else "?"
    if isinstance(error, RuntimeError) and place in ("_call", "run"):
        reason, *frames = str(error).split("\n")
        if reason.startswith("RuntimeError: "):
            return backtrace(reason.removeprefix("RuntimeError: "), frames)
        return f"pywasm: the module cannot be instantiated: {one_line(error)}"
    return f"pywasm: internal error in {place}: {type(error).__name__}: {one_line(error)}"


class Wasmer:
    """The engine."""

    name: Final = NAME
    version: Final[str] = wasmer.__version__

    def __init__(self) -> None:
        self.host = Host()

    def fingerprint(self) -> str:
        """See `Engine.fingerprint`."""
        return f"{NAME} {self.version} cranelift universal {cpu()}"

    def compile(self, wasm: bytes | memoryview) -> bytes:
        """See `Engine.compile`."""
        check_header(wasm)  # wasmer would take anything else for WebAssembly text
        store = wasmer.Store(wasmer.engine.Universal(wasmer_compiler_cranelift.Compiler))
        try:
            artifact: bytes = wasmer.Module(store, bytes(wasm)).serialize()
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
