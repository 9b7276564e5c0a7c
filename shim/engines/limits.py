"""How far a module's memory may grow, written into the module. Runs in: compiler.

The engines offer no way that they share to limit the memory of a compiled module, but both obey the
module's own maximum. The content of the section of memories, and the type of each (WebAssembly
binary format, 5.5.8 and 5.3.8); all numbers are LEB128:

    | count | type ... |
    | flags: 1 has maximum, 2 shared, 4 of 64 bits | minimum [| maximum] |
"""

from __future__ import annotations

from typing import Final

from shim.engines.base import HEADER, ModuleError
from shim.engines.binary import leb128, number, sections

_MEMORY_SECTION: Final = 5
_HAS_MAXIMUM: Final = 1
_KNOWN_FLAGS: Final = 0b111  # with a page size of its own a page is not 64 KiB


def limit_memory(wasm: bytes, pages: int) -> bytes:
    """Return the binary module with no memory's maximum above `pages` pages of 64 KiB.

    Raises ModuleError where a memory begins with more, and where the sections cannot be followed:
    what is not understood here must not be left without a limit.
    """
    parts = [wasm[:HEADER]]
    for section in sections(wasm):
        if section.number == _MEMORY_SECTION:
            content = _limit_types(wasm[section.content : section.end], pages)
            parts += [bytes([section.number]), leb128(len(content)), content]
        else:
            parts.append(wasm[section.start : section.end])
    return b"".join(parts)


def _limit_types(content: bytes, pages: int) -> bytes:
    count, position = number(content, 0)
    limited = leb128(count)
    for _ in range(count):
        flags, position = number(content, position)
        if flags & ~_KNOWN_FLAGS:
            raise ModuleError("invalid wasm module: a memory of a kind that cannot be limited")
        minimum, position = number(content, position)
        maximum = pages
        if flags & _HAS_MAXIMUM:
            own, position = number(content, position)
            maximum = min(own, pages)
        if minimum > pages:
            raise ModuleError(f"its memory begins with {minimum} pages, and {pages} are allowed")
        limited += leb128(flags | _HAS_MAXIMUM) + leb128(minimum) + leb128(maximum)
    if position != len(content):
        raise ModuleError("invalid wasm module: its memory section has a wrong length")
    return limited
