"""Canonical definitions: options, and types of the core functions (library; in the compiler).

CanonicalABI.md, "Canonical Definitions". Parameters of a lift and results of a lower are written to
the guest's memory, which takes a `realloc`; the others are only read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from shim.component.binary import definitions as binary
from shim.component.binary.core import CoreFunction, Memory, Table
from shim.component.binary.reader import Flaw, Unsupported
from shim.component.types import FunctionType, ValueType
from shim.component.types.base import MAX_FLAT_ASYNC_PARAMS, MAX_FLAT_PARAMS
from shim.component.validation.entities import Function
from shim.component.validation.matching import core_difference
from shim.component.validation.scope import Scope
from shim.component.validation.types import reference

_ENCODING: Final = "string-encoding="
_REALLOC: Final = CoreFunction(("i32",) * 4, ("i32",))
_CALLBACK: Final = CoreFunction(("i32",) * 3, ("i32",))
_SLOTS: Final = 2
"""How many words of context a task has."""

_NOTHING: Final = CoreFunction((), ())
_TAKES: Final = CoreFunction(("i32",), ())
_RETURNS: Final = CoreFunction((), ("i32",))
_ANSWERS: Final = CoreFunction(("i32",), ("i32",))
_MAKES_TWO: Final = CoreFunction((), ("i64",))
_FUTURE_COPY: Final = CoreFunction(("i32", "i32"), ("i32",))
_STREAM_COPY: Final = CoreFunction(("i32", "i32", "i32"), ("i32",))

_SIGNATURES: Final = {
    "resource.new": _ANSWERS,
    "resource.drop": _TAKES,
    "resource.rep": _ANSWERS,
    "task.cancel": _NOTHING,
    "subtask.cancel": _ANSWERS,
    "context.get": _RETURNS,
    "context.set": _TAKES,
    "thread.yield": _RETURNS,
    "subtask.drop": _TAKES,
    "stream.new": _MAKES_TWO,
    "stream.read": _STREAM_COPY,
    "stream.write": _STREAM_COPY,
    "stream.cancel-read": _ANSWERS,
    "stream.cancel-write": _ANSWERS,
    "stream.drop-readable": _TAKES,
    "stream.drop-writable": _TAKES,
    "future.new": _MAKES_TWO,
    "future.read": _FUTURE_COPY,
    "future.write": _FUTURE_COPY,
    "future.cancel-read": _ANSWERS,
    "future.cancel-write": _ANSWERS,
    "future.drop-readable": _TAKES,
    "future.drop-writable": _TAKES,
    "error-context.new": _FUTURE_COPY,
    "error-context.debug-message": CoreFunction(("i32", "i32"), ()),
    "error-context.drop": _TAKES,
    "waitable-set.new": _RETURNS,
    "waitable-set.wait": _FUTURE_COPY,
    "waitable-set.poll": _FUTURE_COPY,
    "waitable-set.drop": _TAKES,
    "waitable.join": CoreFunction(("i32", "i32"), ()),
    "backpressure.inc": _NOTHING,
    "backpressure.dec": _NOTHING,
    "thread.index": _RETURNS,
    "thread.new-indirect": _FUTURE_COPY,
    "thread.resume-later": _TAKES,
    "thread.suspend": _RETURNS,
    "thread.suspend-then-resume": _ANSWERS,
    "thread.yield-then-resume": _ANSWERS,
    "thread.suspend-then-promote": _ANSWERS,
    "thread.yield-then-promote": _ANSWERS,
}


class Options(NamedTuple):
    """Canonical options, as indices; -1 for none."""

    encoding: str = "utf8"
    memory: int = -1
    realloc: int = -1
    post_return: int = -1
    callback: int = -1
    is_async: bool = False

    def need(self, *names: str) -> None:
        """Raise Flaw where one of these is missing."""
        for name in names:
            if getattr(self, name) < 0:
                raise Flaw(f"the canonical option `{name}` is needed")

    def allow(self, *names: str) -> None:
        """Raise Flaw where there is another one than these."""
        for name in ("memory", "realloc", "post_return", "callback"):
            if getattr(self, name) >= 0 and name not in names:
                raise Flaw(f"the canonical option `{name.replace('_', '-')}` does not belong here")
        if self.is_async and "async" not in names:
            raise Flaw("the canonical option `async` does not belong here")


def options(scope: Scope, given: Iterable[binary.Option]) -> Options:
    """Return options that are each right by themselves. Raises Flaw."""
    found: dict[str, str | int | bool] = {}
    for option in given:
        name, value = option.name.replace("-", "_"), option.index
        what: str | int | bool = value
        if option.name.startswith(_ENCODING):
            name, what = "encoding", option.name.removeprefix(_ENCODING)
        elif option.name == "async":
            name, what = "is_async", True
        if name in found:
            raise Flaw(f"the canonical option `{option.name}` is there twice, or contradicts one")
        found[name] = what
    made = Options(**found)  # type: ignore[arg-type]
    if made.memory >= 0:
        _check_memory(scope, made.memory)
    if made.realloc >= 0:
        made.need("memory")
        _check_function(scope, "realloc", made.realloc, _REALLOC)
    if made.callback >= 0:
        if not made.is_async:
            raise Flaw("the canonical option `callback` without `async`")
        _check_function(scope, "callback", made.callback, _CALLBACK)
    return made


def _check_memory(scope: Scope, index: int) -> None:
    memory: Memory = scope.get("core memory", index)
    if memory.limits.is_64:
        raise Unsupported("the canonical option `memory` with a memory of 64 bits")
    if memory.limits.shared:
        raise Unsupported("the canonical option `memory` with a shared memory")


def _check_function(scope: Scope, what: str, index: int, expected: CoreFunction) -> None:
    found: CoreFunction = scope.get("core func", index)
    if found != expected:
        raise Flaw(f"`{what}`: {core_difference(expected, found)}")


def lift(scope: Scope, definition: binary.Lift) -> Function:
    """Return the type of the function that is made. Raises Flaw."""
    found = scope.type_of("func", definition.type)
    assert isinstance(found, Function)
    kind = found.type
    chosen = options(scope, definition.options)
    chosen.allow("memory", "realloc", "post_return", "callback", "async")
    _check_async(chosen, kind)
    core = kind.lifted(chosen.is_async, chosen.callback >= 0)
    _check_function(scope, "lift", definition.function, CoreFunction(*core))
    if chosen.post_return >= 0:
        if chosen.is_async:
            raise Flaw("the canonical option `post-return` with `async`")
        _check_function(scope, "post-return", chosen.post_return, CoreFunction(core.results, ()))
    if _has_pointer(scope, kind.params) or len(kind.flat_params) > MAX_FLAT_PARAMS:
        chosen.need("memory", "realloc")
    most = MAX_FLAT_PARAMS if chosen.is_async else 1
    if _result_has_pointer(scope, kind.result) or len(kind.flat_result) > most:
        chosen.need("memory")
    return found


def lower(scope: Scope, definition: binary.Lower) -> CoreFunction:
    """Return the type of the core function that is made. Raises Flaw."""
    function: Function = scope.get("func", definition.function)
    kind = function.type
    chosen = options(scope, definition.options)
    chosen.allow("memory", "realloc", "async")
    _check_async(chosen, kind)
    most = MAX_FLAT_ASYNC_PARAMS if chosen.is_async else MAX_FLAT_PARAMS
    if _has_pointer(scope, kind.params) or len(kind.flat_params) > most:
        chosen.need("memory")
    if len(kind.flat_result) > (0 if chosen.is_async else 1):
        chosen.need("memory")
    if _result_has_pointer(scope, kind.result):
        chosen.need("memory", "realloc")
    return CoreFunction(*kind.lowered(chosen.is_async))


def _check_async(chosen: Options, kind: FunctionType) -> None:
    if chosen.is_async and not kind.is_async:
        raise Flaw("the canonical option `async` for a function that is not")


def _has_pointer(scope: Scope, params: Sequence[tuple[str, ValueType]]) -> bool:
    scope.shared.work.take(len(params))
    return any(scope.kinds.has_pointer(kind) for _, kind in params)


def _result_has_pointer(scope: Scope, result: ValueType | None) -> bool:
    return result is not None and scope.kinds.has_pointer(result)


def built_in(scope: Scope, definition: binary.BuiltIn) -> CoreFunction:
    """Return the type of the core function that is made. Raises Flaw."""
    name, about = definition.name, definition.type
    chosen = options(scope, definition.options)
    area, _, verb = name.partition(".")
    if area == "resource":
        resource = scope.resource(_index(about)).resource
        if verb != "drop" and resource not in scope.local:
            raise Flaw(f"`{name}` of a resource that is not defined by the component itself")
    elif area in ("stream", "future"):
        element = _element_of(scope, area, _index(about))
        _check_copy(scope, verb, chosen, element)
    elif name == "task.return":
        return _task_return(scope, chosen, about)
    elif area == "context" and definition.number >= _SLOTS:
        raise Flaw(f"`{name}` of slot {definition.number}: there are {_SLOTS}")
    elif area == "error-context":
        _check_error_context(verb, chosen)
    elif name == "thread.new-indirect":
        _check_thread(scope, _index(about), definition.table)
    return _SIGNATURES[name]


def _index(about: binary.Reference | None) -> int:
    assert isinstance(about, int)
    return about


def _element_of(scope: Scope, kind: str, index: int) -> ValueType | None:
    """Return what a stream or a future is of."""
    form = scope.kinds.form(scope.value(index).kind)
    if form.kind != kind:
        raise Flaw(f"type {index} is not of a {kind}")
    return form.parts[0]


def _check_copy(scope: Scope, verb: str, chosen: Options, element: ValueType | None) -> None:
    if verb not in ("read", "write"):
        return
    chosen.allow("memory", "realloc", "async")
    if element is not None:
        chosen.need("memory")
        if verb == "read" and scope.kinds.has_pointer(element):
            chosen.need("realloc")


def _check_error_context(verb: str, chosen: Options) -> None:
    if verb == "new":
        chosen.allow("memory", "realloc")
        chosen.need("memory")
    elif verb == "debug-message":
        chosen.allow("memory", "realloc")
        chosen.need("memory", "realloc")


def _check_thread(scope: Scope, kind: int, index: int) -> None:
    if scope.get("core type", kind) != _TAKES:
        raise Flaw(f"core type {kind} is not that of a thread: one i32, and no result")
    table: Table = scope.get("core table", index)
    if table.element != "funcref" or table.limits.is_64:
        raise Flaw(f"core table {index} is not of functions that start threads")


def _task_return(scope: Scope, chosen: Options, about: binary.Reference | None) -> CoreFunction:
    chosen.allow("memory")
    if about is None:
        return _NOTHING
    kind, _ = reference(scope, about)
    if scope.kinds.has_pointer(kind) or len(kind.flat) > MAX_FLAT_PARAMS:
        chosen.need("memory")
    if kind.has_borrow:
        raise Flaw("`task.return` of what is borrowed")
    return CoreFunction(*FunctionType([("result", kind)]).lowered(is_async=False))
