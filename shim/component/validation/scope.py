"""A component or a type that has index spaces of its own (library; runs in the compiler)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from shim.component.binary.definitions import Extern, Name
from shim.component.binary.reader import Allowance, Flaw
from shim.component.types import Resource
from shim.component.types.forms import Form
from shim.component.validation import names
from shim.component.validation.entities import (
    Component,
    Entity,
    Function,
    Instance,
    ModuleShape,
    ResourceType,
    Type,
    Value,
)
from shim.component.validation.kinds import Kinds
from shim.component.validation.matching import Substitution, Work
from shim.component.validation.visibility import Visibility

COMPONENT: Final = "component"
COMPONENT_TYPE: Final = "component type"
INSTANCE_TYPE: Final = "instance type"

_OUTER: Final = ("core module", "core type", "type", "component")
_OF_SORT: Final[dict[str, type]] = {
    "core module": ModuleShape,
    "func": Function,
    "component": Component,
    "instance": Instance,
}


class Shared:
    """What all scopes of one binary share."""

    def __init__(self, binary: bytes) -> None:
        self.binary = binary
        self.kinds = Kinds()
        self.work = Work()
        self.allowance = Allowance()


class Namespace:
    """Imports, or exports, by name.

    Only those of a component or a type name resources, for functions that belong to one.
    """

    def __init__(self, kinds: Kinds, names_resources: bool = True) -> None:
        self.entities: dict[str, Entity] = {}
        self._kinds = kinds
        self._names_resources = names_resources
        self._unique: dict[str, str] = {}
        self._resources: dict[str, Resource] = {}

    def add(self, name: Name, entity: Entity) -> None:
        """Give something a name. Raises Flaw where it is not right, or taken."""
        checked = names.check(name, entity.sort)
        other = self._unique.setdefault(checked.unique, name.text)
        if name.text in self.entities or other != name.text:
            raise Flaw(f"the name `{name.text}` conflicts with `{other}`")
        if checked.role and isinstance(entity.type, Function):
            self._check_role(checked, entity.type)
        if isinstance(entity.type, ResourceType) and self._names_resources:
            self._resources[name.text] = entity.type.resource
        self.entities[name.text] = entity

    def _check_role(self, name: names.Checked, function: Function) -> None:
        """Check what a constructor, a method or a static function is to its resource."""
        resource = self._resources.get(name.resource)
        if resource is None:
            raise Flaw(f"`{name.text}`: no resource `{name.resource}` before it")
        kind = function.type
        if name.role == "method":
            borrow = self._kinds.make(Form("borrow", resource=resource))
            if not kind.params or kind.params[0] != ("self", borrow):
                raise Flaw(f"`{name.text}` has no first parameter `self: borrow<{resource}>`")
        elif name.role == "constructor":
            own = self._kinds.make(Form("own", resource=resource))
            made = kind.result
            if made is not None and made is not own:
                form = self._kinds.form(made)
                made = form.parts[0] if form.kind == "result" else None
            if made is not own:
                raise Flaw(f"`{name.text}` does not return `{name.resource}`")


class Scope:
    """Index spaces, imports and exports of a component, or of the type of one or of an instance."""

    def __init__(self, what: str, outer: Scope | None, shared: Shared) -> None:
        self.what = what
        self.outer = outer
        self.shared = shared
        self.kinds = shared.kinds
        self.spaces: defaultdict[str, list[Any]] = defaultdict(list)
        self.imports = Namespace(shared.kinds)
        self.exports = Namespace(shared.kinds)
        self.given: set[Resource] = set()
        """Resources that are imported."""
        self.new: set[Resource] = set()
        """Resources that are defined here, or by instances that are made here."""
        self.local: set[Resource] = set()
        """Of those, the ones that are defined by the component itself."""
        self.visibility = Visibility(shared.kinds, shared.work)

    def get(self, sort: str, index: int) -> Any:
        """Return the type of what an index refers to. Raises Flaw."""
        space = self.spaces[sort]
        if index >= len(space):
            raise Flaw(f"{sort} {index} is out of bounds: there are {len(space)}")
        return space[index]

    def type_of(self, sort: str, index: int) -> Type:
        """Return a type that is one of something of that sort. Raises Flaw."""
        found: Type = self.get("core type" if sort == "core module" else "type", index)
        if not isinstance(found, _OF_SORT[sort]):
            raise Flaw(f"type {index} is not of a {sort}")
        return found

    def value(self, index: int) -> Value:
        """Return a value type. Raises Flaw."""
        found = self.get("type", index)
        if not isinstance(found, Value):
            raise Flaw(f"type {index} is not of a value")
        return found

    def resource(self, index: int) -> ResourceType:
        """Return a resource's type. Raises Flaw."""
        found = self.get("type", index)
        if not isinstance(found, ResourceType):
            raise Flaw(f"type {index} is not of a resource")
        return found

    def opened(self, extern: Extern, name: str, fresh: set[Resource]) -> Entity:
        """Return what is imported, or exported as this. New resources are added to `fresh`."""
        if extern.sort != "type":
            found = self.type_of(extern.sort, extern.index)
            if isinstance(found, Instance) and extern.sort == "instance":
                found = self.instance(found, name, fresh)
            return Entity(extern.sort, found)
        if extern.index < 0:
            resource = Resource(name)
            fresh.add(resource)
            return Entity("type", ResourceType(resource))
        return Entity("type", alias_of(self.get("type", extern.index)))

    def instance(self, kind: Instance, name: str, fresh: set[Resource]) -> Instance:
        """Return an instance of a type, with resources of its own."""
        if not kind.bound:
            return kind
        self.shared.work.take(len(kind.bound))
        base = name.partition("@")[0]
        replaced = {}
        for entity_name, entity in kind.exports.items():
            if isinstance(entity.type, ResourceType) and entity.type.resource in kind.bound:
                replaced[entity.type.resource] = Resource(f"{base}.{entity_name}")
        for resource in kind.bound:
            replaced.setdefault(resource, Resource(resource.name))
        fresh.update([replaced[resource] for resource in kind.bound])
        substitution = Substitution(self.kinds, self.shared.work, replaced)
        return Instance(substitution.entities(kind.exports))

    def add_import(self, name: Name, extern: Extern) -> None:
        """Import something."""
        entity = self.opened(extern, name.text, self.given)
        self.imports.add(name, entity)
        self._admit(name, entity, is_export=False)
        self.spaces[entity.sort].append(entity.type)

    def add_export(self, name: Name, entity: Entity) -> None:
        """Export something, which gets an index of its own by that."""
        self.exports.add(name, entity)
        self._admit(name, entity, is_export=True)
        self.spaces[entity.sort].append(entity.type)

    def _admit(self, name: Name, entity: Entity, is_export: bool) -> None:
        if self.what != INSTANCE_TYPE and not self.visibility.admit(entity, is_export):
            word = "export" if is_export else "import"
            raise Flaw(f"the {word} `{name.text}` is made of types that are not visible outside")

    def alias_outer(self, sort: str, count: int, index: int) -> None:
        """Take over something of a scope further out."""
        if sort not in _OUTER:
            raise Flaw(f"a {sort} cannot be taken over from further out")
        scope, crossed = self, False
        for _ in range(count):
            crossed |= scope.what == COMPONENT
            if scope.outer is None:
                raise Flaw(f"there is nothing {count} levels further out")
            scope = scope.outer
        found = scope.get(sort, index)
        if crossed and sort == "type" and self._refers_to_resource(found, set()):
            raise Flaw("a type further out refers to a resource of its component")
        self.spaces[sort].append(found)

    def _refers_to_resource(self, kind: Type, bound: set[Resource]) -> bool:
        """Return whether a type needs resources that are not its own; `bound` are those."""
        self.shared.work.take(1)
        if isinstance(kind, ResourceType):
            return kind.resource not in bound
        if isinstance(kind, Value):
            return self._has_free(kind.kind, bound)
        if isinstance(kind, Function):
            kinds = [each for _, each in kind.type.params]
            if kind.type.result is not None:
                kinds.append(kind.type.result)
            return any(self._has_free(each, bound) for each in kinds)
        if isinstance(kind, Instance):
            self.shared.work.take(len(kind.bound))
            bound |= kind.bound
            return any(self._refers_to_resource(each.type, bound) for each in kind.exports.values())
        if isinstance(kind, Component):
            self.shared.work.take(len(kind.given) + len(kind.new))
            bound |= kind.given | kind.new
            entities = [*kind.imports.values(), *kind.exports.values()]
            return any(self._refers_to_resource(each.type, bound) for each in entities)
        return False

    def _has_free(self, kind: Any, bound: set[Resource]) -> bool:
        if not self.kinds.has_resource(kind):
            return False
        if not bound:
            return True
        self.shared.work.take(1)
        form = self.kinds.form(kind)
        if form.resource is not None:
            return form.resource not in bound
        return any(self._has_free(part, bound) for part in form.parts if part is not None)


def alias_of(kind: Type) -> Type:
    """Return the same type under another name."""
    if isinstance(kind, Value):
        return Value(kind.kind, kind.parts)
    if isinstance(kind, ResourceType):
        return ResourceType(kind.resource)
    return kind
