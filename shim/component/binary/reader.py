"""Reads numbers, names and vectors from a component's bytes (library; runs in the compiler).

A count is believed only if so many items could follow, of a byte each, and all items of a component
together are limited: an item takes a hundred times as much memory as its byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from shim.engines.base import ModuleError

MAX_ITEMS: Final = 200_000
"""Of all vectors together, and of all vectors of its core modules that matter for linking.

CPython as a component has 6,000 and 26,000.
"""
MAX_DEPTH: Final = 32
"""Of components in components, and of types in types."""

_T = TypeVar("_T")


class Flaw(Exception):
    """What is wrong with a definition; who knows which one it is says so."""

    kind: str = "invalid"

    def located(self, what: str, offset: int) -> ModuleError:
        """Return the same as an error of the component, with the place of a definition in it."""
        return ModuleError(f"{self.kind} component: {what} at {offset:#x}: {self}")

    def unlocated(self) -> ModuleError:
        """Return the same as an error of the component as a whole."""
        return ModuleError(f"{self.kind} component: {self}")


class Unsupported(Flaw):
    """The definition is right, but nothing here can do that."""

    kind = "unsupported"


class Allowance:
    """How many items may still be read."""

    __slots__ = ("items",)

    def __init__(self, items: int = MAX_ITEMS) -> None:
        self.items = items

    def take(self, count: int) -> None:
        """Take off so many. Raises Flaw where there are too many."""
        self.items -= count
        if self.items < 0:
            raise Flaw(f"more than {MAX_ITEMS:,} items altogether")


class Reader:
    """Reads from `position` to `end`. Its methods raise Flaw."""

    __slots__ = ("allowance", "data", "depth", "end", "position")

    def __init__(
        self, data: bytes, position: int, end: int, allowance: Allowance, depth: int = 0
    ) -> None:
        self.data = data
        self.position = position
        self.end = end
        self.allowance = allowance
        self.depth = depth

    def within(self, length: int) -> Reader:
        """Return a reader of the next bytes, and go on behind them."""
        start = self.position
        self.skip(length)
        return Reader(self.data, start, self.position, self.allowance, self.depth)

    def skip(self, length: int) -> None:
        """Go on behind the next bytes."""
        if length > self.end - self.position:
            raise Flaw(f"{length} bytes are said to follow, {self.end - self.position} do")
        self.position += length

    def byte(self) -> int:
        """Read a byte."""
        if self.position >= self.end:
            raise Flaw("unexpected end")
        self.position += 1
        return self.data[self.position - 1]

    def peek(self) -> int:
        """Return the next byte, to be read yet."""
        if self.position >= self.end:
            raise Flaw("unexpected end")
        return self.data[self.position]

    def expect(self, value: int, what: str) -> None:
        """Read a byte that can only be this."""
        found = self.byte()
        if found != value:
            raise Flaw(f"{what}: {found:#04x} instead of {value:#04x}")

    def flag(self, what: str) -> bool:
        """Read 0 or 1."""
        found = self.byte()
        if found > 1:
            raise Flaw(f"{what}: {found:#04x} is neither 0 nor 1")
        return found == 1

    def number(self, bits: int = 32) -> int:
        """Read an unsigned LEB128 number."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift >= bits:
                raise Flaw("a number is too long")
        if value >> bits:
            raise Flaw(f"a number does not fit {bits} bits")
        return value

    def signed(self, bits: int) -> int:
        """Read a signed LEB128 number."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift >= bits:
                raise Flaw("a number is too long")
        if byte & 0x40:
            value -= 1 << shift
        if not -(1 << bits - 1) <= value < 1 << bits - 1:
            raise Flaw(f"a number does not fit {bits} bits")
        return value

    def name(self) -> str:
        """Read a length and so many bytes of UTF-8."""
        length = self.number()
        start = self.position
        self.skip(length)
        try:
            return self.data[start : self.position].decode()
        except UnicodeDecodeError as error:
            raise Flaw(f"a name is no UTF-8: {error.reason}") from None

    def count(self) -> int:
        """Read how many items follow."""
        count = self.number()
        if count > self.end - self.position:
            raise Flaw(f"{count} items are said to follow in {self.end - self.position} bytes")
        self.allowance.take(count)
        return count

    def vector(self, item: Callable[[], _T]) -> list[_T]:
        """Read a count and so many items."""
        return [item() for _ in range(self.count())]

    def optional(self, item: Callable[[], _T]) -> _T | None:
        """Read 0, or 1 and an item."""
        return item() if self.flag("an optional part") else None

    def deeper(self) -> None:
        """Count a level of nesting; `shallower` ends it."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Flaw(f"nested deeper than {MAX_DEPTH} levels")

    def shallower(self) -> None:
        """End a level of nesting."""
        self.depth -= 1
