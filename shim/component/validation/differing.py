"""In what two types differ, for a message (library; runs in the compiler)."""

from __future__ import annotations

from itertools import zip_longest
from typing import Final

from shim.component.types import FunctionType, ValueType
from shim.component.validation.kinds import Kinds

_LONGEST: Final = 200


def function_difference(kinds: Kinds, wanted: FunctionType, found: FunctionType) -> str:
    """Return what is expected and what there is instead: the first of all differences."""
    if wanted.is_async != found.is_async or [n for n, _ in wanted.params] != [
        n for n, _ in found.params
    ]:
        return _differ(wanted, found)
    for (name, one), (_, other) in zip(wanted.params, found.params, strict=True):
        if one is not other:
            return f"parameter `{name}`, {difference(kinds, one, other)}"
    return f"the result, {difference(kinds, wanted.result, found.result)}"


def difference(kinds: Kinds, wanted: ValueType | None, found: ValueType | None) -> str:
    """Return what is expected and what there is instead, of the first part that differs."""
    if wanted is None or found is None:
        return _differ(wanted, found)
    one, other = kinds.form(wanted), kinds.form(found)
    if one.kind != other.kind or len(one.parts) != len(other.parts):
        return _differ(wanted, found)
    for index, (label, instead) in enumerate(zip_longest(one.labels, other.labels)):
        if label != instead:
            return f"label {index} of {one.kind}, {_differ(label, instead)}"
    for index, (part, instead_part) in enumerate(zip(one.parts, other.parts, strict=True)):
        if part is not instead_part:
            labels = ("ok", "error") if one.kind == "result" else one.labels
            where = f"`{labels[index]}`" if labels else f"{one.kind} of"
            return f"{where}, {difference(kinds, part, instead_part)}"
    return _differ(wanted, found)


def _differ(wanted: object, found: object) -> str:
    return f"{short(wanted)} expected, {short(found)} found"


def short(of: object) -> str:
    """Return a text for something, or its beginning, to have two of them in a message."""
    text = "nothing" if of is None else str(of)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
