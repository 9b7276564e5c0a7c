"""The table of an instance: what its guest knows by numbers (library; used in the guest).

CanonicalABI.md, "Table State" and "Resource State". Resources, waitables and sets of them share one
table. A number that nothing is behind, or something else, is a trap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shim.component.errors import Trap
from shim.component.streams import (
    IDLE,
    End,
    ReadableFuture,
    ReadableStream,
    Shared,
    check_type,
)

if TYPE_CHECKING:
    from shim.component.instance import Scope
    from shim.component.types import Future, Resource, Stream, ValueType

MAX_LENGTH: Final = (1 << 28) - 1


class Handle:
    """A resource in a table: its own, or lent to it for as long as `scope` lasts."""

    __slots__ = ("lends", "representation", "resource", "scope")

    def __init__(self, resource: Resource, representation: Any, scope: Scope | None = None) -> None:
        self.resource = resource
        self.representation = representation
        self.scope = scope
        self.lends = 0

    @property
    def own(self) -> bool:
        """Whether who has it may hand it on, and drops what is behind it."""
        return self.scope is None


class ErrorContext(NamedTuple):
    """What is told of an error."""

    message: str


class Table:
    """Things by number; 0 is none, and the number given back last is given out first."""

    __slots__ = ("_entries", "_free")

    def __init__(self) -> None:
        self._entries: list[Any] = [None]
        self._free: list[int] = []

    def add(self, thing: Any) -> int:
        """Enter something; return its number."""
        if self._free:
            number = self._free.pop()
            self._entries[number] = thing
            return number
        number = len(self._entries)
        if number > MAX_LENGTH:
            raise Trap("too many handles")
        self._entries.append(thing)
        return number

    def get(self, number: int) -> Any:
        """Return what is behind a number."""
        try:
            thing = self._entries[number]
        except IndexError:
            thing = None
        if thing is None:
            raise Trap(f"unknown handle index {number}")
        return thing

    def remove(self, number: int) -> Any:
        """Take something out; its number may be given out again."""
        thing = self.get(number)
        self._entries[number] = None
        self._free.append(number)
        return thing

    def resource(self, number: int, resource: Resource) -> Handle:
        """Return a handle of a resource of this type."""
        handle = self.get(number)
        if not isinstance(handle, Handle):
            raise Trap(f"handle index {number} is no resource")
        if handle.resource is not resource:
            raise Trap(f"handle index {number} is of {handle.resource}, not {resource}")
        return handle

    def take_own(self, number: int, resource: Resource) -> Any:
        """Take out a resource that is handed over; return what represents it."""
        handle = self.resource(number, resource)
        if handle.lends:
            raise Trap(f"cannot hand over handle index {number}: it is lent")
        if not handle.own:
            raise Trap(f"cannot hand over handle index {number}: it is borrowed")
        self.remove(number)
        return handle.representation

    def add_own(self, resource: Resource, representation: Any) -> int:
        """Enter a resource that was handed over."""
        return self.add(Handle(resource, representation))

    def add_borrow(self, resource: Resource, representation: Any, scope: Scope) -> int:
        """Enter a resource that is lent while `scope` lasts."""
        scope.borrows += 1
        return self.add(Handle(resource, representation, scope))

    def take_stream(self, number: int, kind: Stream) -> Any:
        """Take out the readable end of a stream; return what it shares with the other one."""
        return self._take_end(number, ReadableStream, kind.element)

    def add_stream(self, shared: Shared) -> int:
        """Enter the readable end of a stream."""
        return self.add(ReadableStream(shared))

    def take_future(self, number: int, kind: Future) -> Any:
        """Take out the readable end of a future; return what it shares with the other one."""
        return self._take_end(number, ReadableFuture, kind.element)

    def add_future(self, shared: Shared) -> int:
        """Enter the readable end of a future."""
        return self.add(ReadableFuture(shared))

    def _take_end(self, number: int, kind: type[End], element: ValueType | None) -> Shared:
        end = self.get(number)
        if type(end) is not kind:
            raise Trap(f"handle index {number} is no {kind.__name__}")
        check_type(end, element)
        if end.state != IDLE:
            raise Trap(f"cannot hand over handle index {number}: it is in use, or at its end")
        if end.group is not None:
            raise Trap(f"cannot hand over handle index {number}: it is in a waitable set")
        self.remove(number)
        return end.shared

    def error_context(self, number: int) -> ErrorContext:
        """Return an error context."""
        found = self.get(number)
        if not isinstance(found, ErrorContext):
            raise Trap(f"handle index {number} is no error context")
        return found
