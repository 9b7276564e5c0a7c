"""Subtyping, and what takes the place of a resource (library; runs in the compiler).

Explainer.md, "Type Checking". A type with resources of its own is matched in the order of its
declaration: the first name for a resource says which one it is, and from then on it is that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from shim.component.binary.core import (
    CoreExtern,
    CoreFunction,
    Global,
    Limits,
    Memory,
    ModuleShape,
    Table,
    Tag,
    sort_of,
)
from shim.component.binary.reader import Flaw
from shim.component.types import FunctionType, Resource, ValueType
from shim.component.validation.differing import difference, function_difference, short
from shim.component.validation.entities import (
    Component,
    Entity,
    Function,
    Instance,
    ResourceType,
    Type,
    Value,
)
from shim.component.validation.kinds import Kinds

MAX_WORK: Final = 300_000
"""How many types are substituted and compared altogether. CPython as a component needs 6,000."""


class Work:
    """How much may still be done."""

    __slots__ = ("left",)

    def __init__(self, left: int = MAX_WORK) -> None:
        self.left = left

    def take(self, amount: int) -> None:
        """Take off so much. Raises Flaw where it is too much."""
        self.left -= amount
        if self.left < 0:
            raise Flaw("its types are too much to compare")


class Substitution:
    """Puts resources in the place of others, in types of any size, each part once."""

    def __init__(self, kinds: Kinds, work: Work, resources: Mapping[Resource, Resource]) -> None:
        self._kinds = kinds
        self._work = work
        self.resources = dict(resources)
        self._values: dict[ValueType, ValueType] = {}
        self._types: dict[Type, Type] = {}

    def assume(self, kind: Type, found: Type) -> None:
        """Put a definition of a type in the place of another one."""
        self._types[kind] = found

    def kind(self, kind: ValueType) -> ValueType:
        """Return the same value type with other resources."""
        if not self._kinds.has_resource(kind):
            return kind
        found = self._values.get(kind)
        if found is None:
            form = self._kinds.form(kind)
            self._work.take(1 + len(form.parts) + len(form.labels))
            parts = tuple(None if part is None else self.kind(part) for part in form.parts)
            resource = form.resource
            if resource is not None:
                resource = self.resources.get(resource, resource)
            found = self._kinds.make(form._replace(parts=parts, resource=resource))
            self._values[kind] = found
        return found

    def function(self, kind: FunctionType) -> FunctionType:
        """Return the same function's type with other resources."""
        self._work.take(1 + len(kind.params))
        return kind.of_others(self.kind)

    def entity(self, entity: Entity) -> Entity:
        """Return the same import or export with other resources."""
        return Entity(entity.sort, self.type(entity.type))

    def entities(self, entities: Mapping[str, Entity]) -> dict[str, Entity]:
        """Return the same imports or exports with other resources."""
        return {name: self.entity(each) for name, each in entities.items()}

    def type(self, kind: Type) -> Type:
        """Return the same type with other resources."""
        found = self._types.get(kind)
        if found is None:
            self._work.take(1)
            found = self._types[kind] = self._substituted(kind)
        return found

    def _substituted(self, kind: Type) -> Type:
        if isinstance(kind, Value):
            parts = self._parts(kind.parts)
            return kind if parts == kind.parts else Value(self.kind(kind.kind), parts)
        if isinstance(kind, ResourceType):
            resource = self.resources.get(kind.resource)
            return kind if resource is None else ResourceType(resource)
        if isinstance(kind, Function):
            return Function(self.function(kind.type), self._parts(kind.parts))
        if isinstance(kind, Instance):
            return Instance(self.entities(kind.exports), kind.bound)
        if isinstance(kind, Component):
            imports, exports = self.entities(kind.imports), self.entities(kind.exports)
            return Component(imports, exports, kind.given, kind.new)
        return kind

    def _parts(self, parts: Iterable[Value | ResourceType]) -> tuple[Value | ResourceType, ...]:
        return tuple([self.type(part) for part in parts])  # type: ignore[misc]


class Matching:
    """Compares what there is with what is expected, whose resources of its own are `open`."""

    def __init__(
        self,
        kinds: Kinds,
        work: Work,
        open_: Iterable[Resource],
        known: Mapping[Resource, Resource] | None = None,
    ) -> None:
        self._kinds = kinds
        self._work = work
        self._open = set(open_)
        self.expected = Substitution(kinds, work, known or {})

    def match(self, name: str, found: Entity, expected: Entity) -> None:
        """Raise Flaw unless one can be used for the other; `name` is for the message."""
        self._work.take(1)
        if found.sort != expected.sort:
            raise Flaw(f"`{name}`: expected a {expected.sort}, found a {found.sort}")
        self._match(name, found.type, expected.type)
        if expected.sort == "type":
            self.expected.assume(expected.type, found.type)

    def _match(self, name: str, found: Type, expected: Type) -> None:
        if isinstance(expected, ResourceType) and isinstance(found, ResourceType):
            self._match_resource(name, found.resource, expected.resource)
        elif isinstance(expected, Value) and isinstance(found, Value):
            kind = self.expected.kind(expected.kind)
            if kind is not found.kind:
                raise Flaw(f"`{name}`: {difference(self._kinds, kind, found.kind)}")
        elif isinstance(expected, Function) and isinstance(found, Function):
            self._match_function(name, found.type, expected.type)
        elif isinstance(expected, Instance) and isinstance(found, Instance):
            self._open |= expected.bound
            self.match_exports(name, found.exports, expected.exports)
        elif isinstance(expected, Component) and isinstance(found, Component):
            self._match_component(name, found, expected)
        elif isinstance(expected, ModuleShape) and isinstance(found, ModuleShape):
            _match_module(self._work, name, found, expected)
        else:
            raise Flaw(f"`{name}`: a type of another sort than expected")

    def match_exports(
        self, name: str, found: Mapping[str, Entity], expected: Mapping[str, Entity]
    ) -> None:
        """Raise Flaw unless all that is expected is there."""
        for each, entity in expected.items():
            if each not in found:
                raise Flaw(f"`{name}`: the {entity.sort} `{each}` is missing")
            self.match(f"{name}`, `{each}" if name else each, found[each], entity)

    def _match_resource(self, name: str, found: Resource, expected: Resource) -> None:
        known = self.expected.resources
        if expected in self._open and expected not in known:
            known[expected] = found
        elif known.get(expected, expected) is not found:
            raise Flaw(f"`{name}`: another resource than expected")

    def _match_function(self, name: str, found: FunctionType, expected: FunctionType) -> None:
        wanted = self.expected.function(expected)
        if not same_function(found, wanted):
            raise Flaw(f"`{name}`: {function_difference(self._kinds, wanted, found)}")

    def _match_component(self, name: str, found: Component, expected: Component) -> None:
        wanted = self.expected
        self._work.take(len(wanted.resources))
        given = Matching(self._kinds, self._work, found.given)
        for each, entity in found.imports.items():
            if each not in expected.imports:
                raise Flaw(f"`{name}`: imports `{each}`, which is not expected")
            given.match(each, wanted.entity(expected.imports[each]), entity)
        made = Matching(self._kinds, self._work, expected.new, wanted.resources)
        exports = given.expected.entities(found.exports)
        made.match_exports(name, exports, expected.exports)


def same_function(one: FunctionType, other: FunctionType) -> bool:
    """Return whether two types are one; of those, value types are made only once."""
    return (
        one.is_async == other.is_async and one.result is other.result and one.params == other.params
    )


def _match_module(work: Work, name: str, found: ModuleShape, expected: ModuleShape) -> None:
    for (module, each), extern in found.imports.items():
        given = expected.imports.get((module, each))
        if given is None:
            raise Flaw(f"`{name}`: imports `{module}` `{each}`, which is not expected")
        match_core(work, f"{module}` `{each}", given, extern)
    for each, extern in expected.exports.items():
        if each not in found.exports:
            raise Flaw(f"`{name}`: the {sort_of(extern)} `{each}` is missing")
        match_core(work, f"{name}`, `{each}", found.exports[each], extern)


def match_core(work: Work, name: str, found: CoreExtern, expected: CoreExtern) -> None:
    """Raise Flaw unless an export can be used for an import."""
    work.take(1 + len(expected.params) // 32 if isinstance(expected, CoreFunction) else 1)
    if isinstance(expected, Table) and isinstance(found, Table):
        fits = _same_type(found.element, expected.element) and _within(
            found.limits, expected.limits
        )
    elif isinstance(expected, Memory) and isinstance(found, Memory):
        fits = _within(found.limits, expected.limits)
    elif isinstance(expected, Global) and isinstance(found, Global):
        fits = found.mutable == expected.mutable and _same_type(found.type, expected.type)
    elif isinstance(expected, Tag) and isinstance(found, Tag):
        fits = _same_function(found.type, expected.type)
    elif isinstance(expected, CoreFunction) and isinstance(found, CoreFunction):
        fits = _same_function(found, expected)
    else:
        raise Flaw(f"`{name}`: expected a {sort_of(expected)}, found a {sort_of(found)}")
    if not fits:
        raise Flaw(f"`{name}`: {core_difference(expected, found)}")


def _within(found: Limits, expected: Limits) -> bool:
    return (
        found.shared == expected.shared
        and found.is_64 == expected.is_64
        and found.page == expected.page
        and found.minimum >= expected.minimum
        and (
            expected.maximum is None
            or (found.maximum is not None and found.maximum <= expected.maximum)
        )
    )


def _same_type(found: str, expected: str) -> bool:
    # Types of a module's own are for the engine to compare.
    return found == expected or "(ref ...)" in (found, expected)


def _same_function(found: CoreFunction, expected: CoreFunction) -> bool:
    if found == expected:
        return True
    return (
        len(found.params) == len(expected.params)
        and len(found.results) == len(expected.results)
        and all(map(_same_type, found.params, expected.params))
        and all(map(_same_type, found.results, expected.results))
    )


def core_difference(expected: CoreExtern, found: CoreExtern) -> str:
    """Return what is expected and what there is instead."""
    return f"{short(_core_text(expected))} expected, {short(_core_text(found))} found"


def _core_text(extern: CoreExtern) -> str:
    if isinstance(extern, CoreFunction):
        text = f"[{' '.join(extern.params)}] -> [{' '.join(extern.results)}]"
    elif isinstance(extern, Tag):
        text = f"[{' '.join(extern.type.params)}]"
    elif isinstance(extern, Global):
        text = f"{'mut ' * extern.mutable}{extern.type}"
    elif isinstance(extern, (Table, Memory)):
        limits = extern.limits
        flags = " shared" * limits.shared + " of 64 bits" * limits.is_64
        most = "" if limits.maximum is None else f" to {limits.maximum}"
        text = f"at least {limits.minimum}{most}{flags}"
        if isinstance(extern, Table):
            text += f" {extern.element}"
    else:
        text = str(extern)
    return text
