"""Tables that several modules share, for wasmer (library; runs in the compiler).

wasmer 7.4 keeps a table of functions that cannot grow inside of the instance that makes it, and
calls through that. But whoever imports the table writes to another one, so a component's functions
would not be found. A maximum that is one more takes the table out of that: nobody else sees it, but
who tries to grow what cannot.

A type of a table (WebAssembly binary format, 5.3.9): the type of its elements, and limits. What is
not understood stays as it is.
"""

from __future__ import annotations

from typing import Final

from shim.engines.base import HEADER, ModuleError
from shim.engines.binary import leb128, sections
from shim.engines.interface import TABLE, Reader

_IMPORTS, _TABLES, _EXPORTS = 2, 4, 7  # sections
_FUNCREF: Final = 0x70
_HAS_MAXIMUM: Final = 1


def growable(wasm: bytes) -> bytes:
    """Return a binary module in which no table that it shares has its minimum for its maximum."""
    try:
        shared, edits = False, list[tuple[int, int, bytes]]()
        for section in sections(wasm):
            read = Reader(wasm, section.content)
            if section.number == _IMPORTS:
                for _ in range(read.number()):
                    read.name(), read.name()
                    start = read.position
                    kind, _type = read.imported()
                    if kind == TABLE:
                        shared = True
                        edits += _edits(wasm, start + 1)
            elif section.number == _TABLES:
                for _ in range(read.number()):
                    edits += _edits(wasm, read.position)
                    read.value_type()  # a table with an initial value begins otherwise: left alone
                    read.limits()
            elif section.number == _EXPORTS:
                for _ in range(read.number()):
                    read.name()
                    shared |= read.byte() == TABLE
                    read.number()
    except (IndexError, KeyError, UnicodeDecodeError, ModuleError):
        return wasm
    return _edited(wasm, edits) if shared and edits else wasm


def _edits(wasm: bytes, start: int) -> list[tuple[int, int, bytes]]:
    """Return where a table's maximum is, and what is to be there; nothing if it can stay."""
    if wasm[start] != _FUNCREF or not wasm[start + 1] & _HAS_MAXIMUM:
        return []
    read = Reader(wasm, start + 2)
    minimum = read.number()
    place = read.position
    maximum = read.number()
    return [(place, read.position, leb128(maximum + 1))] if maximum == minimum else []


def _edited(wasm: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    parts = [wasm[:HEADER]]
    for section in sections(wasm):
        content, position = b"", section.content
        for start, end, new in edits:
            if section.content <= start < section.end:
                content += wasm[position:start] + new
                position = end
        content += wasm[position : section.end]
        parts += [bytes([section.number]), leb128(len(content)), content]
    return b"".join(parts)
