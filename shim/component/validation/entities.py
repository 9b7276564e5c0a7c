"""What is in the index spaces: the types of everything (library; runs in the compiler).

Two types are equal by what they are made of. Which of several equal ones was meant matters only for
names: what a client has to name must be imported or exported (Explainer.md, "External Visibility of
Types"). So each definition of a type is an object of its own here, and its `kind` is shared.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from shim.component.binary.core import CoreExtern, CoreFunction, ModuleShape
from shim.component.binary.reader import MAX_DEPTH, Flaw
from shim.component.types import FunctionType, Resource, ValueType

__all__ = [
    "Component", "CoreExtern", "CoreFunction", "Entity", "Function", "Instance", "ModuleShape",
    "ResourceType", "Type", "Value",
]  # fmt: skip

NAMED: Final = frozenset({"record", "variant", "enum", "flags"})
"""The kinds of value types that clients need a name for."""


class Value:
    """A value type, and the types that it was defined with."""

    __slots__ = ("kind", "parts")

    def __init__(self, kind: ValueType, parts: tuple[Value | ResourceType, ...] = ()) -> None:
        self.kind = kind
        self.parts = parts


class ResourceType:
    """A type of resources."""

    __slots__ = ("resource",)

    def __init__(self, resource: Resource) -> None:
        self.resource = resource


class Function:
    """A function's type, or a function."""

    __slots__ = ("parts", "type")

    def __init__(self, kind: FunctionType, parts: tuple[Value | ResourceType, ...]) -> None:
        self.type = kind
        self.parts = parts


class Entity(NamedTuple):
    """What is imported or exported under a name: its sort, and its type."""

    sort: str
    type: Type


class Instance:
    """An instance's type, or an instance. `bound` are resources of the type: new in each."""

    __slots__ = ("bound", "depth", "exports")

    def __init__(
        self, exports: dict[str, Entity], bound: frozenset[Resource] = frozenset()
    ) -> None:
        self.exports = exports
        self.bound = bound
        self.depth = _depth(exports)


def _depth(entities: dict[str, Entity]) -> int:
    """Return how deep an instance is nested that has these. Raises Flaw where that is too deep."""
    inner = (each.type for each in entities.values())
    depth = 1 + max([each.depth for each in inner if isinstance(each, (Instance, Component))] + [0])
    if depth > MAX_DEPTH:
        raise Flaw(f"instances are nested deeper than {MAX_DEPTH} levels")
    return depth


class Component:
    """A component's type, or a component: what each instance imports and exports.

    Resources among the imports are given to an instance, those among the exports new in each.
    """

    __slots__ = ("depth", "exports", "given", "imports", "new")

    def __init__(
        self,
        imports: dict[str, Entity],
        exports: dict[str, Entity],
        given: frozenset[Resource],
        new: frozenset[Resource],
    ) -> None:
        self.imports = imports
        self.exports = exports
        self.given = given
        self.new = new
        self.depth = max(_depth(imports), _depth(exports))


Type: TypeAlias = "Value | ResourceType | Function | Instance | Component | ModuleShape"
