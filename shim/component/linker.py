"""Following a plan: from core modules to a component that can be called (library; in the guest).

A plan comes from a compiler that may have been taken over by what it has read. So numbers that lead
nowhere end in `PlanError`, and what a core function is made of is asked for again by the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

from shim.component import intrinsics, plan
from shim.component.calls import HostCallee, lowered, lowered_host
from shim.component.host import Function, Registry
from shim.component.instance import ComponentInstance
from shim.component.tasks import Callee, Lifted, Reactor, Runtime
from shim.component.types import FunctionType, Resource, ValueType
from shim.component.types.base import Context
from shim.component.types.forms import Form, build
from shim.engines.base import Extern, Instance, Module, Store

_T = TypeVar("_T")

Exports: TypeAlias = Mapping[str, "Callee | Exports | None"]
"""What can be called, by name; an instance is a mapping, and None what is something else."""


class PlanError(Exception):
    """A plan contradicts itself, or is for another host."""


@contextmanager
def _following() -> Iterator[None]:
    """Raise PlanError for what a plan leads to that makes no sense."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise PlanError(f"the component's plan is unusable: {error!r}") from error
    except RecursionError:
        raise PlanError("the component's plan is unusable: it has no end") from None


def _at(items: Sequence[_T], number: int) -> _T:
    if number < 0:
        raise IndexError(number)
    return items[number]


class Linker:
    """Makes, of the parts of a plan, what they describe: each when it is first needed, once.

    Raises PlanError.
    """

    def __init__(
        self,
        what: plan.Plan,
        modules: Sequence[Module],
        store: Store,
        registry: Registry,
        program: object,
        reactor: Reactor | None = None,
    ) -> None:
        self._plan = what
        self._modules = modules
        self._store = store
        self._registry = registry
        self._program = program
        self.runtime = Runtime(reactor)
        self._instances: list[ComponentInstance] = []
        with _following():
            for parent in what.instances:
                outer = None if parent < 0 else self._instances[parent]
                self._instances.append(ComponentInstance(outer))
            self._resources = [self._resource(each) for each in what.resources]
        self._core: list[Instance] = []
        self._types: dict[int, ValueType] = {}
        self._function_types: dict[int, FunctionType] = {}
        self._made: dict[int, Callable[..., Any]] = {}
        self._externs: dict[plan.Item, Extern] = {}
        self._functions: dict[plan.Export, Callable[..., Any]] = {}
        self._memories: dict[plan.Export, Callable[[], memoryview]] = {}
        self._reallocs: dict[plan.Item, Callable[..., Any]] = {}
        self._callees: dict[tuple[int, int], Callee] = {}

    def link(self) -> Exports:
        """Instantiate all core modules; return what the component exports.

        Raises PlanError, ModuleError, and whatever ends a start function of theirs.
        """
        for step in self._plan.steps:
            with _following():
                imports = [self._extern(item) for item in step.imports]
                module = _at(self._modules, step.module)
            self._core.append(self._store.instantiate(module, imports))
        with _following():
            return self._exports(self._plan.exports)

    def _exports(self, exports: Mapping[str, plan.Exported]) -> Exports:
        found: dict[str, Callee | Exports | None] = {}
        for name, exported in exports.items():
            if isinstance(exported, plan.ExportedFunction):
                found[name] = self._callee(exported.lifted, exported.imported)
            elif isinstance(exported, plan.ExportedInstance):
                found[name] = self._exports(exported.exports)
            else:
                found[name] = None
        return found

    # Core functions, and what else core modules import.

    def _extern(self, item: plan.Item) -> Extern:
        """Return what a core module imports."""
        found = self._externs.get(item)
        if found is None:
            if isinstance(item, plan.Export):
                found = _at(self._core, item.instance).extern(item.name)
            else:
                signature = _at(self._plan.functions, item.function)
                call = self._call(item)
                found = self._store.function(signature.params, signature.results, call)
            self._externs[item] = found
        return found

    def _call(self, item: plan.Item) -> Callable[..., Any]:
        """Return a core function to be called from here."""
        if isinstance(item, plan.Export):
            call = self._functions.get(item)
            if call is None:
                core = _at(self._core, item.instance)
                call = self._functions[item] = core.function(item.name)
            return call
        call = self._made.get(item.function)
        if call is None:
            call = self._make(_at(self._plan.functions, item.function).function)
            self._made[item.function] = call
        return call

    def _make(self, function: plan.CoreFunction) -> Callable[..., Any]:
        context = self._context(function.options, function.instance)
        if isinstance(function, plan.BuiltIn):
            given = intrinsics.Given(
                self.runtime,
                context,
                self._resources[function.resource] if function.resource >= 0 else None,
                self._type(function.type) if function.type >= 0 else None,
                function.flag or function.options.is_async,
                function.number,
            )
            return intrinsics.make(function.name, given)
        is_async = function.options.is_async
        if function.imported >= 0 and not is_async:
            host = self._host_function(function.imported)
            if not host.is_coroutine:
                return lowered_host(host, context, self._program)
        callee = self._callee(function.lifted, function.imported)
        return lowered(self.runtime, callee, context, is_async=is_async)

    def _context(self, options: plan.Options, instance: int) -> Context:
        memory, realloc = options.memory, options.realloc
        return Context(
            _at(self._instances, instance),
            None if memory is None else self._memory(memory),
            None if realloc is None else self._realloc(realloc),
            options.encoding,
        )

    def _memory(self, item: plan.Export) -> Callable[[], memoryview]:
        found = self._memories.get(item)
        if found is None:
            found = self._memories[item] = _at(self._core, item.instance).memory(item.name)
        return found

    def _realloc(self, item: plan.Item) -> Callable[..., Any]:
        """Return a function that is called in nobody's task."""
        found = self._reallocs.get(item)
        if found is not None:
            return found
        call, runtime = self._call(item), self.runtime

        def realloc(*args: int) -> Any:
            before = runtime.be_nobody()
            result = call(*args)
            runtime.be(before)
            return result

        self._reallocs[item] = realloc
        return realloc

    # Functions of components, and of the host.

    def _callee(self, lifted: int, imported: int) -> Callee:
        place = lifted, imported
        callee = self._callees.get(place)
        if callee is None:
            if lifted >= 0:
                callee = self._lifted(self._plan.lifts[lifted])
            else:
                function = self._host_function(imported)
                callee = HostCallee(function, self._program)
            self._callees[place] = callee
        return callee

    def _lifted(self, lift: plan.Lift) -> Lifted:
        options = lift.options
        return Lifted(
            self.runtime,
            self._function_type(lift.type),
            self._call(lift.core),
            self._context(options, lift.instance),
            post_return=self._optional(options.post_return),
            callback=self._optional(options.callback),
            is_async=options.is_async,
        )

    def _optional(self, item: plan.Item | None) -> Callable[..., Any] | None:
        return None if item is None else self._call(item)

    def _host_function(self, imported: int) -> Function:
        wanted = _at(self._plan.imports, imported)
        interface = self._registry.find(wanted.interface)
        if interface is None or wanted.name not in interface.functions:
            raise PlanError(f"nobody provides `{wanted.interface}`, `{wanted.name}`")
        return interface.functions[wanted.name]

    # Types.

    def _resource(self, resource: plan.Resource) -> Resource:
        if isinstance(resource, plan.HostResource):
            interface = self._registry.find(resource.interface)
            if interface is None or resource.name not in interface.resources:
                raise PlanError(f"nobody provides `{resource.interface}`, `{resource.name}`")
            return interface.resources[resource.name]
        owner, item = _at(self._instances, resource.instance), resource.drop
        return Resource("a resource of the component", self._late(item), owner)

    def _late(self, item: plan.Item | None) -> Callable[[int], None] | None:
        """Return a core function that may not be there yet."""
        if item is None:
            return None
        there = item

        def late(number: int) -> None:
            self._call(there)(number)

        return late

    def _function_type(self, number: int) -> FunctionType:
        kind = self._function_types.get(number)
        if kind is None:
            found = _at(self._plan.function_types, number)
            params = [
                (name, self._type(each))
                for name, each in zip(found.names, found.params, strict=True)
            ]
            result = self._type(found.result) if found.result >= 0 else None
            kind = self._function_types[number] = FunctionType(params, result, found.is_async)
        return kind

    def _type(self, number: int) -> ValueType:
        kind = self._types.get(number)
        if kind is None:
            found = _at(self._plan.types, number)
            if found.number < 0 or any(part >= number for part in found.parts):
                raise PlanError("the component's plan is unusable: a type that cannot be")
            parts = tuple([None if part < 0 else self._type(part) for part in found.parts])
            is_handle = found.kind in ("own", "borrow")
            resource = _at(self._resources, found.number) if is_handle else None
            form = Form(found.kind, parts, tuple(found.labels), found.number, resource)
            kind = self._types[number] = build(form)
        return kind


def call(runtime: Runtime, callee: Callee, *args: Any) -> Any:
    """Call a function of a component until there is nothing of the call left; return its result.

    Raises Trap.
    """
    outcome: list[Any] = []
    task = callee.start(None, lambda: args, lambda value, _: outcome.append(value))
    runtime.run(lambda: task.is_over)
    return outcome[0]
