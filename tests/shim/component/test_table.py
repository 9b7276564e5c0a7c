"""What a guest knows by numbers: handles of resources, their lending, ends of streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shim.component import table
from shim.component.calls import Subtask
from shim.component.errors import Trap
from shim.component.instance import ComponentInstance
from shim.component.intrinsics import Given, make
from shim.component.streams import DONE, ReadableStream, SharedFuture, SharedStream, WritableStream
from shim.component.table import ErrorContext, Handle, Table
from shim.component.tasks import Runtime
from shim.component.types import U8, U16, Borrow, ErrorContextType, Future, Own, Resource, Stream
from shim.component.types.base import Context
from shim.component.waitables import WaitableSet
from tests.shim.component.contexts import passed

THING = Resource("thing")
OTHER = Resource("other")


def trap(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(Trap) as caught:
        call(*args)
    return str(caught.value)


def context(scope: Any = None) -> Context:
    return Context(ComponentInstance(), scope=scope)


class Tables(RuleBasedStateMachine):
    """A table is a dictionary whose numbers are as small as can be."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.model: dict[int, object] = {}
        self.most = 0

    @rule()
    def add(self) -> None:
        thing = object()
        number = self.table.add(thing)
        assert number > 0
        assert number not in self.model
        self.model[number] = thing
        self.most = max(self.most, len(self.model))
        assert number <= self.most

    @rule(number=st.integers(0, 20))
    def remove(self, number: int) -> None:
        if number in self.model:
            assert self.table.remove(number) is self.model.pop(number)
        else:
            assert trap(self.table.remove, number) == f"unknown handle index {number}"

    @invariant()
    def all_are_there(self) -> None:
        for number in range(self.most + 2):
            if number in self.model:
                assert self.table.get(number) is self.model[number]
            else:
                assert trap(self.table.get, number) == f"unknown handle index {number}"


TestTables = Tables.TestCase


def test_a_number_given_back_last_is_given_out_first() -> None:
    numbers = Table()
    assert [numbers.add(object()) for _ in range(3)] == [1, 2, 3]
    numbers.remove(1)
    numbers.remove(3)
    assert [numbers.add(object()) for _ in range(3)] == [3, 1, 4]


def test_there_is_an_end_to_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_LENGTH", 2)
    numbers = Table()
    numbers.add(object())
    numbers.add(object())
    assert trap(numbers.add, object()) == "too many handles"


def test_a_resource_is_of_its_type_and_there_once() -> None:
    place = context()
    number = place.instance.table.add_own(THING, "it")
    assert "is of thing, not other" in trap(Own(OTHER).lift, place, iter([number]))
    assert Own(THING).lift(place, iter([number])) == "it"
    assert "unknown handle" in trap(Own(THING).lift, place, iter([number]))
    group = place.instance.table.add(WaitableSet())
    assert "is no resource" in trap(Own(THING).lift, place, iter([group]))
    for number in (0, -1, 2**31):
        assert "unknown handle" in trap(Own(THING).lift, place, iter([number]))


def test_what_is_lent_stays_until_the_call_is_over() -> None:
    subtask = Subtask()
    place = context(subtask)
    numbers = place.instance.table
    number = numbers.add_own(THING, "it")
    drop = make("resource.drop", Given(Runtime(), place, THING))
    # Twice in one call.
    assert Borrow(THING).lift(place, iter([number])) == "it"
    assert Borrow(THING).lift(place, iter([number])) == "it"
    assert "it is lent" in trap(Own(THING).lift, place, iter([number]))
    assert "it is lent" in trap(drop, number)
    subtask.deliver()
    assert Own(THING).lift(place, iter([number])) == "it"


class Callee:
    """A call that is lent something."""

    borrows = 0

    def lend(self, handle: Handle) -> None:
        """Nothing."""


def test_who_is_lent_something_may_lend_and_drop_it_but_not_keep_it() -> None:
    scope = Callee()
    place = context(scope)
    flat: list[int] = []
    Borrow(THING).lower(place, "it", flat)
    assert scope.borrows == 1
    assert Borrow(THING).lift(place, iter(flat)) == "it"
    assert "it is borrowed" in trap(Own(THING).lift, place, iter(flat))
    make("resource.drop", Given(Runtime(), place, THING))(flat[0])
    assert scope.borrows == 0
    assert "unknown handle" in trap(Borrow(THING).lift, place, iter(flat))
    assert trap(Borrow(THING).lower, context(), "it", flat) == "nobody answers for a borrow"


def test_who_defines_a_resource_sees_through_it() -> None:
    place = context()
    mine = Resource("mine", owner=place.instance)
    flat: list[int] = []
    Borrow(mine).lower(place, 42, flat)
    assert flat == [42]
    own = make("resource.new", Given(Runtime(), place, mine))(-1)
    assert make("resource.rep", Given(Runtime(), place, mine))(own) == 2**32 - 1


def test_dropping_the_last_handle_destroys_what_is_behind_it() -> None:
    destroyed: list[Any] = []
    place, other = context(), context()
    resource = Resource("thing", destroyed.append, place.instance)
    given = Given(Runtime(), other, resource)
    number = other.instance.table.add_own(resource, 7)
    make("resource.drop", given)(number)
    assert destroyed == [7]
    # Its owner is at work, and cannot be entered.
    place.instance.may_enter = False
    number = other.instance.table.add_own(resource, 8)
    assert trap(make("resource.drop", given), number) == "cannot enter component instance"
    other.instance.may_leave = False
    assert trap(make("resource.drop", given), number) == "cannot leave component instance"
    assert destroyed == [7]


def test_error_contexts() -> None:
    place = context()
    told = ErrorContext("why")
    assert passed(place, ErrorContextType(), told) is told
    number = place.instance.table.add_own(THING, "it")
    assert "is no error context" in trap(ErrorContextType().lift, place, iter([number]))


def test_only_an_end_that_is_idle_is_handed_over() -> None:
    place = context()
    numbers = place.instance.table
    shared = SharedStream(U8)
    assert passed(place, Stream(U8), shared) is shared
    end = ReadableStream(shared)
    number = numbers.add(end)
    lift = Stream(U8).lift
    assert "another type" in trap(Stream(U16).lift, place, iter([number]))
    assert "is no ReadableFuture" in trap(Future(U8).lift, place, iter([number]))
    end.join(WaitableSet())
    assert "it is in a waitable set" in trap(lift, place, iter([number]))
    end.join(None)
    end.state = DONE
    assert "it is in use, or at its end" in trap(lift, place, iter([number]))
    writable = numbers.add(WritableStream(shared))
    assert "is no ReadableStream" in trap(lift, place, iter([writable]))
    future = SharedFuture(None)
    assert passed(place, Future(None), future) is future
