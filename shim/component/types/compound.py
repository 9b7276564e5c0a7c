"""Records and variants, and what is a special case of either (library).

A record's fields lie one after another, each aligned. A variant is the number of its case, in as
few bytes as it needs, and at one place for all cases the payload; as core values, each that the
payloads of several cases share is of a type in which all of them fit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from shim.component.errors import Trap
from shim.component.types.base import MASK, MAX_FLAT, Context, Flat, ValueType, aligned
from shim.component.types.primitive import U8, U16, U32, Primitive


class Tuple(ValueType):
    """Values of different types."""

    __slots__ = ("_placed", "types")

    def __init__(self, types: Sequence[ValueType]) -> None:
        self.types = tuple(types)
        size, alignment = 0, 1
        flat: list[str] = []
        placed = []
        for kind in self.types:
            size = aligned(size, kind.alignment)
            placed.append((size, kind))
            size += kind.size
            alignment = max(alignment, kind.alignment)
            flat += kind.flat[: MAX_FLAT - len(flat)]
        self._placed = tuple(placed)
        borrows = any(kind.has_borrow for kind in self.types)
        self._lay_out(aligned(size, alignment), alignment, flat, borrows)

    def __str__(self) -> str:
        return f"tuple<{', '.join(map(str, self.types))}>"

    def parts(self) -> Sequence[object]:
        return self.types

    def load(self, context: Context, start: int) -> tuple[Any, ...]:
        return tuple([kind.load(context, start + offset) for offset, kind in self._placed])

    def store(self, context: Context, value: Sequence[Any], start: int) -> None:
        for (offset, kind), part in zip(self._placed, value, strict=True):
            kind.store(context, part, start + offset)

    def lift(self, context: Context, flat: Flat) -> tuple[Any, ...]:
        return tuple([kind.lift(context, flat) for kind in self.types])

    def lower(self, context: Context, value: Sequence[Any], flat: list[Any]) -> None:
        for kind, part in zip(self.types, value, strict=True):
            kind.lower(context, part, flat)


class Record(Tuple):
    """Values with labels."""

    __slots__ = ("labels",)

    def __init__(self, fields: Sequence[tuple[str, ValueType]]) -> None:
        super().__init__([kind for _, kind in fields])
        self.labels = tuple(label for label, _ in fields)

    def __str__(self) -> str:
        fields = (f"{label}: {kind}" for label, kind in zip(self.labels, self.types, strict=True))
        return f"record {{ {', '.join(fields)} }}"

    def parts(self) -> Sequence[object]:
        return (*self.labels, *self.types)


def discriminant(count: int) -> Primitive:
    """Return the type of the number of one of so many cases."""
    return U8 if count <= 1 << 8 else U16 if count <= 1 << 16 else U32


def _reinterpret(of: str, to: str) -> Callable[[Any], Any]:
    pack, unpack = struct.Struct(of).pack, struct.Struct(to).unpack
    return lambda value: unpack(pack(value))[0]


_f32_bits: Final = _reinterpret("<f", "<I")
_f64_bits: Final = _reinterpret("<d", "<Q")
_f32_of: Final = _reinterpret("<I", "<f")
_f64_of: Final = _reinterpret("<Q", "<d")

# From the type of a shared core value to that of a case's own, and back.
_NARROWED: Final[dict[tuple[str, str], Callable[[Any], Any]]] = {
    ("i32", "f32"): lambda value: _f32_of(value & MASK),
    ("i64", "i32"): lambda value: value & MASK,
    ("i64", "f32"): lambda value: _f32_of(value & MASK),
    ("i64", "f64"): lambda value: _f64_of(value & 0xFFFFFFFFFFFFFFFF),
}
_WIDENED: Final[dict[tuple[str, str], Callable[[Any], Any]]] = {
    ("i32", "f32"): _f32_bits,
    ("i64", "i32"): lambda value: value & MASK,
    ("i64", "f32"): _f32_bits,
    ("i64", "f64"): _f64_bits,
}


def _joined(one: str, other: str) -> str:
    if one == other:
        return one
    return "i32" if {one, other} == {"i32", "f32"} else "i64"


class Variant(ValueType):
    """One of several cases."""

    __slots__ = ("_discriminant", "_index", "_offset", "_payload", "cases", "labels")

    def __init__(self, cases: Sequence[tuple[str, ValueType | None]]) -> None:
        self.cases = tuple(kind for _, kind in cases)
        self.labels = tuple(label for label, _ in cases)
        self._index = {label: index for index, label in enumerate(self.labels)}
        kinds = [kind for kind in self.cases if kind is not None]
        self._discriminant = discriminant(len(cases))
        alignment = max((kind.alignment for kind in kinds), default=1)
        self._offset = aligned(self._discriminant.size, alignment)
        alignment = max(alignment, self._discriminant.alignment)
        payload: list[str] = []
        for kind in kinds:
            for place, flat in enumerate(kind.flat):
                if place < len(payload):
                    payload[place] = _joined(payload[place], flat)
                else:
                    payload.append(flat)
        self._payload = tuple(payload)
        size = self._offset + max((kind.size for kind in kinds), default=0)
        borrows = any(kind.has_borrow for kind in kinds)
        self._lay_out(aligned(size, alignment), alignment, ("i32", *payload), borrows)

    def __str__(self) -> str:
        cases = (
            label if kind is None else f"{label}({kind})"
            for label, kind in zip(self.labels, self.cases, strict=True)
        )
        return f"variant {{ {', '.join(cases)} }}"

    def parts(self) -> Sequence[object]:
        return (*self.labels, *self.cases)

    def _made(self, index: int, payload: Any) -> Any:
        """Return the value of a case."""
        return self.labels[index], payload

    def _taken(self, value: Any) -> tuple[int, Any]:
        """Return the number of a value's case, and its payload."""
        label, payload = value
        return self._index[label], payload

    def _case(self, index: int) -> ValueType | None:
        if index >= len(self.cases):
            raise Trap(f"{index} is no case: there are {len(self.cases)}")
        return self.cases[index]

    def load(self, context: Context, start: int) -> Any:
        index = self._discriminant.load(context, start)
        kind = self._case(index)
        if kind is None:
            return self._made(index, None)
        return self._made(index, kind.load(context, start + self._offset))

    def store(self, context: Context, value: Any, start: int) -> None:
        index, payload = self._taken(value)
        self._discriminant.store(context, index, start)
        kind = self.cases[index]
        if kind is not None:
            kind.store(context, payload, start + self._offset)

    def lift(self, context: Context, flat: Flat) -> Any:
        index = next(flat) & MASK
        kind = self._case(index)
        shared = [next(flat) for _ in self._payload]
        if kind is None:
            return self._made(index, None)
        own = [
            _NARROWED[have, want](value) if have != want else value
            for value, have, want in zip(shared, self._payload, kind.flat, strict=False)
        ]
        return self._made(index, kind.lift(context, iter(own)))

    def lower(self, context: Context, value: Any, flat: list[Any]) -> None:
        index, payload = self._taken(value)
        flat.append(index)
        kind = self.cases[index]
        own: list[Any] = []
        if kind is not None:
            kind.lower(context, payload, own)
            for place, (want, have) in enumerate(zip(self._payload, kind.flat, strict=False)):
                if want != have:
                    own[place] = _WIDENED[want, have](own[place])
        rest = self._payload[len(own) :]
        flat += own
        flat += [0.0 if each.startswith("f") else 0 for each in rest]


class Enum(Variant):
    """One of several labels."""

    __slots__ = ()

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__([(label, None) for label in labels])

    def __str__(self) -> str:
        return f"enum {{ {', '.join(self.labels)} }}"

    def _made(self, index: int, payload: Any) -> str:
        return self.labels[index]

    def _taken(self, value: Any) -> tuple[int, Any]:
        return self._index[value], None


class Option(Variant):
    """A value, or none."""

    __slots__ = ("_nested", "payload")

    def __init__(self, payload: ValueType) -> None:
        super().__init__((("none", None), ("some", payload)))
        self.payload = payload
        self._nested = isinstance(payload, Option)

    def __str__(self) -> str:
        return f"option<{self.payload}>"

    def _made(self, index: int, payload: Any) -> Any:
        return ("some", payload) if index and self._nested else payload

    def _taken(self, value: Any) -> tuple[int, Any]:
        if value is None:
            return 0, None
        return 1, value[1] if self._nested else value


class Result(Variant):
    """What was asked for, or an error; of either there may be none to tell."""

    __slots__ = ("error", "ok")

    def __init__(self, ok: ValueType | None, error: ValueType | None) -> None:
        super().__init__((("ok", ok), ("error", error)))
        self.ok, self.error = ok, error

    def __str__(self) -> str:
        if self.error is None:
            return "result" if self.ok is None else f"result<{self.ok}>"
        return f"result<{self.ok or '_'}, {self.error}>"


class Flags(ValueType):
    """A set of labels, a bit for each."""

    __slots__ = ("_bits", "_whole", "labels")

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._bits = {label: 1 << index for index, label in enumerate(labels)}
        count = len(labels)
        self._whole = U8 if count <= 8 else U16 if count <= 16 else U32
        self._lay_out(self._whole.size, self._whole.alignment, ("i32",))

    def __str__(self) -> str:
        return f"flags {{ {', '.join(self.labels)} }}"

    def parts(self) -> Sequence[object]:
        return self.labels

    def _made(self, number: int) -> frozenset[str]:
        return frozenset([label for label, bit in self._bits.items() if number & bit])

    def _number(self, value: frozenset[str]) -> int:
        return sum([self._bits[label] for label in value])

    def load(self, context: Context, start: int) -> frozenset[str]:
        return self._made(self._whole.load(context, start))

    def store(self, context: Context, value: frozenset[str], start: int) -> None:
        self._whole.store(context, self._number(value), start)

    def lift(self, context: Context, flat: Flat) -> frozenset[str]:
        return self._made(next(flat))

    def lower(self, context: Context, value: frozenset[str], flat: list[Any]) -> None:
        flat.append(self._number(value))
