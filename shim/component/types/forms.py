"""What a value type is made of, as data, and the type made of that (library).

A component's types are such forms while they are compared and weighed, and in the plan (there with
numbers instead of types and resources).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from shim.component.types.base import ValueType
from shim.component.types.compound import Enum, Flags, Option, Record, Result, Tuple, Variant
from shim.component.types.handles import Borrow, ErrorContextType, Future, Own, Resource, Stream
from shim.component.types.primitive import PRIMITIVES
from shim.component.types.sequences import STRING, FixedList, List, Map

NAMED: Final[Mapping[str, ValueType]] = {
    **PRIMITIVES,
    "string": STRING,
    "error-context": ErrorContextType(),
}
"""The types that are not made of others."""


class Form(NamedTuple):
    """What a type is made of; which kind has what, `plan.Type` tells."""

    kind: str
    parts: tuple[ValueType | None, ...] = ()
    labels: tuple[str, ...] = ()
    number: int = 0
    """The length of a list, 0 where it is not fixed."""
    resource: Resource | None = None


def build(form: Form) -> ValueType:
    """Return a type of this form.

    Raises LookupError, ValueError or AttributeError for a form that no type has.
    """
    if form.kind in NAMED:
        return NAMED[form.kind]
    return _COMPOUND[form.kind](form, form.parts)


def _members(form: Form) -> list[tuple[str, Any]]:
    return list(zip(form.labels, form.parts, strict=True))


_COMPOUND: Final[Mapping[str, Callable[[Form, Any], ValueType]]] = {
    "list": lambda form, parts: FixedList(parts[0], form.number) if form.number else List(parts[0]),
    "map": lambda form, parts: Map(parts[0], parts[1]),
    "record": lambda form, _: Record(_members(form)),
    "variant": lambda form, _: Variant(_members(form)),
    "tuple": lambda _, parts: Tuple(parts),
    "option": lambda _, parts: Option(parts[0]),
    "result": lambda _, parts: Result(parts[0], parts[1]),
    "enum": lambda form, _: Enum(form.labels),
    "flags": lambda form, _: Flags(form.labels),
    "own": lambda form, _: Own(_resource(form)),
    "borrow": lambda form, _: Borrow(_resource(form)),
    "stream": lambda _, parts: Stream(parts[0]),
    "future": lambda _, parts: Future(parts[0]),
}


def _resource(form: Form) -> Resource:
    if form.resource is None:
        raise LookupError(f"{form.kind} of no resource")
    return form.resource


def form_of(kind: ValueType) -> Form:
    """Return what a type is made of."""
    if isinstance(kind, Map):
        return Form("map", (kind.key, kind.value))
    if isinstance(kind, List):
        return Form("list", (kind.element,))
    if isinstance(kind, FixedList):
        return Form("list", (kind.element,), number=kind.length)
    if isinstance(kind, Record):
        return Form("record", kind.types, kind.labels)
    if isinstance(kind, Tuple):
        return Form("tuple", kind.types)
    if isinstance(kind, Enum):
        return Form("enum", labels=kind.labels)
    if isinstance(kind, Option):
        return Form("option", (kind.payload,))
    if isinstance(kind, Result):
        return Form("result", (kind.ok, kind.error))
    if isinstance(kind, Variant):
        return Form("variant", kind.cases, kind.labels)
    if isinstance(kind, Flags):
        return Form("flags", labels=kind.labels)
    if isinstance(kind, Own):
        return Form("own", resource=kind.resource)
    if isinstance(kind, Borrow):
        return Form("borrow", resource=kind.resource)
    if isinstance(kind, (Stream, Future)):
        return Form("stream" if isinstance(kind, Stream) else "future", (kind.element,))
    return Form(str(kind))
