"""Wasm modules made by hand, for what no compiler produces: odd imports, exports and starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

HEADER = b"\0asm\1\0\0\0"
I32, I64 = 0x7F, 0x7E
UNREACHABLE, END, CALL, DROP, CONST, NOP = b"\0", b"\x0b", b"\x10", b"\x1a", b"\x41", b"\1"


class Type(NamedTuple):
    """A function type: wasm types of parameters and results."""

    params: tuple[int, ...] = ()
    results: tuple[int, ...] = ()


class Import(NamedTuple):
    """A function taken from elsewhere, or, with `type` None, a memory."""

    module: str
    name: str
    type: Type | None = Type()


class Function(NamedTuple):
    """A function of the module; `body` without the END."""

    body: bytes = NOP
    type: Type = Type()
    export: str = ""


def leb(number: int) -> bytes:
    """Encode an unsigned number."""
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def const(number: int) -> bytes:
    """Push a small i32, -64 to 63."""
    return CONST + bytes([number & 0x7F])


def _vector(items: Sequence[bytes]) -> bytes:
    return leb(len(items)) + b"".join(items)


def _name(text: str) -> bytes:
    return leb(len(text.encode())) + text.encode()


def _section(number: int, content: bytes) -> bytes:
    return bytes([number]) + leb(len(content)) + content


def module(
    *functions: Function,
    imports: Sequence[Import] = (),
    memory: bool = True,
    start: int | None = None,
) -> bytes:
    """Assemble a module; function indices count the imported functions first."""
    types = [Type(i.type.params, i.type.results) for i in imports if i.type is not None]
    imported = len(types)
    types += [function.type for function in functions]
    out = HEADER
    out += _section(
        1, _vector([b"\x60" + _vector_of(t.params) + _vector_of(t.results) for t in types])
    )
    if imports:
        entries, index = [], 0
        for wanted in imports:
            kind = b"\2\0\1" if wanted.type is None else b"\0" + leb(index)
            index += wanted.type is not None
            entries.append(_name(wanted.module) + _name(wanted.name) + kind)
        out += _section(2, _vector(entries))
    out += _section(3, _vector([leb(imported + i) for i in range(len(functions))]))
    if memory:
        out += _section(5, _vector([b"\0\1"]))
    exports = [
        _name(function.export) + b"\0" + leb(imported + i)
        for i, function in enumerate(functions)
        if function.export
    ]
    if memory:
        exports.append(_name("memory") + b"\2\0")
    out += _section(7, _vector(exports))
    if start is not None:
        out += _section(8, leb(start))
    bodies = [b"\0" + function.body + END for function in functions]
    return out + _section(10, _vector([leb(len(body)) + body for body in bodies]))


def _vector_of(types: tuple[int, ...]) -> bytes:
    return leb(len(types)) + bytes(types)
