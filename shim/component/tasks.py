"""Calls to components: tasks, and the loop that runs them (library; used in the guest).

CanonicalABI.md, "Tasks", `canon lift`; Concurrency.md. A task is a call to a function that a
component exports. Between two events a task of the callback ABI is nothing on a stack, so one stack
is enough for all. Whoever blocks in the midst of a call runs the others on top of it, and goes on
when they are done with what they do just then: one of them may in turn wait for him, and that, a
trap here, is what only an engine with several stacks could run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

from shim.component.errors import Trap
from shim.component.instance import ComponentInstance
from shim.component.table import Handle
from shim.component.types.base import MASK, Context, FunctionType
from shim.component.waitables import NONE, TASK_CANCELLED, Event, WaitableSet

_EXIT, _YIELD, _WAIT = range(3)  # what a callback returns

INITIAL, STARTED, PENDING_CANCEL, CANCEL_DELIVERED, RESOLVED = range(5)  # states of a task

_DEADLOCK = "deadlock: the component waits for what nobody is going to do"
_NO_STACK = "deadlock: a call waits for what nobody is going to do, or only who waits for the call"

OnStart: TypeAlias = Callable[[], Sequence[Any]]
"""Returns the arguments, when the callee is ready for them."""
OnResolve: TypeAlias = Callable[[Any, bool], None]
"""Told the result, or that there is none because the call was cancelled."""


class Reactor(Protocol):
    """What waits for the kernel."""

    def wait(self, block: bool) -> bool:
        """Call back for whatever has happened; tell whether there was, or may be, something.

        With `block`, wait for the first of it, if there is anything that may happen.
        """


class Idle:
    """A reactor for components that wait for nothing outside."""

    def wait(self, block: bool) -> bool:
        """See `Reactor.wait`."""
        return False


class Call(Protocol):
    """A call that has been started."""

    is_over: bool
    """Whether nothing of it is left. It may have a result long before."""

    def cancel(self, caller: ComponentInstance | None) -> None:
        """Ask the callee to give up; it is told the result as soon as there is one."""


class Callee(Protocol):
    """A function that can be called: a component's, or the host's."""

    type: FunctionType

    def start(
        self, caller: ComponentInstance | None, on_start: OnStart, on_resolve: OnResolve
    ) -> Call:
        """Call it. It may have been resolved when this returns. Raises Trap."""


class Runtime:
    """What runs the tasks of all instances of a component."""

    def __init__(self, reactor: Reactor | None = None) -> None:
        self.reactor: Reactor = reactor or Idle()
        self.current: Task | None = None
        """The task that the guest runs just now."""
        self.storage = [0, 0]
        """Context slots where there is no task: of start functions, `realloc`, destructors."""
        self.ready: deque[Task] = deque()
        self._entered: list[ComponentInstance] = []

    def enter(self, instance: ComponentInstance, caller: ComponentInstance | None) -> int:
        """Enter an instance from another one; returns what `leave` needs. Raises Trap."""
        mark = len(self._entered)
        entered = instance.between(caller)
        if not all(each.may_enter for each in entered):
            raise Trap("cannot enter component instance")
        for each in entered:
            each.may_enter = False
        self._entered += entered
        return mark

    def leave(self, mark: int) -> None:
        """Leave what was entered."""
        for each in self._entered[mark:]:
            each.may_enter = True
        del self._entered[mark:]

    def be_nobody(self) -> tuple[Task | None, list[int]]:
        """Let the guest run in nobody's task; return who did before, for `be`."""
        before = self.current, self.storage
        self.current, self.storage = None, [0, 0]
        return before

    def be(self, before: tuple[Task | None, list[int]]) -> None:
        """Let who ran before `be_nobody` go on."""
        self.current, self.storage = before

    def run(self, until: Callable[[], bool], otherwise: str = _DEADLOCK) -> None:
        """Run tasks until something is true. Raises Trap, with these words, if it never will be."""
        while not until():
            # Also while tasks do nothing but yield the world goes on.
            if self._run_one():
                self.reactor.wait(False)
            elif not self.reactor.wait(True):
                raise Trap(otherwise)

    def _run_one(self, instance: ComponentInstance | None = None) -> bool:
        """Let a task go on whose turn it is, maybe only one that an instance has begun."""
        for _ in range(len(self.ready)):
            task = self.ready.popleft()
            if instance is not None and (task.instance is not instance or task.state == INITIAL):
                self.ready.append(task)
            elif task.go_on():
                return True
        return False

    def block(self, until: Callable[[], bool]) -> None:
        """Have the guest wait, in the midst of a call, until something is true. Raises Trap."""
        if until():
            return
        task = self.current
        with self._suspended():
            if task is not None and task.function.type.is_async:
                self.run(until, _NO_STACK)
                return
            # Who calls another one, or what begins and ends an instance, expects it to return.
            while not until():
                if task is None or not self._run_one(task.instance):
                    raise Trap("cannot block a synchronous task before returning")

    def yield_(self) -> None:
        """Have the guest, in the midst of a call, let others go on who can."""
        task = self.current
        if task is None:
            return
        only = None if task.function.type.is_async else task.instance
        with self._suspended():
            if only is None:
                self.reactor.wait(False)
            for _ in range(len(self.ready)):
                if not self._run_one(only):
                    break

    @contextmanager
    def _suspended(self) -> Iterator[None]:
        """Leave all that has been entered, for a while. After a trap nothing can be any more."""
        current, entered = self.current, self._entered
        self.current, self._entered = None, []
        for each in entered:
            each.may_enter = True
        try:
            yield
        finally:
            self.current, self._entered = current, entered
            for each in entered:
                each.may_enter = False


class Lifted:
    """A function that a component implements.

    `core` is what implements it. With a `callback` it returns what it waits for; if it `is_async`
    without one, it returns nothing, and waits in the midst of it.
    """

    def __init__(
        self,
        runtime: Runtime,
        kind: FunctionType,
        core: Callable[..., Any],
        context: Context,
        *,
        post_return: Callable[..., Any] | None = None,
        callback: Callable[[int, int, int], int] | None = None,
        is_async: bool = False,
    ) -> None:
        self.runtime = runtime
        self.type = kind
        self.core = core
        self.context = context
        self.post_return = post_return
        self.callback = callback
        self.is_async = is_async
        self.is_exclusive = kind.is_async and (callback is not None or not is_async)
        """Whether nothing else of the instance begins or goes on while its guest runs."""

    def start(
        self, caller: ComponentInstance | None, on_start: OnStart, on_resolve: OnResolve
    ) -> Task:
        """See `Callee.start`."""
        task = Task(self, on_start, on_resolve)
        mark = self.runtime.enter(self.context.instance, caller)
        task.enter()
        self.runtime.leave(mark)
        return task


class Task:
    """A call to a component's function. It answers for what its callee is lent."""

    __slots__ = (
        "_event_of",
        "_on_resolve",
        "_on_start",
        "_thread_index",
        "_waits",
        "_woken",
        "borrows",
        "context",
        "function",
        "instance",
        "is_over",
        "is_suspended",
        "state",
        "storage",
    )

    def __init__(self, function: Lifted, on_start: OnStart, on_resolve: OnResolve) -> None:
        self.function = function
        self.instance = function.context.instance
        self.context = function.context.scoped(self)
        self.state = INITIAL
        self.borrows = 0
        self.storage = [0, 0]
        self._on_start = on_start
        self._on_resolve = on_resolve
        self._event_of: WaitableSet | None = None
        """The set that its callback waits for; None if for nothing but its turn."""
        self.is_over = False
        self.is_suspended = False
        """Whether its thread waits for another one to say that it may go on."""
        self._thread_index = 0
        self._waits = False
        self._woken = False

    @property
    def thread_index(self) -> int:
        """The number of its thread in the instance."""
        if not self._thread_index:
            self._thread_index = self.instance.threads.add(self)
        return self._thread_index

    def lend(self, handle: Handle) -> None:
        """Nothing: see `Scope.lend`, which is for who calls."""

    # Beginning.

    def enter(self) -> None:
        """Begin, or wait until the instance wants more."""
        instance = self.instance
        if self.function.type.is_async and (self.is_held_back or instance.entering):
            instance.entering.append(self)
        else:
            self._begin()

    @property
    def is_held_back(self) -> bool:
        """Whether it may not begin yet."""
        instance = self.instance
        return instance.backpressure > 0 or (
            self.function.is_exclusive and instance.exclusive is not None
        )

    def _begin(self) -> None:
        function = self.function
        if function.is_exclusive:
            self.instance.exclusive = self
        self.state = STARTED
        flat = function.type.lower_params(self.context, self._on_start())
        returned = self._call(function.core, *flat)
        if function.callback is not None:
            self._continue(returned)
            return
        if not function.is_async:
            results = () if returned is None else (returned,)
            self.resolve(function.type.lift_result(self.context, results))
            if function.post_return is not None:
                self.instance.may_leave = False
                self._call(function.post_return, *results)
                self.instance.may_leave = True
        self._end()

    def _call(self, core: Callable[..., Any], *flat: Any) -> Any:
        """Call into the guest, as this task."""
        runtime = self.function.runtime
        before, runtime.current = runtime.current, self
        result = core(*flat)
        runtime.current = before
        return result

    # Going on.

    def _continue(self, packed: int) -> None:
        """Do as the callback has asked for."""
        packed &= MASK
        code, number = packed & 0xF, packed >> 4
        if code == _EXIT:
            self._end()
            return
        if code == _WAIT:
            group = self.instance.table.get(number)
            if not isinstance(group, WaitableSet):
                raise Trap(f"handle index {number} is no waitable set")
            group.waiters.append(self)
            self._event_of = group
        elif code != _YIELD:
            raise Trap(f"a callback returns {code}, which means nothing")
        self._waits = True
        if self.state == PENDING_CANCEL:
            self._deliver(cancelled=True)
            return
        self._release()
        if self._has_event():
            self.wake()

    def _has_event(self) -> bool:
        group = self._event_of
        return group is None or group.has_event or self.state == PENDING_CANCEL

    def wake(self) -> None:
        """Go on when nothing else runs, if there is a reason to."""
        if not self._woken:
            self._woken = True
            self.function.runtime.ready.append(self)

    def go_on(self) -> bool:
        """Go on if its turn has come; tell whether it had."""
        self._woken = False
        instance, runtime = self.instance, self.function.runtime
        if self.state == INITIAL:
            # Its turn to begin: it was first of those that wait.
            if self.is_held_back:
                return False
            instance.entering.remove(self)
            admit(instance)  # before it begins, for it may wait in the midst of that
            mark = runtime.enter(instance, None)
            self._begin()
            runtime.leave(mark)
            return True
        if not self._waits or not self._has_event():
            return False
        if instance.exclusive is not None:
            instance.kept.append(self)
            return False
        mark = runtime.enter(instance, None)
        self._deliver(cancelled=self.state == PENDING_CANCEL)
        runtime.leave(mark)
        return True

    def _deliver(self, cancelled: bool = False) -> None:
        """Call the callback with what has happened."""
        group, self._event_of = self._event_of, None
        self._waits = False
        event: Event = (NONE, 0, 0)
        if cancelled:
            self.state = CANCEL_DELIVERED
            event = (TASK_CANCELLED, 0, 0)
        elif group is not None:
            event = group.take_event()
        if group is not None:
            group.waiters.remove(self)
        self.instance.exclusive = self
        callback = self.function.callback
        assert callback is not None
        self._continue(self._call(callback, *event))

    def _release(self) -> None:
        """Let others of the instance run."""
        instance = self.instance
        if instance.exclusive is self:
            instance.exclusive = None
        for task in instance.kept:
            task.wake()
        instance.kept.clear()
        admit(instance)

    # Ending.

    def resolve(self, result: Any) -> None:
        """Hand the result to the caller. Raises Trap."""
        if self.state == RESOLVED:
            raise Trap("a task cannot return twice")
        self._check_borrows()
        self.state = RESOLVED
        self._on_resolve(result, False)

    def give_up(self) -> None:
        """Tell the caller that there will be no result, which it has asked for. Raises Trap."""
        if self.state != CANCEL_DELIVERED:
            raise Trap("a task that nobody has cancelled cannot give up")
        self._check_borrows()
        self.state = RESOLVED
        self._on_resolve(None, True)

    def _check_borrows(self) -> None:
        if self.borrows:
            raise Trap("borrow handles still remain at the end of the call")

    def _end(self) -> None:
        if self.state != RESOLVED:
            raise Trap("async-lifted export failed to produce a result")
        self.is_over = True
        if self._thread_index:
            self.instance.threads.remove(self._thread_index)
        self._release()

    # Being cancelled.

    def cancel(self, caller: ComponentInstance | None) -> None:
        """See `Call.cancel`."""
        instance, runtime = self.instance, self.function.runtime
        if self.state == INITIAL:
            instance.entering.remove(self)
            self.state = CANCEL_DELIVERED
            self.give_up()
            self.is_over = True
            admit(instance)
            return
        may = all(each.may_enter for each in instance.between(caller))
        if self._waits and instance.exclusive is None and may:
            mark = runtime.enter(instance, caller)
            self._deliver(cancelled=True)
            runtime.leave(mark)
        else:
            self.state = PENDING_CANCEL
            if self._waits:
                self.wake()

    def take_cancellation(self) -> bool:
        """Tell, once, whether it was cancelled."""
        if self.state != PENDING_CANCEL:
            return False
        self.state = CANCEL_DELIVERED
        return True


def admit(instance: ComponentInstance) -> None:
    """Wake the first one, of those that wait to begin, who may."""
    for task in instance.entering:
        if not task.is_held_back:
            task.wake()
            break
