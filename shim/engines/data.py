"""What a module's memory begins with, apart from the module (library; runs in the compiler).

Of a module's data wasmer has two copies in each process: one that it reads from the artifact, and
the memory. As whole pages of a file they can be mapped to their place, and are shared by all who do
not write to them. The contents of the sections (WebAssembly binary format, 5.5; numbers are
LEB128), each after a count:

    5, memories   | flags: 1 has maximum | minimum, in pages of 64 KiB [| maximum] |
    7, exports    | name | u8 kind | index |
    11, data      | 0 | u8 0x41, i32.const | offset | u8 0x0b, end | length | bytes |

Only where that changes nothing that the module could see: it has one memory, its own, which it
exports for WASI, and no function that runs before the data can be in its place; all data goes where
a number says, and fits. What else there may be is left to the engine. That a module imports does
not matter, but a memory would be its first one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shim.engines.base import HEADER, ModuleError
from shim.engines.binary import Section, number, sections
from shim.engines.interface import MEMORY, interface_of

PAGE: Final = 4096
_LEAST: Final = 1 << 18
"""Bytes of data that are worth a mapping."""

_MEMORIES, _EXPORTS, _START, _DATA, _DATA_COUNT = 5, 7, 8, 11, 12
_WASM_PAGE: Final = 1 << 16
_HAS_MAXIMUM: Final = 1
_MEMORY: Final = (b"memory", 2, 0)  # an export's name, kind and number
_I32_CONST, _END = 0x41, 0x0B
_U32: Final = 0xFFFFFFFF
_LONGEST: Final = 5  # bytes of a number of 32 bits


class Data(NamedTuple):
    """Whole pages, and where in the memory they begin."""

    offset: int
    content: bytes


def apart(wasm: bytes) -> tuple[bytes, Data | None]:
    """Return a binary module without its data, and that; or as it is, and None.

    It is valid without if it was with it.
    """
    try:
        data = _data(wasm)
    except (IndexError, ModuleError):  # nothing that is understood here
        data = None
    if data is None:
        return wasm, None
    kept = [wasm[each.start : each.end] for each in sections(wasm) if each.number != _DATA]
    return b"".join((wasm[:HEADER], *kept)), data


def _data(wasm: bytes) -> Data | None:
    those = [section for section in sections(wasm) if section.number]
    found = {section.number: section for section in those}
    if not {_MEMORIES, _EXPORTS, _DATA} <= found.keys() or {_START, _DATA_COUNT} & found.keys():
        return None
    if len(found) != len(those) or those[-1].number != _DATA:
        return None  # nor is it valid
    exports, memories, data = found[_EXPORTS], found[_MEMORIES], found[_DATA]
    imports = interface_of(wasm).imports
    if not _exports_memory(wasm, exports) or any(found.kind == MEMORY for found in imports):
        return None
    count, position = number(wasm, memories.content)
    flags, position = number(wasm, position)
    size = number(wasm, position)[0] * _WASM_PAGE
    segments = _segments(wasm, data)
    end = max((offset + length for offset, _, length in segments), default=0)
    total = sum(length for _, _, length in segments)
    if count != 1 or flags & ~_HAS_MAXIMUM or end > size or total < _LEAST:
        return None
    start = min(offset for offset, _, _ in segments) // PAGE * PAGE
    end = -(-end // PAGE) * PAGE
    if end - start > 2 * total:
        return None
    content = bytearray(end - start)
    for offset, position, length in segments:
        content[offset - start : offset - start + length] = wasm[position : position + length]
    return Data(start, bytes(content))


def _exports_memory(wasm: bytes, section: Section) -> bool:
    """Whether the memory has the name by which WASI finds it. Raises ModuleError, IndexError."""
    count, position = _unsigned(wasm, section.content)
    for _ in range(count):
        length, begin = _unsigned(wasm, position)
        kind = begin + length
        index, position = _unsigned(wasm, kind + 1)
        if (wasm[begin:kind], wasm[kind], index) == _MEMORY:
            return True
    return False


def _segments(wasm: bytes, section: Section) -> list[tuple[int, int, int]]:
    """Offset in the memory, position in the module, length. Raises ModuleError, IndexError."""
    found = []
    count, position = _unsigned(wasm, section.content)
    for _ in range(count):
        flags, position = _unsigned(wasm, position)
        if flags or wasm[position] != _I32_CONST:
            raise ModuleError("data of another kind")
        offset, after = _signed(wasm, position + 1)
        if wasm[after] != _END:
            raise ModuleError("data of another kind")
        length, position = _unsigned(wasm, after + 1)
        found.append((offset & 0xFFFFFFFF, position, length))
        position += length
    if position != section.end:
        raise ModuleError("data of another length")
    return found


# The engine does not see the data any more, so it is refused here where it would be there.


def _unsigned(wasm: bytes, position: int) -> tuple[int, int]:
    """Return a u32, and where it ends. Raises ModuleError."""
    value, end = number(wasm, position)
    if end - position > _LONGEST or value > _U32:
        raise ModuleError("a number that is none of 32 bits")
    return value, end


def _signed(wasm: bytes, position: int) -> tuple[int, int]:
    """Return an i32, and where it ends. Raises ModuleError."""
    value, end = number(wasm, position)
    size = end - position
    if wasm[end - 1] & 0x40:
        value -= 1 << 7 * size
    if size > _LONGEST or not -(1 << 31) <= value < 1 << 31:
        raise ModuleError("a number that is none of 32 bits")
    return value, end
