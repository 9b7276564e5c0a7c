"""wasmer, with our own WASI (library).

Driven through its C API, on any CPython. The engine, the store and the host functions are made
once, before any fork: none of them starts a thread, and a guest only loads its artifact,
instantiates it and calls `_start`.

A guest has a stack of wasmer's; host functions run on that of the process. What the standard C API
lacks a library of ours has (`libwasmer.rs`): without it that stack is of 1 MiB, and each guest has
copies of its artifact, of five times the native code. A module's data lies beside what wasmer makes
of the rest, to be mapped to its place in the memory (`shim.engines.data`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, NoReturn

import msgspec

from shim.engines import libwasmer
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
from shim.engines.data import PAGE, apart
from shim.engines.interface import Interface, interface_of
from shim.engines.libwasmer import CRANELIFT, Vec, WasmerError, made
from shim.engines.linking import signature_of
from shim.engines.tables import growable
from shim.engines.text import assembled
from shim.engines.wasmer_store import Entrance, Loaded, Placed, Store, fetch
from shim.engines.wasmer_traps import told
from shim.engines.wasmer_wasi import HostFunction
from shim.wasi import preview1
from shim.wasi.preview1.program import Program

NAME: Final = "wasmer"
_INITIALIZE: Final = "_initialize"

_PROPOSALS: Final = {
    "threads": False,  # WASI preview 1 has none
    "exceptions": True,
    "relaxed_simd": True,
    "wide_arithmetic": True,
}
"""What of wasmer's configuration is not its default; it has tail calls only with LLVM."""

_STACK: Final = 6 << 20  # bytes, as under wasmtime

# An artifact: this, what wasmer made, the length of an outline, the outline, and on whole pages the
# data. An ELF image has room for this in its own head (e_ident), or it could not be mapped.
_HEAD: Final = struct.Struct("<12sI")
_ELF: Final = b"\x7fELF"
_MAGIC: Final = b"pywasmer\0\0\0\0"
_LENGTH: Final = struct.Struct("<I")
_FORMAT: Final = 4


class Outline(NamedTuple):
    """What is not in wasmer's own part of an artifact: of the data, its place and length."""

    interface: Interface
    data_offset: int
    data_length: int


_decode: Final = msgspec.msgpack.Decoder(Outline).decode


class Host:
    """Everything of wasmer's that does not depend on the module, and the program it serves."""

    def __init__(self) -> None:
        self.program = Program()
        self.engine = _engine()
        self.entrance = Entrance()
        self.store = made(libwasmer.store_new(self.engine))
        provided = preview1.provide(self.program)
        functions = {
            bound: HostFunction(self.store, bound) for bound in dict.fromkeys(provided.values())
        }
        self.functions = {place: functions[bound] for place, bound in provided.items()}
        self.signatures = {place: signature_of(bound) for place, bound in provided.items()}
        self.variants = {
            (name, signature_of(bound)): HostFunction(self.store, bound)
            for name, bound in preview1.bind_variants(self.program).items()
        }


def _engine(compiler: str = CRANELIFT) -> int:
    features = libwasmer.features_new()
    libwasmer.enable(features, _PROPOSALS)
    if libwasmer.OURS and compiler == CRANELIFT:
        libwasmer.our_set_stack_size(_STACK)
        return made(libwasmer.our_engine_new(features))
    config = libwasmer.config_new()
    libwasmer.config_set_features(config, features)
    libwasmer.config_set_backend(config, libwasmer.COMPILERS[compiler])
    return made(libwasmer.engine_new_with_config(config))


class WasmerModule:
    """A module ready to be instantiated, once."""

    def __init__(self, host: Host, loaded: Loaded) -> None:
        self._host = host
        self.loaded = loaded
        self._imports: list[int] = []

    def check(self, function: str = START) -> None:
        """See `Module.check`."""
        host = self._host
        interface = self.loaded.interface
        chosen = interface.check(host, function)
        self._imports = [
            (
                host.variants[name, chosen[name]]
                if name in chosen
                else host.functions[module, name]
            ).extern
            for module, name, *_ in interface.imports
        ]

    def run(self, grants: Grants, function: str = START) -> NoReturn:
        """See `Module.run`."""
        try:
            grants.give(self._host.program)
            exports = self._instantiate()
            for name in (_INITIALIZE, function) if function != START else (START,):
                if name != _INITIALIZE or _INITIALIZE in exports:
                    _call(exports[name])
        except WasmerError as error:
            trapped(not_instantiated(error))
        except BaseException as error:
            trapped(internal_error(error))
        os._exit(0)

    def _instantiate(self) -> dict[str, int]:
        """Return the exports by name, as wasm_extern_t."""
        trap = ctypes.c_void_p()
        array = (ctypes.c_void_p * len(self._imports))(*self._imports)
        imports = Vec(len(array), ctypes.addressof(array))
        native, interface, data = self.loaded
        instance = libwasmer.instance_new(self._host.store, native, imports, trap)
        if trap.value:
            trapped(backtrace(*told(trap.value)))
        found = Vec()
        libwasmer.instance_exports(made(instance), found)
        exports = dict(zip(interface.exports, found.pointers(), strict=True))
        memory = libwasmer.extern_as_memory(exports.get("memory"))
        if memory:
            self._host.program.memory.attach(fetch(memory, instance))
        if data is not None:
            data.put(libwasmer.memory_data(made(memory)), keep=False)
        return exports


def _call(extern: int) -> None:
    function = made(libwasmer.extern_as_func(extern))
    results = Vec()
    count = libwasmer.func_result_arity(function)
    slots = (ctypes.c_uint64 * (2 * count))()
    results = Vec(count, ctypes.addressof(slots))
    trap = libwasmer.func_call(function, Vec(), results)
    if trap:
        trapped(backtrace(*told(trap)))


class Wasmer:
    """The engine, with one of its compilers. What that makes can be loaded by all."""

    version: Final = libwasmer.VERSION

    def __init__(self, compiler: str = CRANELIFT, host: Host | None = None) -> None:
        self.host = host or Host()
        self._compiler = compiler
        first = compiler == CRANELIFT
        self.name = NAME if first else f"{NAME}-{compiler}"
        self.maps = first and libwasmer.OURS
        self.others: Sequence[Wasmer] = (
            [Wasmer(other, self.host) for other in libwasmer.COMPILERS if other != compiler]
            if first
            else ()
        )
        features = " ".join(name for name, on in _PROPOSALS.items() if on)
        made_by = f"{self.name} {self.version} {libwasmer.build()} {_FORMAT}"
        self._fingerprint = f"{made_by} {features} {cpu()}"

    def fingerprint(self) -> str:
        """See `Engine.fingerprint`."""
        return self._fingerprint

    def compile(self, wasm: bytes | memoryview) -> bytes:
        """See `Engine.compile`."""
        binary = growable(assembled(wasm))
        try:
            rest, data = apart(binary)
            module = made(libwasmer.module_new(self._store(), _bytes(rest)))
            native = Vec()
            libwasmer.module_serialize(module, native)
            if not native.data:
                made(None)
        except WasmerError as error:
            raise ModuleError(f"invalid wasm module: {error}") from None
        body = native.bytes()
        head, body = (body[:12], body[16:]) if body.startswith(_ELF) else (_MAGIC, body)
        offset, content = data or (0, b"")
        outline = msgspec.msgpack.encode(Outline(interface_of(binary), offset, len(content)))
        parts = [head, _LENGTH.pack(native.size), body, _LENGTH.pack(len(outline)), outline]
        if content:
            parts += [bytes(-sum(map(len, parts)) % PAGE), content]
        return b"".join(parts)

    def _store(self) -> int:
        """One to compile in."""
        if self._compiler == CRANELIFT:
            return self.host.store
        return made(libwasmer.store_new(_engine(self._compiler)))

    def load(self, artifact: bytes | memoryview) -> WasmerModule:
        """See `Engine.load`."""
        data = bytes(artifact)
        try:
            start, size = _native(data)
            outline, end = _outline(data, start + size)
            end += -end % PAGE
            vector = _bytes(data, start, size)
            module = made(libwasmer.module_deserialize(self.host.store, vector))
        except (ValueError, WasmerError) as error:
            raise ModuleError(f"unusable artifact: {error}") from None
        placed = None
        if length := outline.data_length:
            pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE)
            pages.write(data[end : end + length])
            placed = Placed(outline.data_offset, pages, of_file=False)
        return WasmerModule(self.host, Loaded(module, outline.interface, placed))

    def load_file(self, path: str) -> WasmerModule:
        """See `Engine.load_file`."""
        placed = None
        try:
            with open(path, "rb") as file:
                if not self.maps:
                    return self.load(file.read())
                _, size = _native(file.read(_HEAD.size))
                file.seek(size)
                head = file.read(_LENGTH.size)
                outline, end = _outline(head + file.read(*_LENGTH.unpack(head)), 0)
                if length := outline.data_length:
                    end += -(end + size) % PAGE
                    flags, access = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
                    pages = mmap.mmap(file.fileno(), length, flags, access, offset=size + end)
                    placed = Placed(outline.data_offset, pages, of_file=True)
            name = os.fsencode(path)
            module = made(libwasmer.our_module_deserialize_file(self.host.store, name))
        except OSError as error:
            raise ModuleError(f"unusable artifact: {error.strerror}") from None
        except (ValueError, struct.error, WasmerError) as error:
            raise ModuleError(f"unusable artifact: {error}") from None
        return WasmerModule(self.host, Loaded(module, outline.interface, placed))

    def store(self) -> Store:
        """See `Engine.store`."""
        return Store(self.host.engine, self.host.entrance)

    def with_stack(self, run: Callable[[], NoReturn]) -> NoReturn:
        """See `Engine.with_stack`: wasmer brings its own."""
        run()


def _native(data: bytes) -> tuple[int, int]:
    """Return where in an artifact that begins like this is what wasmer made, and how long it is."""
    if len(data) < _HEAD.size:
        raise ValueError("truncated")
    magic, size = _HEAD.unpack_from(data)
    if magic == _MAGIC:
        return _HEAD.size, size
    if magic.startswith(_ELF):
        return 0, size
    raise ValueError("not made by this engine")


def _outline(data: bytes, position: int) -> tuple[Outline, int]:
    """Decode the outline at `position`; returns also where the data begins, if there is any."""
    if len(data) < position + _LENGTH.size:
        raise ValueError("truncated")
    (length,) = _LENGTH.unpack_from(data, position)
    end = position + _LENGTH.size + length
    try:
        outline = _decode(data[position + _LENGTH.size : end])
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    return outline, end


def _bytes(data: bytes, start: int = 0, size: int | None = None) -> Vec:
    """Return a vector of bytes, which lives no longer than they do."""
    address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
    return Vec(len(data) if size is None else size, address + start)
