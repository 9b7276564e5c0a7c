"""A guest's memory without a guest."""

from __future__ import annotations

from typing import Any

from shim.component.instance import ComponentInstance
from shim.component.types import ValueType
from shim.component.types.base import Context, aligned


class Memory:
    """Bytes, and an allocator that never gives anything back, from `free` on."""

    def __init__(self, size: int = 4096, free: int = 1024) -> None:
        self.bytes = bytearray(size)
        self.free = free
        self.asked: list[tuple[int, ...]] = []

    def view(self) -> memoryview:
        """All of it."""
        return memoryview(self.bytes)

    def realloc(self, old: int, old_size: int, alignment: int, size: int) -> int:
        """Make room, at an address as a guest returns it: signed."""
        self.asked.append((old, old_size, alignment, size))
        start = aligned(self.free, alignment)
        self.free = start + size
        return start

    def context(self, encoding: str = "utf8", scope: Any = None) -> Context:
        """Of an instance of its own."""
        return Context(ComponentInstance(), self.view, self.realloc, encoding, scope)


def stored(context: Context, kind: ValueType, value: Any, start: int = 64) -> Any:
    """Return what is read of a value that was written."""
    context.reach(start, kind.size, kind.alignment)
    kind.store(context, value, start)
    return plain(kind.load(context, start))


def passed(context: Context, kind: ValueType, value: Any) -> Any:
    """Return what is made of the core values of a value."""
    flat: list[Any] = []
    kind.lower(context, value, flat)
    assert len(flat) == len(kind.flat)
    for core, name in zip(flat, kind.flat, strict=True):
        assert isinstance(core, float if name.startswith("f") else int)
    rest = iter(flat)
    value = plain(kind.lift(context, rest))
    assert next(rest, None) is None
    return value


def plain(value: Any) -> Any:
    """Return the same with bytes for views of them."""
    if isinstance(value, memoryview):
        return bytes(value)
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value
