"""Booleans, numbers and characters (library)."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Final

from shim.component.errors import Trap
from shim.component.types.base import MASK, Context, Flat, ValueType

_NAN: Final = math.nan


class Primitive(ValueType):
    """A type of one core value, which lies in memory as `struct` has it."""

    __slots__ = ("_format", "_pack", "_unpack", "name")

    def __init__(self, name: str, layout: str, flat: str) -> None:
        form = struct.Struct("<" + layout)
        self.name = name
        self._format = layout
        self._pack, self._unpack = form.pack_into, form.unpack_from
        self._lay_out(form.size, form.size, (flat,))

    def __str__(self) -> str:
        return self.name

    def parts(self) -> Sequence[object]:
        return (self.name,)

    def load(self, context: Context, start: int) -> Any:
        return self._unpack(context.view, start)[0]

    def store(self, context: Context, value: Any, start: int) -> None:
        self._pack(context.view, start, value)

    def lower(self, context: Context, value: Any, flat: list[Any]) -> None:
        flat.append(value)


class Bool(Primitive):
    """A byte in memory, and any number but 0 is true."""

    __slots__ = ()

    def load(self, context: Context, start: int) -> bool:
        return context.view[start] != 0

    def lift(self, context: Context, flat: Flat) -> bool:
        number: int = next(flat)
        return number & MASK != 0

    def lower(self, context: Context, value: Any, flat: list[Any]) -> None:
        flat.append(int(value))


class Unsigned(Primitive):
    """An unsigned number. What is beyond its width in a core value does not count."""

    __slots__ = ("_mask",)

    def __init__(self, name: str, layout: str, flat: str) -> None:
        super().__init__(name, layout, flat)
        self._mask = (1 << 8 * self.size) - 1

    def lift(self, context: Context, flat: Flat) -> int:
        number: int = next(flat) & self._mask
        return number

    def load_list(self, context: Context, start: int, length: int) -> Any:
        return _numbers(context, start, length * self.size, self._format)

    def store_list(self, context: Context, values: Sequence[Any], start: int) -> None:
        struct.pack_into(f"<{len(values)}{self._format}", context.view, start, *values)


class Byte(Unsigned):
    """u8, whose lists are bytes."""

    __slots__ = ()

    def load_list(self, context: Context, start: int, length: int) -> memoryview:
        return context.view[start : start + length]

    def store_list(self, context: Context, values: Sequence[Any], start: int) -> None:
        context.view[start : start + len(values)] = values  # type: ignore[call-overload]


class Signed(Unsigned):
    """A signed number."""

    __slots__ = ("_sign",)

    def __init__(self, name: str, layout: str, flat: str) -> None:
        super().__init__(name, layout, flat)
        self._sign = 1 << (8 * self.size - 1)

    def lift(self, context: Context, flat: Flat) -> int:
        number: int = next(flat) & self._mask
        return number - ((number & self._sign) << 1)


class Float(Primitive):
    """A float; of the many that are none there is one."""

    __slots__ = ()

    def load(self, context: Context, start: int) -> float:
        value: float = self._unpack(context.view, start)[0]
        return _NAN if math.isnan(value) else value

    def lift(self, context: Context, flat: Flat) -> float:
        value: float = next(flat)
        return _NAN if math.isnan(value) else value

    def load_list(self, context: Context, start: int, length: int) -> Any:
        return [
            _NAN if math.isnan(value) else value
            for value in _numbers(context, start, length * self.size, self._format)
        ]


class Char(Primitive):
    """A Unicode scalar value."""

    __slots__ = ()

    def load(self, context: Context, start: int) -> str:
        return _character(self._unpack(context.view, start)[0])

    def store(self, context: Context, value: Any, start: int) -> None:
        self._pack(context.view, start, ord(value))

    def lift(self, context: Context, flat: Flat) -> str:
        return _character(next(flat) & MASK)

    def lower(self, context: Context, value: Any, flat: list[Any]) -> None:
        flat.append(ord(value))


def is_number(kind: ValueType | None) -> bool:
    """Tell whether it is a type of numbers, or none."""
    return kind is None or (isinstance(kind, Primitive) and not isinstance(kind, (Bool, Char)))


def _character(number: int) -> str:
    if number >= 0x110000 or 0xD800 <= number < 0xE000:
        raise Trap(f"{number:#x} is no character")
    return chr(number)


def _numbers(context: Context, start: int, size: int, layout: str) -> list[Any]:
    numbers: list[Any] = context.view[start : start + size].cast(layout).tolist()  # type: ignore[call-overload]
    return numbers


BOOL: Final = Bool("bool", "?", "i32")
S8: Final = Signed("s8", "b", "i32")
U8: Final = Byte("u8", "B", "i32")
S16: Final = Signed("s16", "h", "i32")
U16: Final = Unsigned("u16", "H", "i32")
S32: Final = Signed("s32", "i", "i32")
U32: Final = Unsigned("u32", "I", "i32")
S64: Final = Signed("s64", "q", "i64")
U64: Final = Unsigned("u64", "Q", "i64")
F32: Final = Float("f32", "f", "f32")
F64: Final = Float("f64", "d", "f64")
CHAR: Final = Char("char", "I", "i32")

PRIMITIVES: Final = {
    kind.name: kind for kind in (BOOL, S8, U8, S16, U16, S32, U32, S64, U64, F32, F64, CHAR)
}
