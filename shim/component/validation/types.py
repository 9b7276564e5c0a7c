"""Definitions of types (library; runs in the compiler).

Binary.md, "Type Definitions".
"""

from __future__ import annotations

from typing import Final

from shim.component.binary import definitions as binary
from shim.component.binary.core import MAX_VALUES, CoreFunction, ModuleShape, resolved
from shim.component.binary.reader import Flaw, Unsupported
from shim.component.types import FunctionType, Resource, ValueType
from shim.component.types.forms import Form
from shim.component.validation.entities import (
    Component,
    Entity,
    Function,
    Instance,
    ResourceType,
    Type,
    Value,
)
from shim.component.validation.names import check_labels
from shim.component.validation.scope import COMPONENT_TYPE, INSTANCE_TYPE, Scope

_KEYS: Final = frozenset(
    {"bool", "s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64", "char", "string"}
)
_WORDS: Final = {"record": "field", "variant": "case", "enum": "case", "flags": "flag"}
_MAX_FLAGS: Final = 32
UNNAMED: Final = "resource"
"""What a resource is called that is not exported yet."""


def define(scope: Scope, definition: binary.TypeDefinition) -> Type:
    """Return the type that is defined. Raises Flaw."""
    kind = definition.type
    if isinstance(kind, binary.ValueType):
        return _value(scope, kind)
    if isinstance(kind, binary.FunctionType):
        return _function(scope, kind)
    if isinstance(kind, binary.ResourceType):
        return _resource(scope, kind)
    if isinstance(kind, binary.InstanceType):
        inner = declared(INSTANCE_TYPE, kind.declarations, scope)
        return Instance(inner.exports.entities, frozenset(inner.new))
    inner = declared(COMPONENT_TYPE, kind.declarations, scope)
    return component_of(inner)


def component_of(scope: Scope) -> Component:
    """Return the type of a component, after all of its definitions."""
    imports, exports = scope.imports.entities, scope.exports.entities
    return Component(imports, exports, frozenset(scope.given), frozenset(scope.new))


def reference(scope: Scope, of: binary.Reference) -> tuple[ValueType, tuple[Value, ...]]:
    """Return the value type that is referred to, and its definition. Raises Flaw."""
    if isinstance(of, str):
        return scope.kinds.named(of), ()
    value = scope.value(of)
    return value.kind, (value,)


def _value(scope: Scope, kind: binary.ValueType) -> Value:
    if kind.kind in ("own", "borrow"):
        resource = scope.resource(kind.number)
        form = Form(kind.kind, resource=resource.resource)
        return Value(scope.kinds.make(form), (resource,))
    if kind.kind in _WORDS:
        check_labels(_WORDS[kind.kind], kind.labels)
        if not kind.labels:
            raise Flaw(f"a {kind.kind} without a {_WORDS[kind.kind]}")
    if kind.kind == "flags" and len(kind.labels) > _MAX_FLAGS:
        raise Flaw(f"{len(kind.labels)} flags are more than {_MAX_FLAGS}")
    if kind.kind == "tuple" and not kind.parts:
        raise Flaw("a tuple of nothing")
    parts: list[ValueType | None] = []
    values: list[Value] = []
    for each in kind.parts:
        part = None
        if each is not None:
            part, value = reference(scope, each)
            values += value
        parts.append(part)
    _check_parts(scope, kind.kind, parts)
    form = Form(kind.kind, tuple(parts), tuple(kind.labels), kind.number)
    return Value(scope.kinds.make(form), tuple(values))


def _check_parts(scope: Scope, kind: str, parts: list[ValueType | None]) -> None:
    if kind in ("stream", "future") and parts[0] is not None:
        if parts[0].has_borrow:
            raise Flaw(f"a {kind} of what is borrowed")
        if kind == "stream" and parts[0] is scope.kinds.named("char"):
            raise Flaw("a stream of char")
    if kind == "map" and parts[0] is not None and scope.kinds.form(parts[0]).kind not in _KEYS:
        raise Flaw(f"{parts[0]} is no key of a map")


def _function(scope: Scope, kind: binary.FunctionType) -> Function:
    check_labels("parameter", kind.names)
    if len(kind.names) > MAX_VALUES:
        raise Flaw(f"a function of more than {MAX_VALUES:,} parameters")
    values: list[Value] = []
    params = []
    for name, each in zip(kind.names, kind.params, strict=True):
        part, value = reference(scope, each)
        params.append((name, part))
        values += value
    result = None
    if kind.result is not None:
        result, value = reference(scope, kind.result)
        values += value
        if result.has_borrow:
            raise Flaw("a function returns what is borrowed")
    return Function(FunctionType(params, result, kind.is_async), tuple(values))


def _resource(scope: Scope, kind: binary.ResourceType) -> ResourceType:
    if scope.what in (INSTANCE_TYPE, COMPONENT_TYPE):
        raise Flaw("a resource is defined in a type")
    if kind.representation == "i64":
        raise Unsupported("a resource that is represented by an i64")
    if kind.representation != "i32":
        raise Flaw(f"a resource that is represented by {kind.representation}")
    if kind.destructor is not None:
        drop = scope.get("core func", kind.destructor)
        if drop != CoreFunction(("i32",), ()):
            raise Flaw("the destructor of a resource is no [i32] -> []")
    made = Resource(UNNAMED)
    scope.new.add(made)
    scope.local.add(made)
    return ResourceType(made)


def define_core(
    scope: Scope, definition: binary.CoreTypeDefinition
) -> list[CoreFunction | ModuleShape | None]:
    """Return the core types that are defined. Raises Flaw."""
    kind = definition.type
    if not isinstance(kind, binary.ModuleType):
        return [*kind]
    types: list[CoreFunction | None] = []
    shape = ModuleShape({}, {})
    for each in kind.declarations:
        if isinstance(each, binary.CoreTypeDefinition):
            assert not isinstance(each.type, binary.ModuleType)
            types += each.type
        elif isinstance(each, binary.OuterAlias):
            types.append(_outer_core_type(scope, each))
        elif isinstance(each, binary.ModuleImport):
            shape.add_import(each.module, each.name, resolved(each.extern, types))
        else:
            shape.add_export(each.name, resolved(each.extern, types))
    return [shape]


def _outer_core_type(scope: Scope, alias: binary.OuterAlias) -> CoreFunction:
    # The module's type is a scope as well, which is why its own level counts.
    if alias.count == 0:
        raise Flaw("an alias of the same module's type")
    outer: Scope | None = scope
    for _ in range(alias.count - 1):
        outer = None if outer is None else outer.outer
    if outer is None:
        raise Flaw(f"there is nothing {alias.count} levels further out")
    found = outer.get("core type", alias.index)
    if not isinstance(found, CoreFunction):
        raise Flaw(f"core type {alias.index} is no function's")
    return found


def declared(what: str, declarations: list[binary.Placed], outer: Scope) -> Scope:
    """Return the scope of a type, after all of its declarations. Raises Flaw."""
    scope = Scope(what, outer, outer.shared)
    for placed in declarations:
        _declare(scope, placed.definition)
    return scope


def _declare(scope: Scope, definition: binary.Definition) -> None:
    if isinstance(definition, binary.TypeDefinition):
        scope.spaces["type"].append(define(scope, definition))
    elif isinstance(definition, binary.CoreTypeDefinition):
        scope.spaces["core type"] += define_core(scope, definition)
    elif isinstance(definition, binary.Import):
        scope.add_import(definition.name, definition.extern)
    elif isinstance(definition, binary.ExportDeclaration):
        name = definition.name
        scope.add_export(name, scope.opened(definition.extern, name.text, scope.new))
    elif isinstance(definition, binary.OuterAlias):
        if definition.sort not in ("type", "core type"):
            raise Flaw(f"an alias of a {definition.sort} in a type")
        scope.alias_outer(definition.sort, definition.count, definition.index)
    elif isinstance(definition, binary.ExportAlias):
        if definition.sort not in ("type", "instance"):
            raise Flaw(f"an alias of a {definition.sort} in a type")
        alias_export(scope, definition)
    else:
        raise Flaw("an alias of what a core instance exports in a type")


def alias_export(scope: Scope, alias: binary.ExportAlias) -> None:
    """Take over what an instance exports. Raises Flaw."""
    instance: Instance = scope.get("instance", alias.instance)
    entity: Entity | None = instance.exports.get(alias.name)
    if entity is None or entity.sort != alias.sort:
        raise Flaw(f"instance {alias.instance} exports no {alias.sort} `{alias.name}`")
    scope.spaces[alias.sort].append(entity.type)
