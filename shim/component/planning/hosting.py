"""What a component imports, found among what the host provides (library; in the compiler)."""

from __future__ import annotations

from typing import Final

from shim.component.binary.reader import Flaw
from shim.component.host import Interface, Registry
from shim.component.types import FunctionType, Resource
from shim.component.validation.differing import difference, function_difference
from shim.component.validation.entities import Entity, Function, ResourceType, Value
from shim.component.validation.kinds import Kinds
from shim.component.validation.matching import Substitution, Work, same_function

WORLD: Final = ""
"""The name of the interface that has what is imported directly."""
_WORDS: Final = {"func": "function"}


class Unfit(Flaw):
    """What is wrong is between the component and the host; the message tells all."""


class Hosting:
    """Compares imports with interfaces. Its methods raise Unfit where they do not fit."""

    def __init__(self, registry: Registry, kinds: Kinds, work: Work) -> None:
        self._registry = registry
        self._kinds = kinds
        self._hosts = Substitution(kinds, work, {})
        """Puts the host's resources in the place of those that are imported."""

    def known_as(self, name: str, implements: str | None) -> str:
        """Return the name by which the registry knows an interface."""
        for each in (name, implements):
            if each is not None and self._registry.find(each) is not None:
                return each
        raise Unfit(f"unknown import `{name}`: nobody provides it")

    def check(self, interface: str, name: str, entity: Entity) -> Resource | None:
        """Compare an import with what the host has. Returns its resource, where it is one."""
        kind = entity.type
        word = (
            "resource" if isinstance(kind, ResourceType) else _WORDS.get(entity.sort, entity.sort)
        )
        import_ = f"`{interface}`, {word} `{name}`" if interface else f"{word} `{name}`"
        if entity.sort not in ("func", "type"):
            raise Unfit(f"unsupported import {import_}: the host has functions and types")
        found = self._registry.find(interface) or Interface(WORLD, "")
        if isinstance(kind, Function) and entity.sort == "func":
            self._check_function(import_, found, name, kind.type)
        elif isinstance(kind, ResourceType):
            return self._resource(import_, found, name, kind.resource)
        elif isinstance(kind, Value) and name in found.types:  # others differ where they are used
            wanted, has = self._hosts.kind(kind.kind), self._kinds.adopt(found.types[name])
            if wanted is not has:
                how = difference(self._kinds, wanted, has)
                raise Unfit(f"import {import_} is another one: {how}")
        return None

    def _check_function(
        self, import_: str, interface: Interface, name: str, kind: FunctionType
    ) -> None:
        found = interface.functions.get(name)
        if found is None:
            raise Unfit(f"unknown import {import_}: nobody provides it")
        wanted, has = self._hosts.function(kind), found.type.of_others(self._kinds.adopt)
        if not same_function(wanted, has):
            how = function_difference(self._kinds, wanted, has)
            raise Unfit(f"import {import_} is another one: {how}")

    def _resource(
        self, import_: str, interface: Interface, name: str, resource: Resource
    ) -> Resource:
        found = interface.resources.get(name)
        if found is None:
            raise Unfit(f"unknown import {import_}: nobody provides it")
        known = self._hosts.resources.setdefault(resource, found)
        if known is not found:
            raise Unfit(f"import {import_} is another one: {known} expected, {found} found")
        return found
