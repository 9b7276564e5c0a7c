"""Tasks: who begins when, waits for what, and how it ends. The guests are functions of Python."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shim.component.calls import (
    CANCELLED_BEFORE_RETURNED,
    CANCELLED_BEFORE_STARTED,
    RETURNED,
    STARTED,
    STARTING,
    HostCallee,
    Subscribe,
    lowered,
)
from shim.component.errors import Trap
from shim.component.host import Function
from shim.component.instance import ComponentInstance
from shim.component.intrinsics import Given, make
from shim.component.linker import call
from shim.component.tasks import Callee, Lifted, Runtime
from shim.component.types import U8, U32, Borrow, Future, Option, Own, Resource, ValueType
from shim.component.types.base import Context, FunctionType
from tests.shim.component.contexts import Memory

EXIT, YIELD, WAIT = range(3)
SUBTASK, FUTURE_READ, CANCEL = 1, 4, 6
BLOCKED = 0xFFFFFFFF
NOTHING = FunctionType([], None, is_async=True)
NUMBER = FunctionType([], U32, is_async=True)


class Guest:
    """An instance with a memory, built-ins, and functions."""

    def __init__(self, runtime: Runtime, parent: ComponentInstance | None = None) -> None:
        self.runtime = runtime
        self.memory = Memory()
        self.instance = ComponentInstance(parent)
        self.context = Context(self.instance, self.memory.view, self.memory.realloc)

    def __call__(self, name: str, *args: int, **about: Any) -> Any:
        """Call a built-in."""
        return make(name, Given(self.runtime, self.context, **about))(*args)

    def lift(
        self,
        core: Callable[..., Any],
        callback: Callable[[int, int, int], int] | None = None,
        kind: FunctionType = NOTHING,
        *,
        is_async: bool = True,
    ) -> Lifted:
        """Make a function."""
        return Lifted(self.runtime, kind, core, self.context, callback=callback, is_async=is_async)

    def lower(self, callee: Callee, *, is_async: bool = True) -> Callable[..., Any]:
        """Return how it calls a function."""
        return lowered(self.runtime, callee, self.context, is_async=is_async)

    def finish(self, result: int | None = None) -> int:
        """Return from a task, which is over."""
        if result is None:
            self("task.return")
        else:
            self("task.return", result, type=U32)
        return EXIT

    def waiting(self, *waitables: int) -> tuple[int, int]:
        """Return a new set, and what a callback answers to wait for it."""
        group = self("waitable-set.new")
        for waitable in waitables:
            self("waitable.join", waitable, group)
        return group, WAIT | group << 4

    def event(self, number: int) -> tuple[int, int, int]:
        """Return what has happened to a waitable."""
        found: tuple[int, int, int] = self.instance.table.get(number).take_event()
        return found


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
def guest(runtime: Runtime) -> Guest:
    return Guest(runtime)


@pytest.fixture
def caller(runtime: Runtime) -> Guest:
    return Guest(runtime)


def unreachable(*_: int) -> int:
    raise AssertionError("nobody calls this")


def started(packed: int) -> int:
    """Return the number of a subtask that has been started."""
    assert packed & 0xF == STARTED
    return packed >> 4


def trap(work: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(Trap) as caught:
        work(*args)
    return str(caught.value)


# How a task ends.


def test_a_result_comes_before_the_end(guest: Guest) -> None:
    steps: list[int] = []

    def core() -> int:
        guest("task.return", 7, type=U32)
        return YIELD

    def callback(*event: int) -> int:
        steps.append(len(event))
        return YIELD if len(steps) < 3 else EXIT

    assert call(guest.runtime, guest.lift(core, callback, NUMBER)) == 7
    assert steps == [3, 3, 3]


def test_a_task_returns_once_and_what_its_function_does(guest: Guest) -> None:
    def twice() -> int:
        guest.finish(1)
        return guest.finish(2)

    assert "cannot return twice" in trap(call, guest.runtime, guest.lift(twice, kind=NUMBER))


@pytest.mark.parametrize(
    ("core", "message"),
    [
        (lambda guest: EXIT, "failed to produce a result"),
        (lambda guest: 15, "means nothing"),
        (lambda guest: WAIT | 77 << 4, "unknown handle index 77"),
        (lambda guest: guest.finish(), "another type"),
        (lambda guest: guest("task.cancel"), "nobody has cancelled"),
    ],
)
def test_a_task_ends_badly(guest: Guest, core: Callable[[Guest], int], message: str) -> None:
    callee = guest.lift(lambda: core(guest), unreachable, NUMBER)
    assert message in trap(call, guest.runtime, callee)
    assert trap(call, guest.runtime, callee) == "cannot enter component instance"


def test_without_a_callback_a_task_ends_when_it_returns(guest: Guest) -> None:
    assert call(guest.runtime, guest.lift(lambda: guest.finish(7) or None, kind=NUMBER)) == 7
    callee = guest.lift(lambda: None, kind=NUMBER)
    assert "failed to produce a result" in trap(call, guest.runtime, callee)


def test_task_return_is_not_for_functions_that_return(guest: Guest) -> None:
    assert "there is no task here" in trap(guest, "task.return")
    callee = guest.lift(lambda: guest.finish(7), kind=NUMBER, is_async=False)
    assert "lifted as async" in trap(call, guest.runtime, callee)


def test_what_is_lent_is_given_back_first(guest: Guest) -> None:
    thing = Resource("thing")
    kind = FunctionType([("x", Borrow(thing))], None, is_async=True)

    def drops(number: int) -> int:
        guest("resource.drop", number, resource=thing)
        return guest.finish()

    def task(core: Callable[[int], int]) -> None:
        guest.lift(core, unreachable, kind).start(None, lambda: ["it"], lambda *_: None)

    task(drops)
    assert "borrow handles still remain" in trap(task, lambda _: guest.finish())


def test_nothing_leaves_an_instance_behind_a_result(guest: Guest) -> None:
    seen: list[Any] = []

    def after(result: int) -> None:
        seen.append((result, trap(guest, "waitable-set.new")))

    callee = Lifted(
        guest.runtime,
        FunctionType([], U32),
        lambda: 7,
        guest.context,
        post_return=after,
    )
    assert call(guest.runtime, callee) == 7
    assert seen == [(7, "cannot leave component instance")]
    assert guest("waitable-set.new") > 0


# Beginning.


def test_an_instance_that_wants_no_more(guest: Guest, caller: Guest) -> None:
    begun: list[str] = []

    def named(name: str) -> Lifted:
        def core() -> int:
            begun.append(name)
            return guest.finish()

        return guest.lift(core, unreachable)

    guest("backpressure.inc")
    guest("backpressure.inc")
    first, second = (caller.lower(named(name))() for name in "ab")
    assert first & 0xF == second & 0xF == STARTING
    guest("backpressure.dec")
    caller.runtime.run(lambda: not caller.runtime.ready)
    assert begun == []
    guest("backpressure.dec")
    assert "underflow" in trap(guest, "backpressure.dec")
    # Who comes now comes after those that wait.
    third = caller.lower(named("c"))()
    assert third & 0xF == STARTING
    caller.runtime.run(lambda: len(begun) == 3)
    assert begun == ["a", "b", "c"]
    assert caller.event(first >> 4) == (SUBTASK, first >> 4, RETURNED)


def test_there_is_an_end_to_backpressure(guest: Guest) -> None:
    guest.instance.backpressure = (1 << 16) - 1
    assert "overflow" in trap(guest, "backpressure.inc")


def future(guest: Guest, element: ValueType | None = None) -> tuple[int, int]:
    """Return a readable and a writable end."""
    both = guest("future.new", type=Future(element))
    return both & 0xFFFFFFFF, both >> 32


def read(guest: Guest, number: int, *, is_async: bool = True) -> int:
    told: int = guest("future.read", number, 0, type=Future(None), flag=is_async)
    return told


def write(guest: Guest, number: int) -> None:
    assert guest("future.write", number, 0, type=Future(None), flag=True) == 0


def begin(callee: Lifted, results: list[Any] | None = None) -> Any:
    """Have the host call a function."""
    results = [] if results is None else results
    return callee.start(None, list, lambda *outcome: results.append(outcome))


def test_one_task_of_an_instance_runs_at_a_time(guest: Guest, caller: Guest) -> None:
    """One that waits in the midst of a call keeps others out, but not synchronous ones."""
    steps: list[str] = []
    r, w = future(guest)

    def waits() -> None:
        steps.append("waits")
        assert read(guest, r, is_async=False) == 0
        steps.append("goes on")

    def other() -> int:
        steps.append("other")
        return guest.finish()

    def barges_in() -> None:
        steps.append("barges in")
        write(guest, w)

    def meanwhile(*_: int) -> int:
        assert caller.lower(guest.lift(other, unreachable))() & 0xF == STARTING
        sync = guest.lift(barges_in, kind=FunctionType([]), is_async=False)
        caller.lower(sync, is_async=False)()
        return caller.finish()

    begin(caller.lift(lambda: YIELD, meanwhile))
    assert begin(guest.lift(waits, is_async=False)).is_over
    guest.runtime.run(lambda: not guest.runtime.ready)
    assert steps == ["waits", "barges in", "goes on", "other"]


def test_without_a_callback_a_task_keeps_nobody_out(guest: Guest, caller: Guest) -> None:
    steps: list[str] = []
    r, w = future(guest)

    def waits() -> None:
        read(guest, r, is_async=False)
        steps.append("goes on")
        guest.finish()

    def other() -> int:
        steps.append("other")
        write(guest, w)
        return guest.finish()

    def meanwhile(*_: int) -> int:
        caller.lower(guest.lift(other, unreachable))()
        return caller.finish()

    begin(caller.lift(lambda: YIELD, meanwhile))
    assert begin(guest.lift(waits)).is_over
    assert steps == ["other", "goes on"]


def test_who_waits_in_the_midst_does_not_keep_back_who_came_later(
    guest: Guest, caller: Guest
) -> None:
    steps: list[str] = []
    r, w = future(guest)

    def waits() -> None:
        read(guest, r, is_async=False)
        steps.append("goes on")
        guest.finish()

    def other() -> None:
        steps.append("other")
        write(guest, w)
        guest.finish()

    guest("backpressure.inc")
    for core in (waits, other):
        assert caller.lower(guest.lift(core))() & 0xF == STARTING
    guest("backpressure.dec")
    guest.runtime.run(lambda: len(steps) == 2)
    assert steps == ["other", "goes on"]


def test_an_instance_is_not_entered_twice(guest: Guest, caller: Guest) -> None:
    """Not while it calls another one, nor by one that is nested in it."""
    back = guest.lift(unreachable, kind=FunctionType([]), is_async=False)
    there = caller.lift(caller.lower(back, is_async=False), kind=FunctionType([]), is_async=False)
    outer = guest.lift(guest.lower(there, is_async=False), kind=FunctionType([]), is_async=False)
    assert trap(call, guest.runtime, outer) == "cannot enter component instance"
    inner = Guest(guest.runtime, guest.instance)
    for one, other in ((guest, inner), (inner, guest), (guest, guest)):
        callee = other.lift(unreachable, kind=FunctionType([]), is_async=False)
        assert trap(one.lower(callee, is_async=False)) == "cannot enter component instance"


# Waiting.


def test_a_callback_is_told_what_has_happened(guest: Guest) -> None:
    r, w = future(guest)
    seen: list[tuple[int, ...]] = []

    def core() -> int:
        assert read(guest, r) == BLOCKED
        return guest.waiting(r)[1]

    def callback(*event: int) -> int:
        seen.append(event)
        return guest.finish()

    task = begin(guest.lift(core, callback))
    assert not task.is_over
    write(guest, w)
    guest.runtime.run(lambda: task.is_over)
    assert seen == [(FUTURE_READ, r, 0)]


def test_a_set_that_somebody_waits_for(guest: Guest) -> None:
    group, answer = guest.waiting()
    task = begin(guest.lift(lambda: answer, unreachable))
    assert "somebody waits" in trap(guest, "waitable-set.drop", group)
    assert "waits for what nobody is going to do" in trap(guest.runtime.run, lambda: task.is_over)


def test_sets_and_what_is_in_them(guest: Guest) -> None:
    r, w = future(guest)
    group, _ = guest.waiting(r)
    assert "has members" in trap(guest, "waitable-set.drop", group)
    assert "is no waitable set" in trap(guest, "waitable.join", w, r)
    assert "is no waitable" in trap(guest, "waitable.join", group, group)
    assert "cannot wait for what is in a waitable set" in trap(
        lambda: read(guest, r, is_async=False)
    )
    assert guest("waitable-set.poll", group, 8) == 0
    assert read(guest, r) == BLOCKED
    write(guest, w)
    assert guest("waitable-set.poll", group, 8) == FUTURE_READ
    assert bytes(guest.memory.bytes[8:16]) == bytes((r, 0, 0, 0, 0, 0, 0, 0))
    assert "outside of the memory" in trap(guest, "waitable-set.poll", group, -4)
    assert "not aligned" in trap(guest, "waitable-set.poll", group, 2)
    guest("waitable.join", r, 0)
    guest("waitable-set.drop", group)


def test_events_of_a_set_come_in_their_order(guest: Guest) -> None:
    ends = [future(guest) for _ in range(4)]
    group, _ = guest.waiting(*(r for r, _ in ends))
    for r, _ in ends:
        read(guest, r)
    # One has left before its event, one after it, and one comes back with it.
    guest("waitable.join", ends[0][0], 0)
    for _, w in reversed(ends):
        write(guest, w)
    guest("waitable.join", ends[1][0], 0)
    guest("waitable.join", ends[0][0], group)
    seen = []
    while guest("waitable-set.poll", group, 8):
        seen.append(guest.memory.bytes[8])
    assert seen == [ends[number][0] for number in (3, 2, 0)]
    guest("waitable.join", ends[1][0], group)
    assert guest("waitable-set.poll", group, 8) == FUTURE_READ


def test_who_is_synchronous_has_nobody_begin(guest: Guest, caller: Guest) -> None:
    begun: list[str] = []

    def core() -> int:
        begun.append("other")
        return guest.finish()

    guest("backpressure.inc")
    caller.lower(guest.lift(core, unreachable))()
    guest("backpressure.dec")

    def yields() -> None:
        guest("thread.yield")
        assert begun == []

    call(guest.runtime, guest.lift(yields, kind=FunctionType([]), is_async=False))
    guest.runtime.run(lambda: begun == ["other"])


def test_who_is_synchronous_does_not_wait(guest: Guest) -> None:
    group, _ = guest.waiting()

    def waits() -> None:
        guest("waitable-set.wait", group, 0)

    sync = guest.lift(waits, kind=FunctionType([]), is_async=False)
    for work in (lambda: begin(sync), waits):
        runtime = guest.runtime = Runtime()
        sync.runtime = runtime
        guest.instance.may_enter = True
        assert trap(work) == "cannot block a synchronous task before returning"


def test_who_calls_does_not_go_on_before_the_call_returns(guest: Guest, caller: Guest) -> None:
    r, w = future(guest)

    def calls() -> int:
        caller.lower(guest.lift(lambda: read(guest, r, is_async=False), is_async=False))()
        write(guest, w)
        return caller.finish()

    message = trap(call, caller.runtime, caller.lift(calls, unreachable))
    assert message.endswith("nobody is going to do, or only who waits for the call")


def test_yielding_lets_others_run(guest: Guest, caller: Guest) -> None:
    steps: list[str] = []

    def meanwhile(*_: int) -> int:
        steps.append("other")
        return caller.finish()

    def yields() -> None:
        steps.append("before")
        assert guest("thread.yield") == 0
        steps.append("after")

    other = begin(caller.lift(lambda: YIELD, meanwhile))
    # Who is synchronous lets only those of its own instance run.
    call(guest.runtime, guest.lift(yields, kind=FunctionType([]), is_async=False))
    assert (steps, other.is_over) == (["before", "after"], False)
    steps.clear()
    call(guest.runtime, guest.lift(yields, is_async=False))
    assert (steps, other.is_over) == (["before", "other", "after"], True)


def test_slots_belong_to_a_task(guest: Guest, caller: Guest) -> None:
    seen: list[int] = []

    def context(guest: Guest, value: int) -> None:
        seen.append(guest("context.get", number=1))
        guest("context.set", value, number=1)

    def inner() -> int:
        context(guest, 2)
        return guest.finish()

    def core() -> int:
        context(caller, 1)
        caller.lower(guest.lift(inner, unreachable), is_async=False)()
        context(caller, 3)
        return YIELD

    def callback(*_: int) -> int:
        context(caller, 4)
        return caller.finish()

    context(guest, 9)  # of a start function
    call(caller.runtime, caller.lift(core, callback))
    context(guest, 9)
    assert seen == [0, 0, 0, 1, 3, 9]


def test_a_thread_has_a_number(guest: Guest) -> None:
    seen: list[int] = []

    def core() -> int:
        seen.extend(guest("thread.index") for _ in range(2))
        return guest.finish()

    for _ in range(2):
        call(guest.runtime, guest.lift(core, unreachable))
    assert seen == [1, 1, 1, 1]


@pytest.mark.parametrize("how", ["resume-later", "yield-then-resume"])
def test_a_thread_is_suspended_until_another_one_resumes_it(guest: Guest, how: str) -> None:
    steps: list[str] = []

    def waits() -> int:
        assert guest("thread.index") == 1
        return YIELD

    def resumes(*_: int) -> int:
        assert "unknown handle" in trap(guest, f"thread.{how}", 7)
        assert "thread 1 is not suspended" in trap(guest, f"thread.{how}", 1)
        guest(f"thread.{how}", 2)
        assert "thread 2 is not suspended" in trap(guest, f"thread.{how}", 2)
        steps.append("resumes")
        return guest.finish()

    def suspends() -> None:
        assert guest("thread.index") == 2
        assert guest("thread.suspend") == 0
        steps.append("goes on")
        guest.finish()

    begin(guest.lift(waits, resumes))
    assert begin(guest.lift(suspends)).is_over
    assert steps == ["resumes", "goes on"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [(NOTHING, "deadlock"), (FunctionType([]), "cannot block a synchronous task")],
    ids=str,
)
def test_nobody_resumes_a_thread(guest: Guest, kind: FunctionType, message: str) -> None:
    callee = guest.lift(lambda: guest("thread.suspend"), kind=kind, is_async=kind.is_async)
    assert message in trap(call, guest.runtime, callee)


def test_a_task_has_one_thread(guest: Guest) -> None:
    message = trap(guest, "thread.new-indirect", 0, 0)
    assert message == "unsupported: `thread.new-indirect`: a task has one thread here"


# Subtasks.


def test_a_call_that_is_over_at_once(guest: Guest, caller: Guest) -> None:
    callee = guest.lift(lambda: guest.finish(7), unreachable, NUMBER)
    assert caller.lower(callee)(64) == RETURNED
    assert caller.memory.bytes[64] == 7
    assert caller.lower(callee, is_async=False)() == 7


def test_a_call_that_takes_its_time(guest: Guest, caller: Guest) -> None:
    callee = guest.lift(lambda: YIELD, lambda *_: guest.finish(7), NUMBER)
    number = started(caller.lower(callee)(64))
    assert "has not yet resolved" in trap(caller, "subtask.drop", number)
    caller.runtime.run(lambda: caller.instance.table.get(number).has_event)
    # It is there before the caller is told.
    assert caller.memory.bytes[64] == 7
    assert "has not yet resolved" in trap(caller, "subtask.drop", number)
    assert caller.event(number) == (SUBTASK, number, RETURNED)
    caller("subtask.drop", number)
    assert "unknown handle" in trap(caller, "subtask.drop", number)
    assert "is no subtask" in trap(caller, "subtask.drop", caller("waitable-set.new"))


def test_what_a_caller_lends_it_has_back_when_it_knows(guest: Guest, caller: Guest) -> None:
    thing = Resource("thing")
    kind = FunctionType([("x", Borrow(thing))], None, is_async=True)

    def core(number: int) -> int:
        guest("resource.drop", number, resource=thing)
        return YIELD

    callee = guest.lift(core, lambda *_: guest.finish(), kind)
    handle = caller.instance.table.add_own(thing, "it")
    number = started(caller.lower(callee)(handle))
    caller.runtime.run(lambda: caller.instance.table.get(number).has_event)
    assert "it is lent" in trap(lambda: caller("resource.drop", handle, resource=thing))
    caller.event(number)
    caller("resource.drop", handle, resource=thing)


def test_arguments_are_taken_when_the_callee_begins(guest: Guest, caller: Guest) -> None:
    thing = Resource("thing")
    kind = FunctionType([("x", Own(thing))], None, is_async=True)
    guest.instance.backpressure = 1
    handle = caller.instance.table.add_own(thing, "it")
    callee = guest.lift(lambda number: guest.finish(), unreachable, kind)
    number = caller.lower(callee)(handle) >> 4
    assert caller.instance.table.get(handle).representation == "it"
    guest("backpressure.dec")
    caller.runtime.run(lambda: caller.instance.table.get(number).has_event)
    assert "unknown handle" in trap(caller.instance.table.get, handle)


# Cancelling.


def cancel(caller: Guest, number: int, *, is_async: bool = True) -> int:
    told: int = caller("subtask.cancel", number, flag=is_async)
    return told


def test_a_call_is_cancelled_before_it_begins(guest: Guest, caller: Guest) -> None:
    guest("backpressure.inc")
    number = caller.lower(guest.lift(unreachable, unreachable))() >> 4
    assert cancel(caller, number) == CANCELLED_BEFORE_STARTED
    caller("subtask.drop", number)
    guest("backpressure.dec")
    assert not guest.instance.entering


def test_who_waits_is_told_at_once(guest: Guest, caller: Guest) -> None:
    seen: list[tuple[int, ...]] = []

    def callback(*event: int) -> int:
        seen.append(event)
        guest("task.cancel")
        return EXIT

    _, answer = guest.waiting()
    number = started(caller.lower(guest.lift(lambda: answer, callback))())
    assert cancel(caller, number) == CANCELLED_BEFORE_RETURNED
    assert seen == [(CANCEL, 0, 0)]
    assert "has ended" in trap(cancel, caller, number)
    caller("subtask.drop", number)


def test_who_is_cancelled_may_finish_all_the_same(guest: Guest, caller: Guest) -> None:
    callee = guest.lift(lambda: YIELD, lambda *event: guest.finish(event[0]), NUMBER)
    number = started(caller.lower(callee)(64))
    assert cancel(caller, number) == RETURNED
    assert caller.memory.bytes[64] == CANCEL


def test_who_is_cancelled_may_take_its_time(guest: Guest, caller: Guest) -> None:
    events: list[int] = []

    def callback(event: int, *_: int) -> int:
        events.append(event)
        if len(events) < 3:
            return YIELD
        guest("task.cancel")
        return EXIT

    number = started(caller.lower(guest.lift(lambda: YIELD, callback))())
    assert cancel(caller, number) == BLOCKED
    assert "twice" in trap(cancel, caller, number)
    caller.runtime.run(lambda: caller.instance.table.get(number).has_event)
    assert events == [CANCEL, 0, 0]
    assert caller.event(number) == (SUBTASK, number, CANCELLED_BEFORE_RETURNED)


def test_who_cannot_be_entered_is_told_when_it_waits(guest: Guest, caller: Guest) -> None:
    """Here because another task of the instance waits in the midst of a call."""
    r, w = future(guest)
    events: list[int] = []

    def callback(event: int, *_: int) -> int:
        events.append(event)
        guest("task.cancel")
        return EXIT

    _, answer = guest.waiting()
    number = started(caller.lower(guest.lift(lambda: answer, callback))())

    def meanwhile(*_: int) -> int:
        assert cancel(caller, number) == BLOCKED
        assert events == []
        write(guest, w)
        return caller.finish()

    begin(caller.lift(lambda: YIELD, meanwhile))
    begin(guest.lift(lambda: read(guest, r, is_async=False) and None, is_async=False))
    caller.runtime.run(lambda: caller.instance.table.get(number).has_event)
    assert events == [CANCEL]


@pytest.mark.parametrize("wait", ["waitable-set.wait", "thread.suspend"])
def test_who_waits_in_the_midst_of_a_call_is_told(guest: Guest, caller: Guest, wait: str) -> None:
    group, _ = guest.waiting()
    args = (group, 96) if wait == "waitable-set.wait" else ()
    told: list[int] = []

    def core() -> None:
        told.append(guest(wait, *args, flag=True))
        guest("task.cancel")

    guest("backpressure.inc")
    number = caller.lower(guest.lift(core))() >> 4
    guest("backpressure.dec")

    def meanwhile(*_: int) -> int:
        assert cancel(caller, number) == BLOCKED
        return caller.finish()

    begin(caller.lift(lambda: YIELD, meanwhile))
    caller.runtime.run(lambda: caller.instance.table.get(number).has_event)
    assert told == [CANCEL if args else 1]
    assert caller.event(number) == (SUBTASK, number, CANCELLED_BEFORE_RETURNED)


# Calls to the host.


class Bell:
    """What a coroutine of the host waits for."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def __await__(self) -> Any:
        def subscribe(go_on: Callable[[], None]) -> Callable[[], None]:
            self.waiting.append(go_on)
            return lambda: self.waiting.remove(go_on)

        yield subscribe

    def ring(self) -> None:
        """Let it go on."""
        for go_on in list(self.waiting):
            self.waiting.remove(go_on)
            go_on()


class Program:
    """The host's side of a call."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.steps: list[str] = []

    async def slow(self, number: int) -> int:
        """Wait for the bell, twice."""
        try:
            await self.bell
            self.steps.append("once")
            await self.bell
        finally:
            self.steps.append("over")
        return number + 1


def host(program: Program) -> HostCallee:
    kind = FunctionType([("x", U8)], Option(U8), is_async=True)

    def slow(program: Program, number: int) -> Coroutine[Subscribe, None, int]:
        return program.slow(number)

    return HostCallee(Function(kind, slow, None, is_coroutine=True), program)


def test_the_host_takes_its_time(caller: Guest) -> None:
    program = Program()
    number = started(caller.lower(host(program))(4, 64))
    program.bell.ring()
    assert program.steps == ["once"]
    program.bell.ring()
    assert caller.event(number) == (SUBTASK, number, RETURNED)
    assert bytes(caller.memory.bytes[64:66]) == b"\1\5"


def test_a_call_to_the_host_is_cancelled(caller: Guest) -> None:
    program = Program()
    number = started(caller.lower(host(program))(4, 64))
    program.bell.ring()
    assert cancel(caller, number) == CANCELLED_BEFORE_RETURNED
    assert program.steps == ["once", "over"]
    assert program.bell.waiting == []
    caller("subtask.drop", number)


class Ringing:
    """A reactor that rings a bell when nothing else is to be done."""

    def __init__(self, bell: Bell) -> None:
        self.bell = bell

    def wait(self, block: bool) -> bool:
        """See `Reactor.wait`."""
        if block:
            self.bell.ring()
        return block


def test_a_guest_waits_for_the_host(caller: Guest) -> None:
    program = Program()
    caller.runtime.reactor = Ringing(program.bell)
    slow = caller.lower(host(program), is_async=False)

    def core() -> int:
        slow(4, 64)
        return caller.finish(caller.memory.bytes[65])

    assert call(caller.runtime, caller.lift(core, unreachable, NUMBER)) == 5
