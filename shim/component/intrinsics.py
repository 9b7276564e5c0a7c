"""The built-in functions of the component model (library; used in the guest).

CanonicalABI.md, "Canonical Definitions". Each function here returns a core function, which takes
and returns core values; integers come in either sign.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from shim.component.calls import Subtask
from shim.component.errors import Trap
from shim.component.instance import ComponentInstance
from shim.component.streams import (
    BUSY,
    CANCELLED,
    CANCELLING,
    COMPLETED,
    DONE,
    DROPPED,
    IDLE,
    Buffer,
    End,
    ReadableFuture,
    ReadableStream,
    Shared,
    SharedFuture,
    SharedStream,
    WritableFuture,
    WritableStream,
    check_type,
)
from shim.component.table import ErrorContext
from shim.component.tasks import PENDING_CANCEL, Runtime, Task, admit
from shim.component.types import STRING, Future, Resource, Stream, ValueType
from shim.component.types.base import MASK, Context, same
from shim.component.waitables import (
    FUTURE_READ,
    FUTURE_WRITE,
    NONE,
    STREAM_READ,
    STREAM_WRITE,
    TASK_CANCELLED,
    Event,
    Waitable,
    WaitableSet,
)

Core = Callable[..., Any]

_BLOCKED: Final = 0xFFFFFFFF
_MOST_BACKPRESSURE: Final = 1 << 16
_PAIR: Final = struct.Struct("<II")


class Given(NamedTuple):
    """What a built-in is about; see `plan.BuiltIn`."""

    runtime: Runtime
    context: Context
    resource: Resource | None = None
    type: ValueType | None = None
    flag: bool = False
    number: int = 0

    @property
    def instance(self) -> ComponentInstance:
        """Whose built-in it is."""
        return self.context.instance


def make(name: str, given: Given) -> Core:
    """Return the core function of a built-in by its name. Raises KeyError."""
    return _INTRINSICS[name](given)


def _leaving(instance: ComponentInstance) -> None:
    if not instance.may_leave:
        raise Trap("cannot leave component instance")


def _task(given: Given) -> Task:
    task = given.runtime.current
    if task is None or task.instance is not given.instance:
        raise Trap("there is no task here")
    return task


def _cancelled(given: Given) -> bool:
    """Tell, once, whether the task was cancelled; where the guest does not ask for it, never."""
    task = given.runtime.current
    return given.flag and task is not None and task.take_cancellation()


def _block(given: Given, until: Callable[[], bool]) -> bool:
    """Have the guest wait until something is true; tell whether it was cancelled instead."""
    if _cancelled(given):
        return True
    cancellable, task = given.flag, given.runtime.current
    given.runtime.block(
        lambda: until() or (cancellable and task is not None and task.state == PENDING_CANCEL)
    )
    return _cancelled(given)


# Resources.


def _resource_new(given: Given) -> Core:
    instance, resource = given.instance, given.resource
    assert resource is not None

    def resource_new(representation: int) -> int:
        _leaving(instance)
        return instance.table.add_own(resource, representation & MASK)

    return resource_new


def _resource_rep(given: Given) -> Core:
    instance, resource = given.instance, given.resource
    assert resource is not None

    def resource_rep(number: int) -> int:
        representation: int = instance.table.resource(number & MASK, resource).representation
        return representation

    return resource_rep


def _resource_drop(given: Given) -> Core:
    instance, resource, runtime = given.instance, given.resource, given.runtime
    assert resource is not None

    def resource_drop(number: int) -> None:
        _leaving(instance)
        number &= MASK
        handle = instance.table.resource(number, resource)
        if handle.lends:
            raise Trap(f"cannot drop handle index {number}: it is lent")
        instance.table.remove(number)
        if handle.scope is not None:
            handle.scope.borrows -= 1
        elif resource.owner is None:
            if resource.drop is not None:
                resource.drop(handle.representation)
        elif resource.drop is not None or resource.owner is not instance:
            # A call like another one, which may find the owner at work.
            mark = runtime.enter(resource.owner, instance)
            if resource.drop is not None:
                before = runtime.be_nobody()
                resource.drop(handle.representation)
                runtime.be(before)
            runtime.leave(mark)

    return resource_drop


# Tasks.


def _task_return(given: Given) -> Core:
    context = given.context

    def task_return(*flat: Any) -> None:
        task = _task(given)
        _leaving(given.instance)
        kind = task.function.type
        if not task.function.is_async:
            raise Trap("`task.return` is for functions that are lifted as async")
        if not same(kind.result, given.type):
            raise Trap("a task returns another type than its function does")
        if not context.lifts_like(task.function.context):
            raise Trap("a task returns with other options than its function has")
        task.resolve(kind.lift_result(task.context, flat, most=16))

    return task_return


def _task_cancel(given: Given) -> Core:
    def task_cancel() -> None:
        task = _task(given)
        _leaving(given.instance)
        if not task.function.is_async:
            raise Trap("`task.cancel` is for functions that are lifted as async")
        task.give_up()

    return task_cancel


def _storage(given: Given) -> list[int]:
    task = given.runtime.current
    return given.runtime.storage if task is None else task.storage


def _context_get(given: Given) -> Core:
    number = given.number
    return lambda: _storage(given)[number]


def _context_set(given: Given) -> Core:
    number = given.number

    def context_set(value: int) -> None:
        _storage(given)[number] = value

    return context_set


def _backpressure_inc(given: Given) -> Core:
    instance = given.instance

    def backpressure_inc() -> None:
        instance.backpressure += 1
        if instance.backpressure == _MOST_BACKPRESSURE:
            raise Trap("backpressure counter overflow")

    return backpressure_inc


def _backpressure_dec(given: Given) -> Core:
    instance = given.instance

    def backpressure_dec() -> None:
        if instance.backpressure == 0:
            raise Trap("backpressure counter underflow")
        instance.backpressure -= 1
        if not instance.backpressure:
            admit(instance)

    return backpressure_dec


def _thread_yield(given: Given) -> Core:
    def thread_yield() -> int:
        _leaving(given.instance)
        if _cancelled(given):
            return 1
        given.runtime.yield_()
        return int(_cancelled(given))

    return thread_yield


def _thread_index(given: Given) -> Core:
    def thread_index() -> int:
        _leaving(given.instance)
        return _task(given).thread_index

    return thread_index


def _thread_new_indirect(given: Given) -> Core:
    def thread_new_indirect(*_: int) -> int:
        _leaving(given.instance)
        raise Trap("unsupported: `thread.new-indirect`: a task has one thread here")

    return thread_new_indirect


def _suspended(given: Given, number: int) -> Task:
    """Return the task whose thread it is. Raises Trap unless that is suspended."""
    task: Task = given.instance.threads.get(number & MASK)
    if not task.is_suspended:
        raise Trap(f"thread {number & MASK} is not suspended")
    return task


def _thread_resume_later(given: Given) -> Core:
    def thread_resume_later(number: int) -> None:
        _leaving(given.instance)
        _suspended(given, number).is_suspended = False

    return thread_resume_later


def _thread_suspend(given: Given) -> Core:
    def thread_suspend() -> int:
        _leaving(given.instance)
        task = _task(given)
        task.is_suspended = True
        cancelled = _block(given, lambda: not task.is_suspended)
        task.is_suspended = False
        return int(cancelled)

    return thread_suspend


def _switch(make_leave: Callable[[Given], Core], resumes: bool) -> Callable[[Given], Core]:
    """Return what makes `thread.LEAVE-then-resume`, or `-then-promote`.

    The other thread has its turn as soon as nothing lies above it on the stack.
    """

    def make_switch(given: Given) -> Core:
        leave = make_leave(given)

        def switch(number: int) -> int:
            _leaving(given.instance)
            if resumes:
                _suspended(given, number).is_suspended = False
            else:
                given.instance.threads.get(number & MASK)
            told: int = leave()
            return told

        return switch

    return make_switch


# Waitables.


def _waitable_set_new(given: Given) -> Core:
    instance = given.instance

    def waitable_set_new() -> int:
        _leaving(instance)
        return instance.table.add(WaitableSet())

    return waitable_set_new


def _waitable_set(instance: ComponentInstance, number: int) -> WaitableSet:
    group = instance.table.get(number & MASK)
    if not isinstance(group, WaitableSet):
        raise Trap(f"handle index {number & MASK} is no waitable set")
    return group


def _waitable(instance: ComponentInstance, number: int) -> Waitable:
    waitable = instance.table.get(number & MASK)
    if not isinstance(waitable, Waitable):
        raise Trap(f"handle index {number & MASK} is no waitable")
    return waitable


def _store_event(context: Context, event: Event, start: int) -> int:
    code, *payload = event
    start &= MASK
    _PAIR.pack_into(context.reach(start, 8, 4), start, *payload)
    return code


def _waitable_set_wait(given: Given) -> Core:
    instance = given.instance

    def waitable_set_wait(number: int, start: int) -> int:
        _leaving(instance)
        group = _waitable_set(instance, number)
        waiting = _Sync()
        group.waiters.append(waiting)
        cancelled = _block(given, lambda: group.has_event)
        group.waiters.remove(waiting)
        event = (TASK_CANCELLED, 0, 0) if cancelled else group.take_event()
        return _store_event(given.context, event, start)

    return waitable_set_wait


class _Sync:
    """Who waits for a set with a stack of its own: it looks by itself."""

    def wake(self) -> None:
        """Nothing."""


def _waitable_set_poll(given: Given) -> Core:
    instance, runtime = given.instance, given.runtime

    def waitable_set_poll(number: int, start: int) -> int:
        _leaving(instance)
        group = _waitable_set(instance, number)
        event: Event = (NONE, 0, 0)
        if _cancelled(given):
            event = (TASK_CANCELLED, 0, 0)
        else:
            if not group.has_event:
                runtime.reactor.wait(False)
            if group.has_event:
                event = group.take_event()
        return _store_event(given.context, event, start)

    return waitable_set_poll


def _waitable_set_drop(given: Given) -> Core:
    instance = given.instance

    def waitable_set_drop(number: int) -> None:
        _leaving(instance)
        _waitable_set(instance, number).drop()
        instance.table.remove(number & MASK)

    return waitable_set_drop


def _waitable_join(given: Given) -> Core:
    instance = given.instance

    def waitable_join(number: int, group: int) -> None:
        _leaving(instance)
        waitable = _waitable(instance, number)
        if waitable.has_sync_waiter:
            raise Trap("cannot put into a set what somebody waits for")
        waitable.join(_waitable_set(instance, group) if group & MASK else None)

    return waitable_join


# Subtasks.


def _subtask(instance: ComponentInstance, number: int) -> Subtask:
    subtask = instance.table.get(number)
    if not isinstance(subtask, Subtask):
        raise Trap(f"handle index {number} is no subtask")
    return subtask


def _subtask_cancel(given: Given) -> Core:
    instance, is_async = given.instance, given.flag

    def subtask_cancel(number: int) -> int:
        _leaving(instance)
        subtask = _subtask(instance, number & MASK)
        if subtask.is_delivered:
            raise Trap("cannot cancel a subtask that has ended")
        if subtask.cancelled:
            raise Trap("cannot cancel a subtask twice")
        if subtask.group is not None and not is_async:
            raise Trap("cannot wait for what is in a waitable set")
        if not subtask.is_resolved:
            subtask.cancelled = True
            assert subtask.call is not None
            subtask.call.cancel(instance)
            if not subtask.is_resolved:
                if is_async:
                    return _BLOCKED
                _wait(given.runtime, subtask)
        subtask.take_event()
        return subtask.state

    return subtask_cancel


def _wait(runtime: Runtime, waitable: Waitable) -> None:
    waitable.has_sync_waiter = True
    runtime.block(lambda: waitable.has_event)
    waitable.has_sync_waiter = False


def _subtask_drop(given: Given) -> Core:
    instance = given.instance

    def subtask_drop(number: int) -> None:
        _leaving(instance)
        _subtask(instance, number & MASK).drop()
        instance.table.remove(number & MASK)

    return subtask_drop


# Streams and futures.


def _element(given: Given) -> ValueType | None:
    assert isinstance(given.type, (Stream, Future))
    return given.type.element


def _new(given: Given, shared_type: type[Shared], readable: type[End], writable: type[End]) -> Core:
    instance, element = given.instance, _element(given)

    def new() -> int:
        _leaving(instance)
        shared = shared_type(element)
        number = instance.table.add(readable(shared))
        return number | instance.table.add(writable(shared)) << 32

    return new


def _end(instance: ComponentInstance, number: int, kind: type[End]) -> Any:
    end = instance.table.get(number)
    if type(end) is not kind:
        raise Trap(f"handle index {number} is no {kind.__name__}")
    return end


def _copy(given: Given, kind: type[End], code: int) -> Core:
    """Make `stream.read`, `stream.write`, and the same of futures, which copy one value."""
    instance, element, context = given.instance, _element(given), given.context
    is_async, runtime = given.flag, given.runtime
    reading = code in (STREAM_READ, FUTURE_READ)
    is_stream = code in (STREAM_READ, STREAM_WRITE)
    get = instance.table.get

    def copy(number: int, start: int, length: int = 1) -> int:
        # As elsewhere, without calls that are not needed: so all bytes come and go.
        if not instance.may_leave:
            _leaving(instance)
        number &= MASK
        end = get(number)
        if type(end) is not kind:
            raise Trap(f"handle index {number} is no {kind.__name__}")
        shared: Shared = end.shared
        if shared.type is not element:
            check_type(end, element)
        if end.state != IDLE:
            raise Trap(f"cannot copy by handle index {number}: it is in use, or at its end")
        if end.group is not None and not is_async:
            raise Trap("cannot wait for what is in a waitable set")
        buffer = Buffer(context, element, start & MASK, length & MASK)

        def packed(result: int) -> int:
            if is_stream:
                end.state = DONE if result == DROPPED else IDLE
                return result | buffer.progress << 4
            end.state = DONE if result in (DROPPED, COMPLETED) else IDLE
            return result

        if not shared.dropped and not end.has_event:
            # Whatever the host can do at once is the usual case, and no event.
            result = shared.ask(buffer, reading)
            if result is not None:
                return packed(result)

        def on_copy(reclaim: Callable[[], None]) -> None:
            def event() -> Event:
                reclaim()
                return code, number, packed(COMPLETED)

            end.happen(event)

        def on_done(result: int) -> None:
            end.happen(lambda: (code, number, packed(result)))

        end.state = BUSY
        shared.copy(buffer, reading, on_copy, on_done)
        if not end.has_event:
            if is_async:
                return _BLOCKED
            _wait(runtime, end)
        return int(end.take_event()[2])

    return copy


def _cancel_copy(given: Given, kind: type[End]) -> Core:
    instance, element, is_async = given.instance, _element(given), given.flag
    is_stream = kind in (ReadableStream, WritableStream)

    def cancel_copy(number: int) -> int:
        _leaving(instance)
        end: End = _end(instance, number & MASK, kind)
        check_type(end, element)
        if end.state != BUSY or end.has_sync_waiter:
            raise Trap("there is no copy to cancel")
        if end.group is not None and not is_async:
            raise Trap("cannot wait for what is in a waitable set")
        end.state = CANCELLING
        if not end.has_event:
            end.shared.cancel()
            if not end.has_event:
                if is_async:
                    return _BLOCKED
                _wait(given.runtime, end)
        result = end.take_event()[2]
        if is_stream and result & 0xF == COMPLETED:
            # It was over before, or in part: what counts is that it will not go on.
            result |= CANCELLED
        return result

    return cancel_copy


def _drop(given: Given, kind: type[End]) -> Core:
    instance, element = given.instance, _element(given)

    def drop(number: int) -> None:
        _leaving(instance)
        end: End = _end(instance, number & MASK, kind)
        check_type(end, element)
        end.drop()
        instance.table.remove(number & MASK)

    return drop


# Error contexts.


def _error_context_new(given: Given) -> Core:
    instance, context = given.instance, given.context

    def error_context_new(start: int, length: int) -> int:
        _leaving(instance)
        return instance.table.add(ErrorContext(STRING.lift(context, iter((start, length)))))

    return error_context_new


def _error_context_debug_message(given: Given) -> Core:
    instance, context = given.instance, given.context

    def error_context_debug_message(number: int, start: int) -> None:
        _leaving(instance)
        message = instance.table.error_context(number & MASK).message
        start &= MASK
        context.reach(start, STRING.size, STRING.alignment)
        STRING.store(context, message, start)

    return error_context_debug_message


def _error_context_drop(given: Given) -> Core:
    instance = given.instance

    def error_context_drop(number: int) -> None:
        _leaving(instance)
        instance.table.error_context(number & MASK)
        instance.table.remove(number & MASK)

    return error_context_drop


_INTRINSICS: Final[dict[str, Callable[[Given], Core]]] = {
    "resource.new": _resource_new,
    "resource.rep": _resource_rep,
    "resource.drop": _resource_drop,
    "task.return": _task_return,
    "task.cancel": _task_cancel,
    "context.get": _context_get,
    "context.set": _context_set,
    "backpressure.inc": _backpressure_inc,
    "backpressure.dec": _backpressure_dec,
    "thread.yield": _thread_yield,
    "thread.index": _thread_index,
    "thread.new-indirect": _thread_new_indirect,
    "thread.resume-later": _thread_resume_later,
    "thread.suspend": _thread_suspend,
    "thread.suspend-then-resume": _switch(_thread_suspend, resumes=True),
    "thread.yield-then-resume": _switch(_thread_yield, resumes=True),
    "thread.suspend-then-promote": _switch(_thread_suspend, resumes=False),
    "thread.yield-then-promote": _switch(_thread_yield, resumes=False),
    "waitable-set.new": _waitable_set_new,
    "waitable-set.wait": _waitable_set_wait,
    "waitable-set.poll": _waitable_set_poll,
    "waitable-set.drop": _waitable_set_drop,
    "waitable.join": _waitable_join,
    "subtask.cancel": _subtask_cancel,
    "subtask.drop": _subtask_drop,
    "stream.new": lambda given: _new(given, SharedStream, ReadableStream, WritableStream),
    "stream.read": lambda given: _copy(given, ReadableStream, STREAM_READ),
    "stream.write": lambda given: _copy(given, WritableStream, STREAM_WRITE),
    "stream.cancel-read": lambda given: _cancel_copy(given, ReadableStream),
    "stream.cancel-write": lambda given: _cancel_copy(given, WritableStream),
    "stream.drop-readable": lambda given: _drop(given, ReadableStream),
    "stream.drop-writable": lambda given: _drop(given, WritableStream),
    "future.new": lambda given: _new(given, SharedFuture, ReadableFuture, WritableFuture),
    "future.read": lambda given: _copy(given, ReadableFuture, FUTURE_READ),
    "future.write": lambda given: _copy(given, WritableFuture, FUTURE_WRITE),
    "future.cancel-read": lambda given: _cancel_copy(given, ReadableFuture),
    "future.cancel-write": lambda given: _cancel_copy(given, WritableFuture),
    "future.drop-readable": lambda given: _drop(given, ReadableFuture),
    "future.drop-writable": lambda given: _drop(given, WritableFuture),
    "error-context.new": _error_context_new,
    "error-context.debug-message": _error_context_debug_message,
    "error-context.drop": _error_context_drop,
}
