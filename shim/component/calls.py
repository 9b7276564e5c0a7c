"""Calls from components: `canon lower`, and the host's functions (library; used in the guest).

CanonicalABI.md, "Subtask State", `canon lower`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, Final, TypeAlias

from shim.component.errors import Trap
from shim.component.host import Function
from shim.component.instance import ComponentInstance
from shim.component.table import Handle
from shim.component.tasks import Call, Callee, Lifted, OnResolve, OnStart, Runtime
from shim.component.types import Result
from shim.component.types.base import (
    MASK,
    MAX_FLAT_ASYNC_PARAMS,
    MAX_FLAT_PARAMS,
    Context,
    FunctionType,
)
from shim.component.waitables import SUBTASK, Waitable

STARTING: Final = 0
STARTED: Final = 1
RETURNED: Final = 2
CANCELLED_BEFORE_STARTED: Final = 3
CANCELLED_BEFORE_RETURNED: Final = 4

Subscribe: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]
"""What a coroutine of the host yields: called with what is to be called when it may go on.

It returns how to forget about that.
"""


class Subtask(Waitable):
    """A call as who calls it sees it. It answers for the handles that the caller lends."""

    __slots__ = ("_lenders", "borrows", "call", "cancelled", "core_result", "number", "state")

    def __init__(self) -> None:
        super().__init__()
        self.state = STARTING
        self.call: Call | None = None
        self.cancelled = False
        """Whether that was asked for."""
        self.number = 0
        self.core_result: Any = None
        self.borrows = 0
        self._lenders: list[Handle] | None = []

    @property
    def is_resolved(self) -> bool:
        """Whether there is a result, or will be none."""
        return self.state >= RETURNED

    @property
    def is_delivered(self) -> bool:
        """Whether the caller knows."""
        return self._lenders is None

    def lend(self, handle: Handle) -> None:
        """See `Scope.lend`."""
        assert self._lenders is not None
        handle.lends += 1
        self._lenders.append(handle)

    def deliver(self) -> None:
        """Let the caller know, who has its handles back."""
        for handle in self._lenders or ():
            handle.lends -= 1
        self._lenders = None

    def event(self) -> tuple[int, int, int]:
        """Tell how far it is."""
        if self.is_resolved:
            self.deliver()
        return SUBTASK, self.number, self.state

    def drop(self) -> None:
        """Be no more. Raises Trap before its caller knows how it ended."""
        if not self.is_delivered:
            raise Trap("cannot drop a subtask which has not yet resolved")
        super().drop()


def lowered(
    runtime: Runtime, callee: Callee, context: Context, *, is_async: bool
) -> Callable[..., Any]:
    """Return the core function by which the guest of an instance calls `callee`."""
    kind, instance = callee.type, context.instance
    if isinstance(callee, Lifted) and _are_related(callee.context.instance, instance):
        return _trap_on_entry
    most = MAX_FLAT_ASYNC_PARAMS if is_async else MAX_FLAT_PARAMS
    has_out = len(kind.flat_result) > (0 if is_async else 1)

    def call(*flat: Any) -> Any:
        if not instance.may_leave:
            raise Trap("cannot leave component instance")
        subtask = Subtask()
        scoped = context.scoped(subtask) if kind.has_borrow else context
        out = flat[-1] if has_out else None

        def progress() -> None:
            if subtask.number:
                subtask.happen(subtask.event)

        def on_start() -> list[Any]:
            subtask.state = STARTED
            progress()
            return kind.lift_params(scoped, iter(flat), most)

        def on_resolve(value: Any, cancelled: bool) -> None:
            if not cancelled:
                subtask.core_result = kind.lower_result(scoped, value, out)
                subtask.state = RETURNED
            elif subtask.state == STARTING:
                subtask.state = CANCELLED_BEFORE_STARTED
            else:
                subtask.state = CANCELLED_BEFORE_RETURNED
            progress()

        subtask.call = callee.start(instance, on_start, on_resolve)
        if not is_async:
            runtime.block(lambda: subtask.is_resolved)
            subtask.deliver()
            return subtask.core_result
        if subtask.is_resolved:
            subtask.deliver()
            return RETURNED
        subtask.number = instance.table.add(subtask)
        return subtask.state | subtask.number << 4

    return call


def _are_related(callee: ComponentInstance, caller: ComponentInstance) -> bool:
    """Tell whether one is nested in the other, or the same: neither may call the other one yet."""
    return callee.is_within(caller) or caller.is_within(callee)


def _trap_on_entry(*_: Any) -> None:
    raise Trap("cannot enter component instance")


def lowered_host(function: Function, context: Context, program: object) -> Callable[..., Any]:
    """Return the core function by which a guest calls a function of the host, and waits.

    The guest does not run meanwhile, but to make room for the result.
    """
    kind, instance = function.type, context.instance
    call = bound(function, program)
    result = kind.result
    if len(kind.flat_params) > MAX_FLAT_PARAMS or result is None or len(kind.flat_result) <= 1:
        spilt = len(kind.flat_result) > 1

        def calling(*flat: Any) -> Any:
            if not instance.may_leave:
                raise Trap("cannot leave component instance")
            value = call(*kind.lift_params(context, iter(flat)))
            return kind.lower_result(context, value, flat[-1] if spilt else None)

        return calling

    # The usual one, without a call that is not needed.
    lifts = [parameter.lift for _, parameter in kind.params]
    reach, size, alignment, store = context.reach, result.size, result.alignment, result.store

    def storing(*flat: Any) -> None:
        if not instance.may_leave:
            raise Trap("cannot leave component instance")
        values = iter(flat)
        value = call(*[lift(context, values) for lift in lifts])
        out = flat[-1] & MASK
        reach(out, size, alignment)
        store(context, value, out)

    return storing


def bound(function: Function, program: object) -> Callable[..., Any]:
    """Give a function of the host its program; it returns what its type says, errors included."""
    call, errors = function.call, function.errors
    result = function.type.result
    if not isinstance(result, Result):
        return lambda *args: call(program, *args)
    assert errors is not None or result.error is None, "an error that nobody can tell"

    def told(*args: Any) -> Any:
        try:
            value = call(program, *args)
        except Exception as error:
            if errors is None:
                raise
            return "error", errors(error)
        if isinstance(value, CoroutineType):
            return _told(value, errors)
        return "ok", value

    return told


async def _told(coroutine: Coroutine[Subscribe, None, Any], errors: Any) -> Any:
    try:
        return "ok", await coroutine
    except Exception as error:
        if errors is None:
            raise
        return "error", errors(error)


class HostCallee:
    """A function of the host that may take its time."""

    def __init__(self, function: Function, program: object) -> None:
        self.type: FunctionType = function.type
        self._call = bound(function, program)

    def start(
        self, caller: ComponentInstance | None, on_start: OnStart, on_resolve: OnResolve
    ) -> Call:
        """See `Callee.start`."""
        result = self._call(*on_start())
        call = _HostCall(on_resolve)
        if isinstance(result, CoroutineType):
            call.begin(result)
        else:
            on_resolve(result, False)
        return call


class _HostCall:
    """A call to the host that has been started."""

    def __init__(self, on_resolve: OnResolve) -> None:
        self._on_resolve = on_resolve
        self.is_over = True
        self._coroutine: Coroutine[Subscribe, None, Any] | None = None
        self._forget: Callable[[], None] = lambda: None

    def begin(self, coroutine: Coroutine[Subscribe, None, Any]) -> None:
        self._coroutine = coroutine
        self.is_over = False
        self._go_on()

    def _go_on(self) -> None:
        assert self._coroutine is not None
        try:
            subscribe = self._coroutine.send(None)
        except StopIteration as end:
            self._coroutine = None
            self.is_over = True
            self._on_resolve(end.value, False)
        else:
            self._forget = subscribe(self._go_on)

    def cancel(self, caller: ComponentInstance | None) -> None:
        """See `Call.cancel`."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            self.is_over = True
            self._forget()
            coroutine.close()
            self._on_resolve(None, True)
