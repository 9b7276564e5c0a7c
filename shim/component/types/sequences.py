"""Strings, lists and maps (library).

In memory, and as core values, a pointer and a length; of a list of fixed length its elements.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Sequence
from typing import Any, Final

from shim.component.errors import Trap
from shim.component.types.base import MASK, MAX_BYTES, MAX_FLAT, Context, Flat, ValueType
from shim.component.types.compound import Tuple
from shim.component.types.primitive import Byte

_PAIR: Final = struct.Struct("<II")
_load_pair: Final = _PAIR.unpack_from
_store_pair: Final = _PAIR.pack_into
_UTF16: Final = 1 << 31
"""Marks the length of a string of latin1+utf16 that is UTF-16."""
codecs.lookup("utf-16-le")  # which is kept: in a guest no codec can be loaded any more


class _Referred(ValueType):
    """What is referred to by a pointer and a length."""

    __slots__ = ()

    def _read(self, context: Context, start: int, length: int) -> Any:
        raise NotImplementedError

    def _write(self, context: Context, value: Any) -> tuple[int, int]:
        raise NotImplementedError

    def load(self, context: Context, start: int) -> Any:
        return self._read(context, *_load_pair(context.view, start))

    def store(self, context: Context, value: Any, start: int) -> None:
        pair = self._write(context, value)
        _store_pair(context.view, start, *pair)

    def lift(self, context: Context, flat: Flat) -> Any:
        return self._read(context, next(flat) & MASK, next(flat) & MASK)

    def lower(self, context: Context, value: Any, flat: list[Any]) -> None:
        flat += self._write(context, value)


class String(_Referred):
    """A string, in the encoding of the context."""

    __slots__ = ()

    def __init__(self) -> None:
        self._lay_out(_PAIR.size, 4, ("i32", "i32"))

    def __str__(self) -> str:
        return "string"

    def parts(self) -> Sequence[object]:
        return ()

    def _read(self, context: Context, start: int, length: int) -> str:
        encoding, size, alignment = "utf-8", length, 1
        if context.encoding != "utf8":
            encoding, size, alignment = "latin-1", length, 2
            if context.encoding == "utf16" or length & _UTF16:
                units = length if context.encoding == "utf16" else length ^ _UTF16
                encoding, size = "utf-16-le", 2 * units
        if size > MAX_BYTES:
            raise Trap(f"a string of {size} bytes is too long")
        view = context.reach(start, size, alignment)
        try:
            return str(view[start : start + size], encoding)
        except UnicodeDecodeError as error:
            raise Trap(f"a string is no {encoding}: {error.reason}") from None

    def _write(self, context: Context, value: str) -> tuple[int, int]:
        if context.encoding == "utf8":
            data = value.encode()
            return _placed(context, data, 1), len(data)
        if context.encoding == "latin1+utf16":
            try:
                data = value.encode("latin-1")
            except UnicodeEncodeError:
                data = value.encode("utf-16-le")
                return _placed(context, data, 2), len(data) // 2 | _UTF16
            return _placed(context, data, 2), len(data)
        data = value.encode("utf-16-le")
        return _placed(context, data, 2), len(data) // 2


def _placed(context: Context, data: bytes, alignment: int) -> int:
    if len(data) > MAX_BYTES:
        raise Trap(f"a string of {len(data)} bytes is too long")
    start = context.allocate(len(data), alignment)
    context.view[start : start + len(data)] = data
    return start


STRING: Final = String()


class List(_Referred):
    """A list."""

    __slots__ = ("element",)

    def __init__(self, element: ValueType) -> None:
        self.element = element
        self._lay_out(_PAIR.size, 4, ("i32", "i32"), element.has_borrow)

    def __str__(self) -> str:
        return f"list<{self.element}>"

    def parts(self) -> Sequence[object]:
        return (self.element,)

    def _read(self, context: Context, start: int, length: int) -> Any:
        size = length * self.element.size
        if size > MAX_BYTES:
            raise Trap(f"a list of {size} bytes is too long")
        context.reach(start, size, self.element.alignment)
        return self.element.load_list(context, start, length)

    def _write(self, context: Context, value: Sequence[Any]) -> tuple[int, int]:
        size = len(value) * self.element.size
        if size > MAX_BYTES:
            raise Trap(f"a list of {size} bytes is too long")
        start = context.allocate(size, self.element.alignment)
        self.element.store_list(context, value, start)
        return start, len(value)


class Map(List):
    """A map: a list of pairs."""

    __slots__ = ("key", "value")

    def __init__(self, key: ValueType, value: ValueType) -> None:
        super().__init__(Tuple([key, value]))
        self.key, self.value = key, value

    def __str__(self) -> str:
        return f"map<{self.key}, {self.value}>"


class FixedList(ValueType):
    """A list of a length that its type tells."""

    __slots__ = ("element", "length")

    def __init__(self, element: ValueType, length: int) -> None:
        self.element, self.length = element, length
        flat = element.flat * min(length, MAX_FLAT)
        self._lay_out(length * element.size, element.alignment, flat, element.has_borrow)

    def __str__(self) -> str:
        return f"list<{self.element}, {self.length}>"

    def parts(self) -> Sequence[object]:
        return (self.element, self.length)

    def load(self, context: Context, start: int) -> Any:
        return self.element.load_list(context, start, self.length)

    def store(self, context: Context, value: Sequence[Any], start: int) -> None:
        self.element.store_list(context, value, start)

    def lift(self, context: Context, flat: Flat) -> Any:
        values = [self.element.lift(context, flat) for _ in range(self.length)]
        return bytes(values) if isinstance(self.element, Byte) else values

    def lower(self, context: Context, value: Sequence[Any], flat: list[Any]) -> None:
        for each in value:
            self.element.lower(context, each, flat)
