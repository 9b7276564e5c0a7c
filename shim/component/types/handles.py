"""Resources, streams and futures: what crosses the boundary as a number in a table (library).

CanonicalABI.md, "Resource State", and `lift_own` to `lower_future`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from shim.component.errors import Trap
from shim.component.types.base import MASK, Context, Flat, ValueType

if TYPE_CHECKING:
    from shim.component.instance import ComponentInstance

_NUMBER: Final = struct.Struct("<I")
_load_number: Final = _NUMBER.unpack_from
_store_number: Final = _NUMBER.pack_into


class Resource:
    """A type of resources, the same one only as this very object.

    `drop` destroys what one is represented by. One that a component defines belongs to an instance,
    its `owner`, and is represented by a number.
    """

    __slots__ = ("drop", "name", "owner")

    def __init__(
        self,
        name: str,
        drop: Callable[[Any], None] | None = None,
        owner: ComponentInstance | None = None,
    ) -> None:
        self.name = name
        self.drop = drop
        self.owner = owner

    def __str__(self) -> str:
        return self.name


class _Number(ValueType):
    """What is passed as a number of the instance's table."""

    __slots__ = ()

    def _lifted(self, context: Context, number: int) -> Any:
        raise NotImplementedError

    def _lowered(self, context: Context, value: Any) -> int:
        raise NotImplementedError

    def load(self, context: Context, start: int) -> Any:
        return self._lifted(context, _load_number(context.view, start)[0])

    def store(self, context: Context, value: Any, start: int) -> None:
        number = self._lowered(context, value)
        _store_number(context.view, start, number)

    def lift(self, context: Context, flat: Flat) -> Any:
        return self._lifted(context, next(flat) & MASK)

    def lower(self, context: Context, value: Any, flat: list[Any]) -> None:
        flat.append(self._lowered(context, value))


class Own(_Number):
    """A resource that is handed over."""

    __slots__ = ("resource",)

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self._lay_out(4, 4, ("i32",))

    def __str__(self) -> str:
        return f"own<{self.resource}>"

    def parts(self) -> Sequence[object]:
        return (self.resource,)

    def _lifted(self, context: Context, number: int) -> Any:
        return context.instance.table.take_own(number, self.resource)

    def _lowered(self, context: Context, value: Any) -> int:
        return context.instance.table.add_own(self.resource, value)


class Borrow(_Number):
    """A resource that is lent for a call."""

    __slots__ = ("resource",)

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self._lay_out(4, 4, ("i32",), has_borrow=True)

    def __str__(self) -> str:
        return f"borrow<{self.resource}>"

    def parts(self) -> Sequence[object]:
        return (self.resource,)

    def _lifted(self, context: Context, number: int) -> Any:
        handle = context.instance.table.resource(number, self.resource)
        if context.scope is not None:
            context.scope.lend(handle)
        return handle.representation

    def _lowered(self, context: Context, value: Any) -> int:
        if self.resource.owner is context.instance:
            number: int = value
            return number
        if context.scope is None:
            raise Trap("nobody answers for a borrow")
        return context.instance.table.add_borrow(self.resource, value, context.scope)


class _Transferred(_Number):
    """The readable end of something, which is handed over."""

    __slots__ = ("element",)

    _word = ""

    def __init__(self, element: ValueType | None) -> None:
        self.element = element
        self._lay_out(4, 4, ("i32",))

    def __str__(self) -> str:
        return self._word if self.element is None else f"{self._word}<{self.element}>"

    def parts(self) -> Sequence[object]:
        return (self.element,)


class Stream(_Transferred):
    """A stream of values, or of nothing."""

    __slots__ = ()
    _word = "stream"

    def _lifted(self, context: Context, number: int) -> Any:
        return context.instance.table.take_stream(number, self)

    def _lowered(self, context: Context, value: Any) -> int:
        return context.instance.table.add_stream(value)


class Future(_Transferred):
    """A value to come, or the news that it is time."""

    __slots__ = ()
    _word = "future"

    def _lifted(self, context: Context, number: int) -> Any:
        return context.instance.table.take_future(number, self)

    def _lowered(self, context: Context, value: Any) -> int:
        return context.instance.table.add_future(value)


class ErrorContextType(_Number):
    """What is told of an error, for whom it may concern."""

    __slots__ = ()

    def __init__(self) -> None:
        self._lay_out(4, 4, ("i32",))

    def __str__(self) -> str:
        return "error-context"

    def parts(self) -> Sequence[object]:
        return ()

    def _lifted(self, context: Context, number: int) -> Any:
        return context.instance.table.error_context(number)

    def _lowered(self, context: Context, value: Any) -> int:
        return context.instance.table.add(value)
