"""Components and what they are made of, definition by definition (library; in the compiler)."""

from __future__ import annotations

from typing import Any, Final

from shim.component.binary import definitions as binary
from shim.component.binary.core import CoreExtern, ModuleShape, module_shape, sort_of
from shim.component.binary.reader import Flaw, Reader
from shim.component.types import Resource
from shim.component.validation import canonical
from shim.component.validation.entities import Component, Entity, Instance, ResourceType
from shim.component.validation.matching import Matching, match_core
from shim.component.validation.scope import COMPONENT, Namespace, Scope, Shared, alias_of
from shim.component.validation.types import UNNAMED, alias_export, component_of, define, define_core

_EXPORTED: Final = ("core module", "func", "type", "component", "instance")
_CORE_EXPORTED: Final = ("core func", "core table", "core memory", "core global", "core tag")


class Valid:
    """A component that is one: its definitions, index spaces, and the components in it."""

    def __init__(self, definitions: list[binary.Placed], scope: Scope) -> None:
        self.definitions = definitions
        self.scope = scope
        self.inner: list[Valid] = []
        """In the order of their definition."""


def validate(component: binary.Component, content: bytes) -> Valid:
    """Return a component that is one. Raises ModuleError."""
    return _validate(component, None, Shared(content))


def _validate(component: binary.Component, outer: Scope | None, shared: Shared) -> Valid:
    scope = Scope(COMPONENT, outer, shared)
    valid = Valid(component.definitions, scope)
    for placed in component.definitions:
        definition = placed.definition
        if isinstance(definition, binary.Component):  # its definitions have places of their own
            valid.inner.append(_validate(definition, scope, shared))
        try:
            _define(valid, definition)
        except Flaw as flaw:
            raise flaw.located(placed.what, placed.offset) from None
    return valid


def _define(valid: Valid, definition: binary.Definition) -> None:
    scope = valid.scope
    spaces = scope.spaces
    if isinstance(definition, binary.Component):
        spaces["component"].append(component_of(valid.inner[-1].scope))
    elif isinstance(definition, binary.TypeDefinition):
        spaces["type"].append(define(scope, definition))
    elif isinstance(definition, binary.CoreTypeDefinition):
        spaces["core type"] += define_core(scope, definition)
    elif isinstance(definition, binary.CoreModule):
        spaces["core module"].append(_module(scope, definition))
    elif isinstance(definition, binary.CoreInstantiation):
        spaces["core instance"].append(_core_instance(scope, definition))
    elif isinstance(definition, binary.CoreExports):
        spaces["core instance"].append(_core_exports(scope, definition))
    elif isinstance(definition, binary.Instantiation):
        spaces["instance"].append(_instance(scope, definition))
    elif isinstance(definition, binary.Exports):
        spaces["instance"].append(_exports(scope, definition))
    elif isinstance(definition, binary.ExportAlias):
        alias_export(scope, definition)
    elif isinstance(definition, binary.CoreExportAlias):
        _alias_core_export(scope, definition)
    elif isinstance(definition, binary.OuterAlias):
        scope.alias_outer(definition.sort, definition.count, definition.index)
    elif isinstance(definition, binary.Lift):
        spaces["func"].append(canonical.lift(scope, definition))
    elif isinstance(definition, binary.Lower):
        spaces["core func"].append(canonical.lower(scope, definition))
    elif isinstance(definition, binary.BuiltIn):
        spaces["core func"].append(canonical.built_in(scope, definition))
    elif isinstance(definition, binary.Import):
        scope.add_import(definition.name, definition.extern)
    elif isinstance(definition, binary.Export):
        _export(scope, definition)
    else:
        raise Flaw("a declaration of a type outside of one")


def _module(scope: Scope, module: binary.CoreModule) -> ModuleShape:
    shared = scope.shared
    end = module.offset + module.length
    return module_shape(Reader(shared.binary, module.offset, end, shared.allowance))


def _core_instance(scope: Scope, definition: binary.CoreInstantiation) -> dict[str, CoreExtern]:
    module: ModuleShape = scope.get("core module", definition.module)
    arguments: dict[str, dict[str, CoreExtern]] = {}
    for name, index in definition.arguments:
        if name in arguments:
            raise Flaw(f"the argument `{name}` is given twice")
        arguments[name] = scope.get("core instance", index)
    for (first, second), extern in module.imports.items():
        found = arguments.get(first, {}).get(second)
        if found is None:
            raise Flaw(f"the module's import `{first}` `{second}` is not given")
        match_core(scope.shared.work, f"{first}` `{second}", found, extern)
    return module.exports


def _core_exports(scope: Scope, definition: binary.CoreExports) -> dict[str, CoreExtern]:
    exports: dict[str, CoreExtern] = {}
    for name, sort, index in definition.exports:
        if sort not in _CORE_EXPORTED:
            raise Flaw(f"a core instance exports a {sort}, `{name}`")
        if name in exports:
            raise Flaw(f"`{name}` is exported twice")
        exports[name] = scope.get(sort, index)
    return exports


def _alias_core_export(scope: Scope, definition: binary.CoreExportAlias) -> None:
    exports: dict[str, CoreExtern] = scope.get("core instance", definition.instance)
    found = exports.get(definition.name)
    if found is None or sort_of(found) != definition.sort:
        raise Flaw(
            f"core instance {definition.instance} exports no {definition.sort} `{definition.name}`"
        )
    scope.spaces[definition.sort].append(found)


def entity_at(scope: Scope, target: binary.Target) -> Entity:
    """Return what a name is given to. Raises Flaw for what has no type outside of a component."""
    if target.sort not in _EXPORTED:
        raise Flaw(f"`{target.name.text}`: a {target.sort} cannot leave its component")
    found: Any = scope.get(target.sort, target.index)
    return Entity(target.sort, found)


def _instance(scope: Scope, definition: binary.Instantiation) -> Instance:
    component: Component = scope.get("component", definition.component)
    shared = scope.shared
    arguments: dict[str, Entity] = {}
    for target in definition.arguments:
        name = target.name.text
        if name in arguments:
            raise Flaw(f"the argument `{name}` is given twice")
        arguments[name] = entity_at(scope, target)
    matching = Matching(scope.kinds, shared.work, component.given)
    matching.match_exports("", arguments, component.imports)
    shared.work.take(len(component.new))
    substitution = matching.expected
    for resource in component.new:
        made = substitution.resources[resource] = Resource(resource.name)
        scope.new.add(made)
    return Instance(substitution.entities(component.exports))


def _exports(scope: Scope, definition: binary.Exports) -> Instance:
    exports = Namespace(scope.kinds, names_resources=False)
    for target in definition.exports:
        exports.add(target.name, entity_at(scope, target))
    return Instance(exports.entities)


def _export(scope: Scope, definition: binary.Export) -> None:
    target = definition.target
    name, entity = target.name, entity_at(scope, target)
    if definition.extern is not None:
        fresh: set[Resource] = set()
        wanted = scope.opened(definition.extern, name.text, fresh)
        Matching(scope.kinds, scope.shared.work, fresh).match(name.text, entity, wanted)
        scope.new |= fresh
        entity = wanted
    elif target.sort == "type":
        entity = Entity("type", alias_of(entity.type))
        if isinstance(entity.type, ResourceType) and entity.type.resource.name == UNNAMED:
            entity.type.resource.name = name.text  # for messages
    scope.add_export(name, entity)
