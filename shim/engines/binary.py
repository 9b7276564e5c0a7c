"""The sections of a binary module (library; runs in the compiler).

WebAssembly binary format, 5.5.2. After the header, until the end:

    | u8 section | length | content ... |

All numbers are LEB128.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shim.engines.base import HEADER, ModuleError


class Section(NamedTuple):
    """Where a section is: all of it from `start`, its content from `content` to `end`."""

    number: int
    start: int
    content: int
    end: int


def sections(wasm: bytes) -> Iterator[Section]:
    """Walk through the sections. Raises ModuleError where one ends beyond the module."""
    position = HEADER
    while position < len(wasm):
        length, content = number(wasm, position + 1)
        end = content + length
        if end > len(wasm):
            raise ModuleError("truncated wasm module: a section ends beyond it")
        yield Section(wasm[position], position, content, end)
        position = end


def number(data: bytes, position: int) -> tuple[int, int]:
    """Return the LEB128 number at `position`, and where it ends."""
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ModuleError("invalid wasm module: a number without an end")


def leb128(value: int) -> bytes:
    """Return an unsigned LEB128 number."""
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])
