"""Goes through what a component makes, and writes it down (library; runs in the compiler).

A component that is instantiated twice is gone through twice, with what it is given each time. What
its index spaces hold here is not types but what there will be: core functions to import, functions
to call, the number of a resource.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from shim.component import plan
from shim.component.binary import definitions as binary
from shim.component.binary.core import CoreFunction, ModuleShape
from shim.component.binary.reader import Unsupported
from shim.component.host import Registry
from shim.component.planning.hosting import WORLD, Hosting
from shim.component.planning.table import Naming, Table
from shim.component.types import Resource
from shim.component.validation import canonical
from shim.component.validation.component import Valid
from shim.component.validation.entities import Entity, Instance, ResourceType
from shim.component.validation.scope import Scope
from shim.component.validation.types import reference

MAX_DEPTH: Final = 64
"""Of components that instantiate components."""
MAX_MADE: Final = 200_000
"""How many things are gone through altogether. CPython as a component has 6,000."""


class _Module(NamedTuple):
    number: int
    shape: ModuleShape


class _CoreInstance(NamedTuple):
    """A core instance: of a step, or made of what there is."""

    step: int
    exports: Mapping[str, plan.Item]

    def export(self, name: str) -> plan.Item:
        return self.exports[name] if self.step < 0 else plan.Export(self.step, name)


class _Component(NamedTuple):
    valid: Valid
    outer: _Making | None


_Thing: TypeAlias = "plan.ExportedFunction | dict[str, Any] | _Module | _Component | int | None"
"""A function, an instance, a module, a component, the number of a resource, another type."""


class _Making:
    """An instance of a component that is being made."""

    def __init__(self, number: int, component: _Component, given: Mapping[str, _Thing]) -> None:
        self.number = number
        self.valid = component.valid
        self.scope: Scope = component.valid.scope
        self.outer = component.outer
        self.given = given
        self.naming = Naming()
        self.spaces: defaultdict[str, list[Any]] = defaultdict(list)
        self.exports: dict[str, _Thing] = {}
        self.inner = iter(component.valid.inner)


class Planner:
    """Makes the plan of a component. Raises Flaw."""

    def __init__(self, valid: Valid, registry: Registry) -> None:
        self._root = _Component(valid, None)
        shared = valid.scope.shared
        self._hosting = Hosting(registry, shared.kinds, shared.work)
        self._table = Table(shared.kinds, shared.work)
        self._left = MAX_MADE
        self._depth = 0
        self._modules: list[plan.Module] = []
        self._module_numbers: dict[int, int] = {}
        self._resources: list[plan.Resource] = []
        self._host_resources: dict[Resource, int] = {}
        self._instances: list[int] = []
        self._imports: list[plan.Import] = []
        self._lifts: list[plan.Lift] = []
        self._functions: list[plan.Signature] = []
        self._steps: list[plan.Instantiate] = []

    def planned(self) -> plan.Plan:
        """Return the plan."""
        root = self._make(self._root, {}, -1)
        exports = {
            name: _exported(entity, root.exports[name])
            for name, entity in root.scope.exports.entities.items()
            if entity.sort != "type"
        }
        return plan.Plan(
            self._modules,
            self._table.types,
            self._table.functions,
            self._resources,
            self._instances,
            self._imports,
            self._lifts,
            self._functions,
            self._steps,
            exports,
        )

    def _take(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise Unsupported(f"more than {MAX_MADE:,} definitions, all instances together")

    def _make(self, component: _Component, given: Mapping[str, _Thing], parent: int) -> _Making:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unsupported(f"components instantiate others deeper than {MAX_DEPTH} levels")
        making = _Making(len(self._instances), component, given)
        self._instances.append(parent)
        for placed in component.valid.definitions:
            self._take(1)
            self._follow(making, placed.definition)
        self._depth -= 1
        return making

    def _follow(self, making: _Making, definition: binary.Definition) -> None:
        spaces = making.spaces
        if isinstance(definition, binary.TypeDefinition):
            spaces["type"].append(self._type(making, definition))
        elif isinstance(definition, binary.CoreModule):
            spaces["core module"].append(self._module(making, definition))
        elif isinstance(definition, binary.CoreInstantiation):
            spaces["core instance"].append(self._core_instance(making, definition))
        elif isinstance(definition, binary.CoreExports):
            exports = {name: spaces[sort][index] for name, sort, index in definition.exports}
            self._take(len(exports))
            spaces["core instance"].append(_CoreInstance(-1, exports))
        elif isinstance(definition, binary.Component):
            spaces["component"].append(_Component(next(making.inner), making))
        elif isinstance(definition, binary.Instantiation):
            spaces["instance"].append(self._instance(making, definition))
        elif isinstance(definition, binary.Exports):
            self._take(len(definition.exports))
            targets = definition.exports
            spaces["instance"].append(
                {target.name.text: spaces[target.sort][target.index] for target in targets}
            )
        elif isinstance(definition, binary.ExportAlias):
            found = spaces["instance"][definition.instance][definition.name]
            spaces[definition.sort].append(found)
        elif isinstance(definition, binary.CoreExportAlias):
            instance: _CoreInstance = spaces["core instance"][definition.instance]
            spaces[definition.sort].append(instance.export(definition.name))
        elif isinstance(definition, binary.OuterAlias):
            self._alias_outer(making, definition)
        elif isinstance(definition, binary.Lift):
            spaces["func"].append(self._lift(making, definition))
        elif isinstance(definition, (binary.Lower, binary.BuiltIn)):
            spaces["core func"].append(self._core_function(making, definition))
        elif isinstance(definition, binary.Import):
            self._import(making, definition)
        elif isinstance(definition, binary.Export):
            self._export(making, definition)

    def _bind(self, making: _Making, entity: Entity, thing: Any) -> None:
        """Learn which resources are meant by a type, from something that is of the type."""
        self._take(1)
        if isinstance(entity.type, ResourceType):
            making.naming.numbers.setdefault(entity.type.resource, thing)
        elif isinstance(entity.type, Instance) and entity.sort == "instance":
            for name, each in entity.type.exports.items():
                self._bind(making, each, thing[name])

    def _type(self, making: _Making, definition: binary.TypeDefinition) -> int | None:
        if not isinstance(definition.type, binary.ResourceType):
            return None
        drop = definition.type.destructor
        made = plan.OwnResource(
            making.number, None if drop is None else making.spaces["core func"][drop]
        )
        kind: ResourceType = making.scope.spaces["type"][len(making.spaces["type"])]
        number = making.naming.numbers[kind.resource] = len(self._resources)
        self._resources.append(made)
        return number

    def _module(self, making: _Making, definition: binary.CoreModule) -> _Module:
        number = self._module_numbers.setdefault(definition.offset, len(self._modules))
        if number == len(self._modules):
            self._modules.append(plan.Module(definition.offset, definition.length))
        shape = making.scope.spaces["core module"][len(making.spaces["core module"])]
        return _Module(number, shape)

    def _core_instance(
        self, making: _Making, definition: binary.CoreInstantiation
    ) -> _CoreInstance:
        module: _Module = making.spaces["core module"][definition.module]
        instances = making.spaces["core instance"]
        arguments = {name: instances[index] for name, index in definition.arguments}
        self._take(len(module.shape.imports))
        imports = [arguments[first].export(second) for first, second in module.shape.imports]
        self._steps.append(plan.Instantiate(module.number, imports, making.number))
        return _CoreInstance(len(self._steps) - 1, {})

    def _instance(self, making: _Making, definition: binary.Instantiation) -> dict[str, _Thing]:
        component: _Component = making.spaces["component"][definition.component]
        self._take(len(definition.arguments))
        given = {
            target.name.text: making.spaces[target.sort][target.index]
            for target in definition.arguments
        }
        made = self._make(component, given, making.number)
        kind: Instance = making.scope.spaces["instance"][len(making.spaces["instance"])]
        self._bind(making, Entity("instance", kind), made.exports)
        return made.exports

    def _alias_outer(self, making: _Making, definition: binary.OuterAlias) -> None:
        scope = making
        for _ in range(definition.count):
            assert scope.outer is not None
            scope = scope.outer
        if definition.sort == "core type":
            return
        making.spaces[definition.sort].append(scope.spaces[definition.sort][definition.index])

    def _lift(self, making: _Making, definition: binary.Lift) -> plan.ExportedFunction:
        kind = making.scope.spaces["type"][definition.type].type
        lift = plan.Lift(
            making.spaces["core func"][definition.function],
            self._table.function(kind, making.naming),
            making.number,
            self._options(making, definition.options),
        )
        self._lifts.append(lift)
        return plan.ExportedFunction(len(self._lifts) - 1)

    def _core_function(
        self, making: _Making, definition: binary.Lower | binary.BuiltIn
    ) -> plan.Made:
        core: CoreFunction = making.scope.spaces["core func"][len(making.spaces["core func"])]
        options = self._options(making, definition.options)
        made: plan.CoreFunction
        if isinstance(definition, binary.Lower):
            function: plan.ExportedFunction = making.spaces["func"][definition.function]
            made = plan.Lower(making.number, function.imported, function.lifted, options)
        else:
            made = self._built_in(making, definition, options)
        self._functions.append(plan.Signature(made, [*core.params], [*core.results]))
        return plan.Made(len(self._functions) - 1)

    def _built_in(
        self, making: _Making, definition: binary.BuiltIn, options: plan.Options
    ) -> plan.BuiltIn:
        resource = kind = -1
        if definition.name.startswith("resource."):
            assert isinstance(definition.type, int)
            resource = making.naming.numbers[making.scope.resource(definition.type).resource]
        elif definition.type is not None and not definition.name.startswith("thread."):
            value, _ = reference(making.scope, definition.type)
            kind = self._table.value(value, making.naming)
        return plan.BuiltIn(
            making.number,
            definition.name,
            resource,
            kind,
            definition.flag,
            definition.number,
            options,
        )

    def _options(self, making: _Making, given: list[binary.Option]) -> plan.Options:
        chosen = canonical.options(making.scope, given)
        functions, memories = making.spaces["core func"], making.spaces["core memory"]

        def function(index: int) -> plan.Item | None:
            found: plan.Item | None = None if index < 0 else functions[index]
            return found

        return plan.Options(
            None if chosen.memory < 0 else memories[chosen.memory],
            function(chosen.realloc),
            function(chosen.post_return),
            function(chosen.callback),
            chosen.encoding,
            chosen.is_async,
        )

    def _export(self, making: _Making, definition: binary.Export) -> None:
        target = definition.target
        thing = making.spaces[target.sort][target.index]
        self._bind(making, making.scope.exports.entities[target.name.text], thing)
        making.exports[target.name.text] = thing
        making.spaces[target.sort].append(thing)

    def _import(self, making: _Making, definition: binary.Import) -> None:
        name = definition.name.text
        entity = making.scope.imports.entities[name]
        if making.number == 0:
            thing = self._host_import(making, definition.name, entity)
        else:
            thing = making.given[name]
            self._bind(making, entity, thing)
        making.spaces[entity.sort].append(thing)

    def _host_import(self, making: _Making, name: binary.Name, entity: Entity) -> _Thing:
        if not isinstance(entity.type, Instance) or entity.sort != "instance":
            return self._host_thing(making, WORLD, name.text, entity)
        known = self._hosting.known_as(name.text, name.implements)
        return {
            each: self._host_thing(making, known, each, inner)
            for each, inner in entity.type.exports.items()
        }

    def _host_thing(self, making: _Making, interface: str, name: str, entity: Entity) -> _Thing:
        resource = self._hosting.check(interface, name, entity)
        if entity.sort == "func":
            kind: Any = entity.type
            number = self._table.function(kind.type, making.naming)
            self._imports.append(plan.Import(interface, name, number))
            return plan.ExportedFunction(-1, len(self._imports) - 1)
        if resource is None:
            return None
        count = len(self._resources)
        found = self._host_resources.setdefault(resource, count)
        if found == count:
            self._resources.append(plan.HostResource(interface, name))
        self._bind(making, entity, found)
        return found


def _exported(entity: Entity, thing: Any) -> plan.Exported:
    """Return what an export is, as far as its type tells."""
    if entity.sort == "func":
        found: plan.ExportedFunction = thing
        return found
    if entity.sort == "instance":
        assert isinstance(entity.type, Instance)
        return plan.ExportedInstance(
            {
                name: _exported(each, thing[name])
                for name, each in entity.type.exports.items()
                if each.sort != "type"
            }
        )
    return plan.ExportedOther(entity.sort)
