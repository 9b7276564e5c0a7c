"""Guests that call built-ins, and one another, in any order: a trap at most, and handles add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from shim.component.calls import Subtask, lowered
from shim.component.errors import Trap
from shim.component.instance import ComponentInstance
from shim.component.intrinsics import Given, make
from shim.component.streams import End, ReadableFuture, ReadableStream
from shim.component.table import Handle
from shim.component.tasks import RESOLVED, Lifted, Runtime
from shim.component.types import STRING, U8, U32, Borrow, Future, Own, Resource, Stream, ValueType
from shim.component.types.base import Context, FunctionType
from shim.component.waitables import WaitableSet
from tests.fuzz.source import Source
from tests.shim.component.contexts import Memory

SEEDS = [
    bytes(range(64)),
    # streams: new, handed over, written, read
    b"\0\x0b\0\0\x0d\1\0\0\x08\2\0\1\x0c\0\0\x08\1",
    # calls that yield, and are cancelled
    b"\0\x19\2\0\1\1\0\x1b\0\1\1\1\0\x06\1\0\x1a\0\0",
]
_DEPTH = 6
_THINGS = (STRING, U8, U32, None)
_NUMBERS = [
    "subtask.cancel",
    "subtask.drop",
    "waitable-set.drop",
    "resource.rep",
    "resource.drop",
    "thread.resume-later",
    "thread.yield-then-resume",
]
_PLAIN = [
    "waitable-set.new",
    "task.cancel",
    "backpressure.inc",
    "backpressure.dec",
    "thread.yield",
    "thread.index",
    "thread.suspend",
]


class _World:
    """Two instances side by side, one in the first of them, and all that they share."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.runtime = Runtime()
        self.depth = self.entered = 0
        first = _Guest(self, None)
        self.guests = [first, _Guest(self, None), _Guest(self, first.context.instance)]
        owner = self.guests[1]
        self.resources = [
            Resource("of the host", lambda thing: None),
            Resource("of a guest", owner.destroy, owner.context.instance),
        ]
        streams = [Stream(kind) for kind in _THINGS]
        futures = [Future(kind) for kind in _THINGS]
        handed: list[ValueType] = [U8, STRING, *streams, *futures]
        for resource in self.resources:
            handed += [Own(resource), Borrow(resource)]
        self.ends: Sequence[Stream | Future] = [*streams, *futures]
        self.functions = [
            guest.function(kind, is_async, how)
            for guest in self.guests
            for kind in handed
            for is_async in (False, True)
            for how in range(3 if is_async else 1)
        ]


class _Guest:
    """An instance whose code is what the fuzzer says."""

    def __init__(self, world: _World, parent: ComponentInstance | None) -> None:
        self.world = world
        self.memory = Memory(1 << 12, 1 << 8)
        self.context = Context(ComponentInstance(parent), self.memory.view, self._realloc)
        for _ in range(2):
            self.context.instance.table.add(WaitableSet())

    def _realloc(self, *asked: int) -> int:
        if self.memory.free > 1 << 11:
            self.memory.free = 1 << 8
        return self.memory.realloc(*asked)

    def destroy(self, _: int) -> None:
        """Be a destructor."""
        self.work()

    def function(self, kind: ValueType, is_async: bool, how: int) -> Lifted:
        """Make a function that takes a value, and maybe returns a number."""
        result = U32 if is_async else None
        return Lifted(
            self.world.runtime,
            FunctionType([("x", kind)], result, is_async),
            self.returning if how == 0 else self.core,
            self.context,
            callback=self.core if how == 2 else None,
            is_async=how > 0,
        )

    def returning(self, *_: int) -> int:
        """Work, and return a number."""
        self.work()
        return 7

    def core(self, *_: int) -> int:
        """Work, and say what to wait for."""
        self.work()
        source = self.world.source
        code = source.number() % 3
        task = self.world.runtime.current
        if task is not None and task.state != RESOLVED:
            is_end = code == 0 or task.function.callback is None
            if is_end and source.number() % 8:
                self.built_in("task.return", type=U32)(7)
        return code | self.number(WaitableSet) << 4

    def work(self) -> None:
        """Call built-ins, and functions."""
        world = self.world
        world.entered += 1
        world.depth += 1
        for _ in range(world.source.number() % 16 if world.depth < _DEPTH else 0):
            entered = world.entered
            try:
                self.step()
            except Trap:
                # All ends with a trap, but the fuzzer would not get far. So one does not count that
                # was about a built-in itself.
                if world.entered != entered:
                    raise
        world.depth -= 1

    def number(self, *kinds: type[Any]) -> int:
        """Choose a handle, which may be none."""
        return self.choose(lambda entry: isinstance(entry, kinds))

    def choose(self, fits: Callable[[Any], bool]) -> int:
        """Choose a handle of something that fits, or maybe none."""
        fitting = [n for n, entry in enumerate(self.entries) if entry is not None and fits(entry)]
        choice = self.world.source.number()
        return fitting[choice % len(fitting)] if fitting and choice < 250 else choice % 8

    @property
    def entries(self) -> list[Any]:
        """What it has handles of."""
        return self.context.instance.table._entries

    def built_in(self, name: str, **about: Any) -> Callable[..., Any]:
        """Make a built-in."""
        return make(name, Given(self.world.runtime, self.context, **about))

    def step(self) -> None:
        """Do one thing."""
        world, source = self.world, self.world.source
        flag = source.number() % 2 > 0
        choice = source.number() % 12
        if choice == 0:
            self.built_in(source.choice(_PLAIN), flag=flag)()
        elif choice == 1:
            resource = source.choice(world.resources)
            number = self.number(Handle, Subtask, WaitableSet)
            self.built_in(source.choice(_NUMBERS), flag=flag, resource=resource)(number)
        elif choice == 2:
            resource = world.resources[1]
            self.context.instance.table.add_own(resource, 3)
        elif choice == 3:
            self.context.instance.table.add_own(world.resources[0], object())
        elif choice == 4:
            joined = self.number(End, Subtask), self.number(WaitableSet) if flag else 0
            self.built_in("waitable.join")(*joined)
        elif choice == 5:
            name = source.choice(("waitable-set.poll", "waitable-set.wait"))
            self.built_in(name)(self.number(WaitableSet), 8 * source.number())
        elif choice == 6:
            self.built_in("task.return", type=U32)(source.number())
        elif choice < 10:
            self.copy(flag)
        else:
            self.call(flag)

    def copy(self, flag: bool) -> None:
        """Do something with the end of a stream or a future."""
        source = self.world.source
        number = self.number(End)
        end = self.entries[number] if number < len(self.entries) else None
        if not isinstance(end, End) or source.number() > 200:
            kind = source.choice(self.world.ends)
            self.built_in(f"{_word(kind)}.new", type=kind)()
            return
        readable = isinstance(end, (ReadableStream, ReadableFuture))
        kinds = [kind for kind in self.world.ends if kind.element is end.shared.type]
        kind = kinds[0 if end.shared.is_stream else -1]
        verb = source.choice(("", "", "cancel-", "drop-"))
        if verb == "drop-":
            self.built_in(f"{_word(kind)}.drop-{'read' if readable else 'writ'}able", type=kind)(
                number
            )
            return
        verb += "read" if readable else "write"
        args = [number]
        if not verb.startswith("cancel"):
            args += [8 * source.number(), source.number() % 5][: 2 if end.shared.is_stream else 1]
        before = end.state
        try:
            self.built_in(f"{_word(kind)}.{verb}", type=kind, flag=flag)(*args)
        finally:
            self.world.entered += end.state != before  # something was done

    def call(self, flag: bool) -> None:
        """Call a function with something of its type."""
        world = self.world
        callee = world.source.choice(world.functions)
        is_async = flag and callee.type.is_async
        kind = callee.type.params[0][1]
        args = [self.choose(lambda entry: _fits(entry, kind))]
        args += [world.source.number()] * (len(callee.type.flat_params) - 1)
        if is_async:
            args.append(64)
        lowered(world.runtime, callee, self.context, is_async=is_async)(*args)


def _word(kind: Stream | Future) -> str:
    return "stream" if isinstance(kind, Stream) else "future"


def _fits(entry: Any, kind: ValueType) -> bool:
    """Tell whether something may be passed as a value of a type."""
    if isinstance(kind, (Own, Borrow)):
        return isinstance(entry, Handle) and entry.resource is kind.resource
    if isinstance(kind, (Stream, Future)):
        readable = ReadableStream if isinstance(kind, Stream) else ReadableFuture
        return isinstance(entry, readable) and entry.shared.type is kind.element
    return False


def fuzz(data: bytes) -> None:
    """Have the host start a few calls, and run what is to be run."""
    world = _World(Source(data))
    runtime = world.runtime
    simple = [each for each in world.functions if each.type.params[0][1] is U8]
    with suppress(Trap):
        for _ in range(8):
            if not world.source:
                break
            callee = world.source.choice(simple)
            callee.start(None, lambda: [1], lambda *_: None)
            while runtime._run_one():
                pass
    _check(world)


def _check(world: _World) -> None:
    """Raise AssertionError unless what is lent is counted."""
    for guest in world.guests:
        for entry in guest.context.instance.table._entries:
            if isinstance(entry, Handle):
                assert entry.lends >= 0
                assert entry.scope is None or entry.scope.borrows >= 0
