"""wasmtime, with its native WASI (library).

The engine and the linker are made once, before any fork: neither starts a thread, and a guest only
deserializes and instantiates. The native WASI starts threads of its own when it runs, which is
after the last fork.
"""

from __future__ import annotations

import os
from typing import Final, NoReturn

import wasmtime
from wasmtime import Frame, FuncType, Trap, TrapCode, WasmtimeError

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

NAME: Final = "wasmtime"
_INITIALIZE: Final = "_initialize"

# The words of the specification's own tests, which wasmer uses too.
_REASONS: Final = {
    TrapCode.STACK_OVERFLOW: "call stack exhausted",
    TrapCode.MEMORY_OUT_OF_BOUNDS: "out of bounds memory access",
    TrapCode.TABLE_OUT_OF_BOUNDS: "undefined element: out of bounds table access",
    TrapCode.INDIRECT_CALL_TO_NULL: "uninitialized element",
    TrapCode.BAD_SIGNATURE: "indirect call type mismatch",
    TrapCode.INTEGER_OVERFLOW: "integer overflow",
    TrapCode.INTEGER_DIVISION_BY_ZERO: "integer divide by zero",
    TrapCode.BAD_CONVERSION_TO_INTEGER: "invalid conversion to integer",
    TrapCode.UNREACHABLE: "unreachable",
}


def _version() -> str:
    """Return the version of the package, which it does not tell itself.

    importlib.metadata would, and would cost every later fork 3 MB of modules to share.
    """
    for name in os.listdir(os.path.dirname(os.path.dirname(wasmtime.__file__))):
        if name.startswith("wasmtime-") and name.endswith(".dist-info"):
            return name.removeprefix("wasmtime-").removesuffix(".dist-info")
    return "unknown"


class Host:
    """What does not depend on the module."""

    def __init__(self) -> None:
        config = wasmtime.Config()
        config.parallel_compilation = False
        self.engine = wasmtime.Engine(config)
        self.linker = wasmtime.Linker(self.engine)
        self.linker.define_wasi()
        # The native one refuses statuses from 126 on. This process ends with the program anyway.
        self.linker.allow_shadowing = True
        status = FuncType([wasmtime.ValType.i32()], [])
        self.linker.define_func("wasi_snapshot_preview1", "proc_exit", status, _exit)


class WasmtimeModule:
    """A module ready to be instantiated."""

    def __init__(self, host: Host, module: wasmtime.Module) -> None:
        self._host = host
        self._module = module

    def check(self, function: str = START) -> None:
        """See `Module.check`."""
        try:
            self._host.linker.instantiate_pre(self._module)
        except WasmtimeError as error:
            raise self._unlinkable(error) from None
        for export in self._module.exports:
            if export.name == function:
                break
        else:
            raise ModuleError(f"the module exports no function `{function}`")
        if not isinstance(export.type, FuncType):
            raise ModuleError(f"export `{function}` is not a function")
        if export.type.params:
            raise ModuleError(f"export `{function}` must not take parameters")

    def _unlinkable(self, error: WasmtimeError) -> ModuleError:
        store = wasmtime.Store(self._host.engine)
        for wanted in self._module.imports:
            try:
                self._host.linker.get(store, wanted.module, wanted.name or "")
            except WasmtimeError:
                name = f"{wanted.module}.{wanted.name}"
                return ModuleError(f"unknown import `{name}`: nobody provides it")
        return ModuleError(str(error).replace("::", "."))

    def run(self, grants: Grants, function: str = START) -> NoReturn:
        """See `Module.run`."""
        try:
            store = wasmtime.Store(self._host.engine)
            store.set_wasi(_wasi(grants))
            exports = self._host.linker.instantiate(store, self._module).exports(store)
            for name in (_INITIALIZE, function) if function != START else (START,):
                if name != _INITIALIZE or _INITIALIZE in exports:
                    entry = exports[name]
                    assert isinstance(entry, wasmtime.Func)
                    entry(store)
        except Trap as trap:
            trapped(_message(trap))
        except BaseException as error:
            trapped(f"pywasm: wasmtime: {type(error).__name__}: {one_line(error)}")
        os._exit(0)


def _exit(status: int) -> None:
    os._exit(status & 0xFF)


def _wasi(grants: Grants) -> wasmtime.WasiConfig:
    config = wasmtime.WasiConfig()
    try:
        config.argv = [text.decode() for text in grants.args]
        config.env = [pair.decode().split("=", 1) for pair in grants.environment() if b"=" in pair]
    except UnicodeDecodeError as error:
        trapped(f"pywasm: wasmtime: arguments and environment must be UTF-8: {error.object!r}")
    config.inherit_stdin()
    config.inherit_stdout()
    config.inherit_stderr()
    for preopen in grants.preopens:
        # Only by name: the descriptor's directory has to be what this process finds there.
        config.preopen_dir(preopen.name, preopen.name, not preopen.readonly)
        os.close(preopen.fd)
    return config


def _message(trap: Trap) -> str:
    code = trap.trap_code
    reason = _REASONS.get(code, one_line(trap)) if code else one_line(trap)
    return backtrace(reason, [_place(frame) for frame in trap.frames])


def _place(frame: Frame) -> str:
    module = frame.module_name or "<module>"
    offset = frame.module_offset & 0xFFFFFFFF  # all ones where it is not known
    return f"    at {frame.func_name or '<unnamed>'} ({module}[{frame.func_index}]:{offset:#x})"


class Wasmtime:
    """The engine."""

    name: Final = NAME
    version: Final[str] = _version()

    def __init__(self) -> None:
        self.host = Host()

    def fingerprint(self) -> str:
        """See `Engine.fingerprint`."""
        return f"{NAME} {self.version} {cpu()}"

    def compile(self, wasm: bytes | memoryview) -> bytes:
        """See `Engine.compile`."""
        check_header(wasm)
        try:
            return bytes(wasmtime.Module(self.host.engine, bytes(wasm)).serialize())
        except WasmtimeError as error:
            raise ModuleError(f"invalid wasm module: {error}") from None

    def load(self, artifact: bytes | memoryview) -> WasmtimeModule:
        """See `Engine.load`."""
        try:
            module = wasmtime.Module.deserialize(self.host.engine, bytes(artifact))
        except WasmtimeError as error:
            raise ModuleError(f"unusable artifact: {error}") from None
        return WasmtimeModule(self.host, module)
