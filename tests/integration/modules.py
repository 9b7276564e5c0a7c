"""WebAssembly modules written by hand, for what no compiler would emit: library.

The encoding is the core specification's, chapter 5 (binary format).
"""

from __future__ import annotations

EMPTY = b"\0asm\1\0\0\0"
"""A valid module with nothing in it; it has no `_start`."""


def importing(module: str, name: str) -> bytes:
    """A valid module with an empty `_start` that imports the function `module.name`."""
    signature = b"\x60\0\0"  # no parameters, no results
    body = b"\0\x0b"  # no locals, end
    return b"".join(
        (
            EMPTY,
            _section(1, signature),
            _section(2, _name(module) + _name(name) + b"\0\0"),  # kind function, type 0
            _section(3, b"\0"),  # one function, of type 0
            _section(7, _name("_start") + b"\0\1"),  # kind function; 0 is the imported one
            _section(10, bytes([len(body)]) + body),
        )
    )


def _section(number: int, entry: bytes) -> bytes:
    content = b"\1" + entry  # a vector of one
    return bytes([number, len(content)]) + content


def _name(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
