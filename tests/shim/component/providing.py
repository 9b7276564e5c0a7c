"""A host that provides whatever a component imports."""

from __future__ import annotations

from typing import Any

from shim.component.binary.decoding import decode
from shim.component.host import Function, Interface, Registry, compatible
from shim.component.types import Resource
from shim.component.validation.component import validate
from shim.component.validation.entities import Entity, Instance, ResourceType, Value
from shim.component.validation.entities import Function as FunctionEntity
from shim.component.validation.matching import Substitution


def whatever_is_imported(binary: bytes) -> Registry:
    """Return a registry with all that a component imports, of the types that it expects."""
    scope = validate(decode(binary), binary).scope
    hosts = Substitution(scope.kinds, scope.shared.work, {})
    interfaces: dict[tuple[str, str], Interface] = {}

    def provide(interface: Interface, name: str, entity: Entity) -> None:
        kind = entity.type
        if isinstance(kind, ResourceType):
            known = hosts.resources.get(kind.resource) or interface.resources.get(name)
            resource = known or Resource(f"{interface.name}.{name}")
            hosts.resources[kind.resource] = interface.resources[name] = resource
        elif isinstance(kind, Value):
            interface.types[name] = hosts.kind(kind.kind)
        elif isinstance(kind, FunctionEntity) and entity.sort == "func":
            interface.functions[name] = Function(hosts.function(kind.type), _call, None, False)

    for name, entity in scope.imports.entities.items():
        is_interface = isinstance(entity.type, Instance) and entity.sort == "instance"
        base, _, version = (name if is_interface else "").partition("@")
        key = base, compatible(version)
        interface = interfaces.setdefault(key, Interface(*key))
        if isinstance(entity.type, Instance) and is_interface:
            for each, inner in entity.type.exports.items():
                provide(interface, each, inner)
        else:
            provide(interface, name, entity)
    return Registry(interfaces.values())


def _call(*_: Any) -> None:
    raise AssertionError("a plan calls nothing")
