"""Modules that are linked by hand, under wasmer's wheels (library; used in the guest).

The wheels take Python functions as host functions by themselves. What they lose is the exception
that ends one: they make a trap of its text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import wasmer

from shim.engines.base import MAX_PARAMS, Extern, Module, ModuleError, Trap
from shim.engines.gil_pool import GilPool
from shim.engines.linking import Signature
from shim.engines.slots import HALF, signed

_TYPES: Final = {name: getattr(wasmer.Type, name.upper()) for name in ("i32", "i64", "f32", "f64")}
_TYPE_NAMES: Final = {
    int(getattr(wasmer.Type, name)): name.lower().replace("_", "")
    for name in ("I32", "I64", "F32", "F64", "V128", "EXTERN_REF", "FUNC_REF")
}
_TRAP: Final = "RuntimeError: "
_MISMATCH: Final = "Error while importing "


def signature(kind: Any) -> Signature | None:
    """Return the type of an import or export, if it is a function."""
    if not isinstance(kind, wasmer.FunctionType):
        return None
    params, results = (
        tuple(_TYPE_NAMES[int(value)] for value in values) for values in (kind.params, kind.results)
    )
    return Signature(params, results)


def functype(params: Sequence[str], results: Sequence[str]) -> Any:
    """Return the type of a function of numbers. Raises ModuleError for other types."""
    try:
        return wasmer.FunctionType(
            [_TYPES[kind] for kind in params], [_TYPES[kind] for kind in results]
        )
    except KeyError as error:
        raise ModuleError(f"{error.args[0]} is no type of numbers") from None


def trap_of(error: RuntimeError) -> Trap | None:
    """Return what trap the engine tells of, if it is one."""
    reason, *frames = str(error).split("\n")
    return Trap(reason.removeprefix(_TRAP), frames) if reason.startswith(_TRAP) else None


class Store:
    """See `base.Store`."""

    def __init__(self, native: Any, gil_pool: GilPool) -> None:
        self._native = native
        self._drained = gil_pool.drained
        self._raised: BaseException | None = None
        # Tables point into them: those of other instances, too.
        self._instances: list[Any] = []

    def instantiate(self, module: Module, imports: Sequence[Extern]) -> Instance:
        """See `base.Store.instantiate`."""
        native = cast("Any", module).native
        wanted = native.imports
        if len(wanted) != len(imports):
            raise ModuleError(f"the module has {len(wanted)} imports, not {len(imports)}")
        given: dict[str, dict[str, Any]] = {}
        for place, extern in zip(wanted, imports, strict=True):
            given.setdefault(place.module, {})[place.name] = extern
        externs = wasmer.ImportObject()
        for name, items in given.items():
            externs.register(name, items)
        instance = self.call(wasmer.Instance, native, externs)
        self._instances.append(instance)
        return Instance(self, instance)

    def function(
        self, params: Sequence[str], results: Sequence[str], call: Callable[..., Any]
    ) -> Extern:
        """See `base.Store.function`."""
        if len(params) > MAX_PARAMS or len(results) > 1:
            raise ModuleError("a host function has too many parameters or results")
        half = HALF.get(results[0], math.inf) if results else None

        def entry(*arguments: Any) -> Any:
            try:
                result = call(*arguments)
                if half is None:
                    return None
                return result if -half <= result < half else signed((result,), results)[0]
            except BaseException as error:
                self._raised = error
                raise

        return wasmer.Function(self._native, entry, functype(params, results))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call into the extension. Raises what `base.Store` says."""
        try:
            return self._drained(function, *arguments)
        except BaseException as error:
            raised, self._raised = self._raised, None
            if raised is not None:
                raise raised from None
            if not isinstance(error, RuntimeError):
                raise
            found = trap_of(error)
            if found is None and _MISMATCH in str(error):
                raise ModuleError(str(error)) from None
            raise found or Trap(str(error)) from None


class Instance:
    """See `base.Instance`."""

    def __init__(self, store: Store, native: Any) -> None:
        self._store = store
        self._native = native

    def extern(self, name: str) -> Any:
        """See `base.Instance.extern`."""
        try:
            return getattr(self._native.exports, name)
        except LookupError:
            raise ModuleError(f"the module has no export `{name}`") from None

    def function(self, name: str) -> Callable[..., Any]:
        """See `base.Instance.function`."""
        function = self.extern(name)
        if not isinstance(function, wasmer.Function):
            raise ModuleError(f"export `{name}` is not a function")
        kind = signature(function.type)
        assert kind is not None
        params, results = kind
        functype(params, results)
        enter = self._store.call

        def call(*arguments: Any) -> Any:
            try:
                found = enter(function, *arguments)
            except OverflowError:  # rarely
                found = enter(function, *signed(arguments, params))
            return tuple(found) if isinstance(found, list) else found

        return call

    def memory(self, name: str) -> Callable[[], memoryview]:
        """See `base.Instance.memory`."""
        memory = self.extern(name)
        if not isinstance(memory, wasmer.Memory):
            raise ModuleError(f"export `{name}` is not a memory")
        view = memoryview(memory.buffer)

        def fetched() -> memoryview:
            nonlocal view
            if memory.data_size != len(view):
                view = memoryview(memory.buffer)
            return view

        return fetched
