"""Events of several waitables."""

from __future__ import annotations

import pytest

from shim.component.errors import Trap
from shim.component.waitables import Event, Waitable, WaitableSet


def happen(waitable: Waitable, number: int) -> None:
    def event() -> Event:
        return 1, number, 0

    waitable.happen(event)


class Waiter:
    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


def test_whoever_has_waited_for_longest_is_next() -> None:
    group, members = WaitableSet(), [Waitable() for _ in range(3)]
    waiter = Waiter()
    group.waiters.append(waiter)
    for member in members:
        member.join(group)
    assert not group.has_event
    for number in (2, 0):
        happen(members[number], number)
    assert waiter.woken == 2
    assert group.take_event() == (1, 2, 0)
    happen(members[2], 2)
    assert [group.take_event()[1] for _ in range(2)] == [0, 2]
    assert not group.has_event


def test_the_last_event_counts() -> None:
    group, member = WaitableSet(), Waitable()
    member.join(group)
    happen(member, 1)
    happen(member, 2)
    assert group.take_event() == (1, 2, 0)
    assert not group.has_event


def test_an_event_that_is_taken_otherwise() -> None:
    group, member = WaitableSet(), Waitable()
    member.join(group)
    happen(member, 1)
    assert member.take_event() == (1, 1, 0)
    assert not group.has_event


def test_an_event_moves_along() -> None:
    one, other, member = WaitableSet(), WaitableSet(), Waitable()
    member.join(one)
    happen(member, 1)
    member.join(other)
    assert (one.has_event, other.has_event) == (False, True)
    one.drop()
    with pytest.raises(Trap, match="members"):
        other.drop()
    member.drop()
    assert not other.has_event
    other.drop()
