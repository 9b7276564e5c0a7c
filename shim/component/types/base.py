"""What all value types share, the context they are lifted in, and functions (library).

CanonicalABI.md, "Alignment", "Element Size", "Flattening", "Lifting and Lowering Context". Pointers
are of 32 bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from shim.component.errors import Trap

if TYPE_CHECKING:
    from shim.component.instance import ComponentInstance, Scope

MASK: Final = 0xFFFFFFFF
MAX_FLAT_PARAMS: Final = 16
MAX_FLAT_ASYNC_PARAMS: Final = 4
MAX_FLAT: Final = MAX_FLAT_PARAMS + 1
"""How many core values of a type are counted: more than may be passed are as good as all."""
MAX_BYTES: Final = (1 << 28) - 1
"""Of a string, or a list."""

Flat: TypeAlias = Iterator[Any]  # core values, integers in either sign
Realloc: TypeAlias = Callable[[int, int, int, int], int]


class Context:
    """Memory, allocator and handles that values are lifted from and lowered to.

    `memory` returns a view of all the memory there is now; a view once fetched is never wrong, only
    short. `scope` is who answers for the borrows of a call; without one they are not counted, which
    is enough where the guest cannot run before the call is over.
    """

    __slots__ = ("_realloc", "encoding", "instance", "memory", "scope", "view")

    def __init__(
        self,
        instance: ComponentInstance,
        memory: Callable[[], memoryview] | None = None,
        realloc: Realloc | None = None,
        encoding: str = "utf8",
        scope: Scope | None = None,
    ) -> None:
        self.instance = instance
        self.memory = memory
        self._realloc = realloc
        self.encoding = encoding
        self.scope = scope
        self.view = memoryview(b"")

    def scoped(self, scope: Scope) -> Context:
        """Return the same for a call that answers for its borrows."""
        other = Context(self.instance, self.memory, self._realloc, self.encoding, scope)
        other.view = self.view
        return other

    def lifts_like(self, other: Context) -> bool:
        """Tell whether core values mean the same there as here, as far as there is a memory."""
        if self.encoding != other.encoding:
            return False
        if self.memory is None or self.memory is other.memory:
            return True
        # They may be two names of one memory.
        return other.memory is not None and _address(self.memory()) == _address(other.memory())

    def reach(self, start: int, size: int, alignment: int = 1) -> memoryview:
        """Return a view of the memory in which this range lies. Raises Trap."""
        end = start + size
        view = self.view
        if end > len(view):
            if self.memory is not None:
                view = self.view = self.memory()
            if end > len(view):
                raise Trap(f"{size} bytes at {start:#x} are outside of the memory")
        if start % alignment:
            raise Trap(f"{start:#x} is not aligned to {alignment}")
        return view

    def allocate(self, size: int, alignment: int) -> int:
        """Have the guest make room. Raises Trap if what it returns is none."""
        if self._realloc is None:
            raise Trap("no `realloc` to make room with")
        # Nothing may leave the instance meanwhile.
        instance = self.instance
        instance.may_leave = False
        start = self._realloc(0, 0, alignment, size) & MASK
        instance.may_leave = True
        self.reach(start, size, alignment)
        return start


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) if view else 0


class ValueType:
    """A type of values.

    `flat` are the core types that a value is passed as, cut off at `MAX_FLAT`.
    """

    __slots__ = ("alignment", "flat", "has_borrow", "size")

    size: int
    alignment: int
    flat: tuple[str, ...]
    has_borrow: bool

    def _lay_out(
        self, size: int, alignment: int, flat: Sequence[str], has_borrow: bool = False
    ) -> None:
        self.size, self.alignment, self.flat = size, alignment, tuple(flat[:MAX_FLAT])
        self.has_borrow = has_borrow

    def parts(self) -> Sequence[object]:
        """Return what makes two types of this kind differ: types, labels, numbers, resources."""
        raise NotImplementedError

    def load(self, context: Context, start: int) -> Any:
        """Read a value from memory, whose own bytes are known to be there and aligned."""
        raise NotImplementedError

    def store(self, context: Context, value: Any, start: int) -> None:
        """Write a value to memory that is known to be there and aligned."""
        raise NotImplementedError

    def lift(self, context: Context, flat: Flat) -> Any:
        """Make a value of the next core values."""
        raise NotImplementedError

    def lower(self, context: Context, value: Any, flat: list[Any]) -> None:
        """Append a value's core values."""
        raise NotImplementedError

    def load_list(self, context: Context, start: int, length: int) -> Any:
        """Read values that lie one after another."""
        size = self.size
        return [self.load(context, start + index * size) for index in range(length)]

    def store_list(self, context: Context, values: Sequence[Any], start: int) -> None:
        """Write values one after another."""
        size = self.size
        for index, value in enumerate(values):
            self.store(context, value, start + index * size)


def same(one: object, other: object) -> bool:
    """Tell whether two types, or parts of them, are equal: resources only as the same object."""
    if one is other:
        return True
    if isinstance(one, ValueType) and isinstance(other, type(one)):
        mine, theirs = one.parts(), other.parts()
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    return isinstance(one, (str, int)) and one == other


class Core(NamedTuple):
    """The type of a core function, in the names of wasm's types."""

    params: tuple[str, ...]
    results: tuple[str, ...]


def aligned(position: int, alignment: int) -> int:
    """Return the first aligned position from this one on."""
    return -(-position // alignment) * alignment


class FunctionType:
    """The type of a component's function: parameters by name, and a result."""

    __slots__ = (
        "flat_params",
        "flat_result",
        "has_borrow",
        "is_async",
        "params",
        "result",
        "spilt",
    )

    def __init__(
        self,
        params: Sequence[tuple[str, ValueType]],
        result: ValueType | None = None,
        is_async: bool = False,
    ) -> None:
        from shim.component.types.compound import Tuple

        self.params = tuple(params)
        self.result = result
        self.is_async = is_async
        self.has_borrow = any(kind.has_borrow for _, kind in params)
        flat: list[str] = []
        for _, kind in params:
            flat += kind.flat[: MAX_FLAT - len(flat)]
        self.flat_params = tuple(flat)
        self.flat_result: tuple[str, ...] = () if result is None else result.flat
        self.spilt = Tuple([kind for _, kind in params])
        """The parameters as they are passed in memory where they are too many."""

    def __str__(self) -> str:
        params = ", ".join([f"{name}: {kind}" for name, kind in self.params])
        result = "" if self.result is None else f" -> {self.result}"
        return f"{'async ' * self.is_async}func({params}){result}"

    def of_others(self, other: Callable[[ValueType], ValueType]) -> FunctionType:
        """Return the same type made of what `other` returns for each value type."""
        params = [(name, other(kind)) for name, kind in self.params]
        result = None if self.result is None else other(self.result)
        return FunctionType(params, result, self.is_async)

    def lowered(self, is_async: bool) -> Core:
        """Return the type of a core function that calls this one."""
        most = MAX_FLAT_ASYNC_PARAMS if is_async else MAX_FLAT_PARAMS
        params = self.flat_params if len(self.flat_params) <= most else ("i32",)
        if is_async:
            return Core((*params, "i32") if self.flat_result else params, ("i32",))
        if len(self.flat_result) > 1:
            return Core((*params, "i32"), ())
        return Core(params, self.flat_result)

    def lifted(self, is_async: bool, callback: bool) -> Core:
        """Return the type of a core function that implements this one."""
        params = self.flat_params if len(self.flat_params) <= MAX_FLAT_PARAMS else ("i32",)
        if is_async:
            return Core(params, ("i32",) if callback else ())
        return Core(params, self.flat_result if len(self.flat_result) <= 1 else ("i32",))

    def lift_params(self, context: Context, flat: Flat, most: int = MAX_FLAT_PARAMS) -> list[Any]:
        """Make the arguments of core values, or of what the only one points to."""
        if len(self.flat_params) > most:
            start = next(flat) & MASK
            spilt = self.spilt
            context.reach(start, spilt.size, spilt.alignment)
            return list(spilt.load(context, start))
        return [kind.lift(context, flat) for _, kind in self.params]

    def lower_params(self, context: Context, values: Sequence[Any]) -> list[Any]:
        """Make the core values that an implementation is called with."""
        flat: list[Any] = []
        if len(self.flat_params) > MAX_FLAT_PARAMS:
            spilt = self.spilt
            start = context.allocate(spilt.size, spilt.alignment)
            spilt.store(context, values, start)
            return [start]
        for (_, kind), value in zip(self.params, values, strict=True):
            kind.lower(context, value, flat)
        return flat

    def lift_result(self, context: Context, flat: Sequence[Any], most: int = 1) -> Any:
        """Make the result of what an implementation has returned: core values, or where it is."""
        if self.result is None:
            return None
        if len(self.flat_result) > most:
            start = flat[0] & MASK
            context.reach(start, self.result.size, self.result.alignment)
            return self.result.load(context, start)
        return self.result.lift(context, iter(flat))

    def lower_result(self, context: Context, value: Any, out: int | None) -> Any:
        """Write a result to where the caller wants it, `out`, or return its one core value."""
        if self.result is None:
            return None
        if out is not None:
            out &= MASK
            context.reach(out, self.result.size, self.result.alignment)
            self.result.store(context, value, out)
            return None
        flat: list[Any] = []
        self.result.lower(context, value, flat)
        return flat[0] if flat else None
