"""Value types made each only once, so that equal ones are the same (library; in the compiler).

Equality of types is structural (Explainer.md, "Type Checking"), and a small binary can name types
that would be endless if they were written out: compared and substituted part by part they would
take as long. Here equal types are one object, whatever is derived from one is kept with it, and
what written out would be too large is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from shim.component.binary.reader import Flaw
from shim.component.types import ValueType
from shim.component.types.forms import Form, build, form_of

MAX_DEPTH: Final = 100
MAX_LETTERS: Final = 1_000_000
"""Of a type as it is written. wasi:http's longest has some 2,000."""
MAX_BYTES: Final = 1 << 28
"""Of a value in memory, if pointers had 64 bits (Binary.md, "Type Definitions")."""


class _Facts(NamedTuple):
    form: Form
    size: int  # and alignment, with pointers of 64 bits
    alignment: int
    depth: int
    letters: int
    has_resource: bool
    has_pointer: bool


class Kinds:
    """All value types of a component. The methods raise Flaw for a type that may not be."""

    def __init__(self) -> None:
        self._made: dict[Form, ValueType] = {}
        self._facts: dict[ValueType, _Facts] = {}
        self._adopted: dict[ValueType, ValueType] = {}

    def make(self, form: Form) -> ValueType:
        """Return the type of this form."""
        found = self._made.get(form)
        if found is None:
            facts = self._weighed(form)
            found = build(form)
            self._made[form] = found
            self._facts[found] = facts
        return found

    def named(self, word: str) -> ValueType:
        """Return a type that is not made of others."""
        return self.make(Form(word))

    def form(self, kind: ValueType) -> Form:
        """Return what a type is made of."""
        return self._facts[kind].form

    def has_resource(self, kind: ValueType) -> bool:
        """Return whether there is a handle in a type."""
        return self._facts[kind].has_resource

    def has_pointer(self, kind: ValueType) -> bool:
        """Return whether there is a list or a string in a type: what needs a memory."""
        return self._facts[kind].has_pointer

    def adopt(self, kind: ValueType) -> ValueType:
        """Return the same type for one that was made elsewhere."""
        found = self._adopted.get(kind)
        if found is None:
            form = form_of(kind)
            parts = tuple(None if part is None else self.adopt(part) for part in form.parts)
            found = self._adopted[kind] = self.make(form._replace(parts=parts))
        return found

    def _weighed(self, form: Form) -> _Facts:
        parts = [self._facts[part] for part in form.parts if part is not None]
        depth = 1 + max((part.depth for part in parts), default=0)
        letters = 8 + sum(part.letters for part in parts) + sum(map(len, form.labels))
        size, alignment = _layout_64(form, [(part.size, part.alignment) for part in parts])
        if depth > MAX_DEPTH:
            raise Flaw(f"a type is nested deeper than {MAX_DEPTH} levels")
        if letters > MAX_LETTERS:
            raise Flaw(f"a type that takes more than {MAX_LETTERS:,} letters to write")
        if size >= MAX_BYTES:
            raise Flaw(f"values of a type take {size:,} bytes, {MAX_BYTES:,} are too many")
        return _Facts(
            form,
            size,
            alignment,
            depth,
            letters,
            form.resource is not None or any(part.has_resource for part in parts),
            form.kind in ("string", "map")
            or (form.kind == "list" and not form.number)
            or (form.kind not in ("stream", "future") and any(part.has_pointer for part in parts)),
        )


_SIZES: Final = {
    "bool": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f32": 4, "f64": 8, "char": 4, "own": 4, "borrow": 4, "stream": 4, "future": 4,
    "error-context": 4,
}  # fmt: skip


def _layout_64(form: Form, parts: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return size and alignment where pointers have 64 bits (CanonicalABI.md, "Element Size")."""
    kind = form.kind
    if kind in _SIZES:
        return _SIZES[kind], _SIZES[kind]
    if kind in ("string", "map") or (kind == "list" and not form.number):
        return 16, 8
    if kind == "list":
        return parts[0][0] * form.number, parts[0][1]
    if kind in ("record", "tuple"):
        size = 0
        for part, alignment in parts:
            size = -(-size // alignment) * alignment + part
        most = max((alignment for _, alignment in parts), default=1)
        return -(-size // most) * most, most
    if kind == "flags":
        size = 1 if len(form.labels) <= 8 else 2 if len(form.labels) <= 16 else 4
        return size, size
    cases = 2 if kind in ("option", "result") else len(form.labels)
    tag = 1 if cases <= 1 << 8 else 2 if cases <= 1 << 16 else 4
    alignment = max([tag, *(alignment for _, alignment in parts)])
    payload = max((size for size, _ in parts), default=0)
    start = -(-tag // alignment) * alignment
    return -(-(start + payload) // alignment) * alignment, alignment
