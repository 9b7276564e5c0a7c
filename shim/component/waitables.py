"""What a guest can wait for: events of subtasks, streams and futures (library; in the guest).

CanonicalABI.md, "Waitable State". An event is made when it is delivered, not when it happens: what
happens until then it tells, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from shim.component.errors import Trap

NONE: Final = 0
SUBTASK: Final = 1
STREAM_READ: Final = 2
STREAM_WRITE: Final = 3
FUTURE_READ: Final = 4
FUTURE_WRITE: Final = 5
TASK_CANCELLED: Final = 6

Event: TypeAlias = tuple[int, int, int]
"""A code, the number of what it is about, and what there is to say."""


class Waiter(Protocol):
    """Who waits for an event of a set."""

    def wake(self) -> None:
        """Look whether there is one, as soon as nothing else runs."""


class Waitable:
    """Something that events happen to; of several the last one counts."""

    __slots__ = ("_event", "group", "has_sync_waiter")

    def __init__(self) -> None:
        self._event: Callable[[], Event] | None = None
        self.group: WaitableSet | None = None
        self.has_sync_waiter = False

    @property
    def has_event(self) -> bool:
        """Whether an event waits to be delivered."""
        return self._event is not None

    def happen(self, event: Callable[[], Event]) -> None:
        """Have an event, which `event` makes when it is delivered."""
        self._event = event
        if self.group is not None:
            self.group.happen(self)

    def take_event(self) -> Event:
        """Deliver the event."""
        event, self._event = self._event, None
        assert event is not None
        if self.group is not None:
            del self.group.happened[self]
        return event()

    def join(self, group: WaitableSet | None) -> None:
        """Leave the set it is in for another one, or for none."""
        if self.group is not None:
            self.group.members -= 1
            self.group.happened.pop(self, None)
        self.group = group
        if group is not None:
            group.members += 1
            if self.has_event:
                group.happen(self)

    def drop(self) -> None:
        """Be no more."""
        self.join(None)


class WaitableSet:
    """Waitables of which a task wants to know whatever happens first.

    `members` is how many they are. There may be many to which nothing happens for long, so those
    with an event are kept apart, in the order in which they got it.
    """

    __slots__ = ("happened", "members", "waiters")

    def __init__(self) -> None:
        self.members = 0
        self.happened: OrderedDict[Waitable, None] = OrderedDict()
        self.waiters: list[Waiter] = []

    @property
    def has_event(self) -> bool:
        """Whether something has happened to one of them."""
        return bool(self.happened)

    def take_event(self) -> Event:
        """Deliver the event that has waited for longest."""
        return next(iter(self.happened)).take_event()

    def happen(self, member: Waitable) -> None:
        """Know of a member's event, and tell those who wait."""
        self.happened[member] = None
        for waiter in self.waiters:
            waiter.wake()

    def drop(self) -> None:
        """Be no more. Raises Trap while somebody needs it."""
        if self.members:
            raise Trap("cannot drop a waitable set that has members")
        if self.waiters:
            raise Trap("cannot drop a waitable set that somebody waits for")
