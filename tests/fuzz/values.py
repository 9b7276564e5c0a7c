"""Values of any type in any memory: a value that stays the same on its way, or a trap."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

from shim.component.errors import Trap
from shim.component.types import (
    MAX_FLAT,
    PRIMITIVES,
    STRING,
    Enum,
    FixedList,
    Flags,
    List,
    Map,
    Option,
    Record,
    Result,
    Tuple,
    ValueType,
    Variant,
)
from tests.fuzz.source import Source
from tests.shim.component.contexts import Memory, passed, stored

SEEDS = [
    b"\0\x0d\0\x10\0\0\0\3\0\0\0abc",
    b"\1\x0e\x0c\4\0\0\0\2\0\0\0\0\xd8\0\xdc",
    b"\2\x0d\0\4\0\0\0\3\0\0\x80\0\xd8\0\xdc\0\0",
    b"\0\x11\2\x0d\x0e\x0d\0\1\0\0\0\x08\0\0\0\1\0\0\0a\0\0\0",
    b"\0\x12\3\1\x0a\1\x0d\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0",
    b"\0\x0f\5\x08\0\0\0\2\0\0\0\1\2\3\4\5\6\7\x08",
]
_SIZE = 512
_ENCODINGS = ("utf8", "utf16", "latin1+utf16")
_CORE = {"i32": "<i", "i64": "<q", "f32": "<f", "f64": "<d"}
_PRIMITIVES = tuple(PRIMITIVES.values())


def fuzz(data: bytes) -> None:
    """Read a value from memory, and one from core values."""
    source = Source(data)
    encoding = source.choice(_ENCODINGS)
    kind = _type(source, 4)
    start = 8 * source.number()
    flat: list[Any] = []
    for core in kind.flat:
        layout = _CORE[core]
        size = struct.calcsize(layout)
        flat += struct.unpack(layout, source.take(size).ljust(size, b"\0"))
    memory = Memory(_SIZE)
    content = source.take(_SIZE)
    memory.bytes[: len(content)] = content
    context = memory.context(encoding)
    with suppress(Trap):
        context.reach(start, kind.size, kind.alignment)
        _check(kind, encoding, kind.load(context, start))
    if _is_passed(kind):
        with suppress(Trap):
            _check(kind, encoding, kind.lift(context, iter(flat)))


def _is_passed(kind: ValueType) -> bool:
    """Tell whether a value is few enough core values; else it is passed in memory."""
    return len(kind.flat) < MAX_FLAT


def _check(kind: ValueType, encoding: str, value: Any) -> None:
    """Raise AssertionError unless a value can be written, and is the same afterwards."""
    context = Memory(1 << 20, 1 << 16).context(encoding)
    expected = _told(value)
    assert _told(stored(context, kind, value)) == expected
    if _is_passed(kind):
        assert _told(passed(context, kind, value)) == expected


def _told(value: Any) -> str:
    """Return a value in words; those of a set have no order."""
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_told, value))})"
    if isinstance(value, memoryview):
        return repr(bytes(value))
    return repr(sorted(value) if isinstance(value, frozenset) else value)


def _type(source: Source, depth: int) -> ValueType:
    """Return a type out of the next bytes."""
    choice = source.number() % (len(_PRIMITIVES) + (10 if depth else 1))
    if choice < len(_PRIMITIVES):
        return _PRIMITIVES[choice]
    if choice == len(_PRIMITIVES):
        return STRING

    def several(most: int) -> list[tuple[str, ValueType]]:
        return [(f"l{n}", _type(source, depth - 1)) for n in range(1 + source.number() % most)]

    def maybe() -> ValueType | None:
        return _type(source, depth - 1) if source.number() % 2 else None

    form = choice - len(_PRIMITIVES)
    if form == 1:
        return List(_type(source, depth - 1))
    if form == 2:
        return Record(several(5))
    if form == 3:
        return Tuple([kind for _, kind in several(20)])
    if form == 4:
        return Variant([(f"l{n}", maybe()) for n in range(1 + source.number() % 5)])
    if form == 5:
        return Option(_type(source, depth - 1))
    if form == 6:
        return Result(maybe(), maybe())
    if form == 7:
        return FixedList(_type(source, depth - 1), 1 + source.number() % 5)
    if form == 8:
        return Map(_type(source, 0), _type(source, depth - 1))
    labels = [f"l{n}" for n in range(1 + source.number() % 32)]
    return Enum(labels) if source.number() % 2 else Flags(labels)
