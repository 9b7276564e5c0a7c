"""Streams and futures: between guests, and with the host at one end or at both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.component.errors import Trap
from shim.component.intrinsics import Given, make
from shim.component.streams import (
    CANCELLED,
    COMPLETED,
    DROPPED,
    AnyBuffer,
    Promise,
    Shared,
    SharedFuture,
    SharedStream,
)
from shim.component.tasks import Runtime
from shim.component.types import STRING, U8, U32, Future, Stream, ValueType
from shim.component.types.base import MASK, Context
from tests.shim.component.contexts import Memory

BLOCKED = 0xFFFFFFFF


class Guest:
    """Who has built-ins, and a memory."""

    def __init__(self, element: ValueType | None = U8, word: str = "stream") -> None:
        self.memory = Memory()
        self.context = self.memory.context()
        self.table = self.context.instance.table
        self.runtime = Runtime()
        self.type = (Stream if word == "stream" else Future)(element)
        self.word = word

    def call(self, name: str, *args: int, is_async: bool = True) -> Any:
        """Call a built-in of streams, or futures."""
        given = Given(self.runtime, self.context, type=self.type, flag=is_async)
        return make(f"{self.word}.{name}", given)(*args)

    def new(self) -> tuple[int, int]:
        """Return a readable and a writable end."""
        both = self.call("new")
        return both & MASK, both >> 32

    def hand_over(self, number: int, to: Guest) -> int:
        """Give a readable end to another guest."""
        value = self.type.lift(self.context, iter([number]))
        flat: list[int] = []
        to.type.lower(to.context, value, flat)
        return flat[0]

    def receive(self, shared: Shared) -> int:
        """Return the number of a readable end of the host's."""
        flat: list[int] = []
        self.type.lower(self.context, shared, flat)
        return flat[0]

    def event(self, number: int) -> tuple[int, int, int]:
        """Return what has happened to an end."""
        found: tuple[int, int, int] = self.table.get(number).take_event()
        return found

    def trap(self, name: str, *args: int, is_async: bool = True) -> str:
        """Return why a built-in traps."""
        with pytest.raises(Trap) as caught:
            self.call(name, *args, is_async=is_async)
        return str(caught.value)


class Tap:
    """A source of what it is given."""

    def __init__(self, kind: ValueType | None = U8) -> None:
        self.shared = SharedStream(kind, self)
        self.values: list[Any] = []
        self.over = self.closed = False

    def give(self, buffer: AnyBuffer) -> int | None:
        """See `Source.give`."""
        if not self.values:
            return DROPPED if self.over else None
        count = min(buffer.remaining, len(self.values))
        taken, self.values = self.values[:count], self.values[count:]
        buffer.write(bytes(taken) if self.shared.type is U8 else taken)
        return COMPLETED

    def close(self) -> None:
        """See `Source.close`."""
        self.closed = True


class Basin:
    """A sink with room for so much."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.values: list[Any] = []
        self.full = self.closed = False

    def take(self, buffer: AnyBuffer) -> int | None:
        """See `Sink.take`."""
        if self.full:
            return DROPPED
        count = min(buffer.remaining, self.room)
        if not count:
            return None
        self.room -= count
        self.values += buffer.read(count)
        return COMPLETED

    def close(self) -> None:
        """See `Sink.close`."""
        self.closed = True


def two() -> tuple[Guest, int, Guest, int]:
    """Return who writes, and who reads."""
    writer, reader = Guest(), Guest()
    readable, writable = writer.new()
    return writer, writable, reader, writer.hand_over(readable, reader)


def test_who_comes_second_copies() -> None:
    writer, w, reader, r = two()
    writer.memory.bytes[:6] = b"abcdef"
    assert writer.call("write", w, 0, 6) == BLOCKED
    assert reader.call("read", r, 100, 4) == COMPLETED | 4 << 4
    # What happens before an event is delivered, it tells as well.
    assert reader.call("read", r, 104, 1) == COMPLETED | 1 << 4
    assert bytes(reader.memory.bytes[100:106]) == b"abcde\0"
    assert writer.event(w) == (3, w, COMPLETED | 5 << 4)
    assert reader.call("read", r, 100, 4) == BLOCKED
    assert writer.call("write", w, 0, 6) == COMPLETED | 4 << 4
    assert reader.event(r) == (2, r, COMPLETED | 4 << 4)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30))
def test_nothing_is_lost_between_guests(steps: list[tuple[bool, int]]) -> None:
    """Whoever is free reads or writes; what was read is a beginning of what was written."""
    writer, w, reader, r = two()
    writer.memory.bytes[:200] = bytes(range(200))
    written = read = 0
    got = b""

    def settle() -> None:
        nonlocal written, read, got
        if (end := writer.table.get(w)).has_event:
            written += end.take_event()[2] >> 4
        if (end := reader.table.get(r)).has_event:
            count = end.take_event()[2] >> 4
            got += bytes(reader.memory.bytes[500 : 500 + count])
            read += count

    for writes, length in steps:
        if writes and writer.table.get(w).state == 0:
            told = writer.call("write", w, written, length)
            written += 0 if told == BLOCKED else told >> 4
        elif not writes and reader.table.get(r).state == 0:
            told = reader.call("read", r, 500, length)
            if told != BLOCKED:
                got += bytes(reader.memory.bytes[500 : 500 + (told >> 4)])
                read += told >> 4
        settle()
        assert got == bytes(range(200))[:read]
        assert read == written


def test_a_dropped_end_is_told_with_what_was_copied_before() -> None:
    writer, w, reader, r = two()
    assert writer.call("write", w, 0, 6) == BLOCKED
    assert writer.trap("drop-writable", w).startswith("cannot drop an end")
    assert reader.call("read", r, 0, 2) == COMPLETED | 2 << 4
    reader.call("drop-readable", r)
    assert writer.event(w) == (3, w, DROPPED | 2 << 4)
    assert "at its end" in writer.trap("write", w, 0, 1)
    writer.call("drop-writable", w)
    assert "unknown handle" in writer.trap("write", w, 0, 1)
    writer, w, reader, r = two()
    writer.call("drop-writable", w)
    assert reader.call("read", r, 0, 1) == DROPPED


def test_a_copy_is_cancelled() -> None:
    writer, w, reader, r = two()
    assert "no copy to cancel" in writer.trap("cancel-write", w)
    assert writer.call("write", w, 0, 6) == BLOCKED
    assert writer.call("cancel-write", w) == CANCELLED
    assert writer.call("write", w, 0, 6) == BLOCKED
    assert reader.call("read", r, 0, 2) == COMPLETED | 2 << 4
    assert writer.call("cancel-write", w) == CANCELLED | 2 << 4
    assert reader.call("read", r, 0, 2) == BLOCKED
    writer.call("drop-writable", w)
    assert reader.call("cancel-read", r) == DROPPED


def test_a_buffer_has_to_lie_in_memory() -> None:
    writer = Guest(U32)
    _, w = writer.new()
    assert "not aligned to 4" in writer.trap("write", w, 2, 1)
    assert "are outside" in writer.trap("write", w, 4096, 1)
    assert "are outside" in writer.trap("write", w, -4, 1)
    assert "too long" in writer.trap("write", w, 0, -1)
    # Where nothing is copied it does not matter.
    assert writer.call("write", w, -1, 0) == BLOCKED


def test_who_is_there_is_asked_with_nothing() -> None:
    writer, w, reader, r = two()
    assert reader.call("read", r, 0, 0) == BLOCKED
    assert writer.call("write", w, 0, 0) == COMPLETED
    assert writer.call("write", w, 0, 3) == BLOCKED
    assert reader.event(r) == (2, r, COMPLETED)
    assert reader.call("read", r, 0, 3) == COMPLETED | 3 << 4


def test_within_an_instance_only_numbers_are_copied() -> None:
    for element, fine in ((U8, True), (None, True), (STRING, False)):
        guest = Guest(element)
        r, w = guest.new()
        assert guest.call("write", w, 0, 1) == BLOCKED
        if fine:
            assert guest.call("read", r, 64, 1) == COMPLETED | 1 << 4
        else:
            assert "cannot copy within" in guest.trap("read", r, 64, 1)


def test_nobody_waits_for_what_cannot_happen() -> None:
    guest = Guest()
    r, _ = guest.new()
    assert "cannot block" in guest.trap("read", r, 0, 1, is_async=False)


def test_the_wrong_end_or_type() -> None:
    guest, other = Guest(), Guest(U32)
    r, w = guest.new()
    assert "is no ReadableStream" in guest.trap("read", w, 0, 1)
    assert "is no WritableStream" in guest.trap("drop-writable", r)
    other.context.instance = guest.context.instance
    for name, *args in (("read", r, 0, 1), ("cancel-read", r), ("drop-readable", r)):
        assert "another type" in other.trap(name, *args)


# The host's ends.


def test_the_host_writes() -> None:
    guest, tap = Guest(), Tap()
    r = guest.receive(tap.shared)
    tap.values = list(b"abc")
    assert guest.call("read", r, 0, 2) == COMPLETED | 2 << 4
    assert guest.call("read", r, 2, 8) == COMPLETED | 1 << 4
    assert bytes(guest.memory.bytes[:4]) == b"abc\0"
    assert guest.call("read", r, 0, 8) == BLOCKED
    tap.values = list(b"d")
    tap.shared.resume()
    assert guest.event(r) == (2, r, COMPLETED | 1 << 4)
    assert guest.call("read", r, 0, 8) == BLOCKED
    assert guest.call("cancel-read", r) == CANCELLED
    tap.shared.resume()  # nobody waits
    assert guest.call("read", r, 0, 8) == BLOCKED
    tap.over = True
    tap.shared.resume()
    assert guest.event(r) == (2, r, DROPPED)
    assert not tap.closed
    guest.call("drop-readable", r)
    assert tap.closed


def test_the_host_reads() -> None:
    guest, basin = Guest(), Basin(4)
    r, w = guest.new()
    guest.memory.bytes[:6] = b"abcdef"
    # What was written before the host has the end is there when it has it.
    assert guest.call("write", w, 0, 3) == BLOCKED
    shared = guest.type.lift(guest.context, iter([r]))
    shared.attach(basin)
    assert guest.event(w) == (3, w, COMPLETED | 3 << 4)
    assert guest.call("write", w, 3, 3) == COMPLETED | 1 << 4
    assert guest.call("write", w, 4, 2) == BLOCKED
    basin.room = 9
    shared.resume()
    assert guest.event(w) == (3, w, COMPLETED | 2 << 4)
    assert bytes(basin.values) == b"abcdef"
    basin.full = True
    assert guest.call("write", w, 0, 1) == DROPPED
    guest.call("drop-writable", w)
    assert basin.closed


def test_the_host_is_told_of_a_writer_that_is_gone() -> None:
    guest, basin = Guest(), Basin()
    r, w = guest.new()
    shared = guest.type.lift(guest.context, iter([r]))
    guest.call("drop-writable", w)
    shared.attach(basin)
    assert basin.closed


def values(kind: ValueType | None) -> list[Any]:
    return list(range(200)) if kind is U8 else [str(number) for number in range(200)]


@pytest.mark.parametrize("kind", [U8, STRING], ids=str)
def test_the_host_reads_what_the_host_writes(kind: ValueType) -> None:
    tap, basin = Tap(kind), Basin(70)
    tap.values = values(kind)
    tap.shared.attach(basin)
    assert basin.values == values(kind)[:70]
    basin.room = 1000
    tap.shared.resume()
    assert basin.values == values(kind)
    assert not basin.closed
    tap.over = True
    tap.shared.resume()
    assert basin.closed
    tap.shared.resume()


def test_a_reader_that_has_enough_ends_the_writer() -> None:
    tap, basin = Tap(), Basin()
    tap.shared.attach(basin)
    basin.full = True
    tap.values = [1]
    tap.shared.resume()
    assert tap.closed


# Futures.


def test_a_future_is_written_once() -> None:
    writer, reader = Guest(U32, "future"), Guest(U32, "future")
    readable, w = writer.new()
    r = writer.hand_over(readable, reader)
    assert "was not written to" in writer.trap("drop-writable", w)
    assert reader.call("read", r, 0) == BLOCKED
    writer.memory.bytes[:4] = b"abcd"
    assert writer.call("write", w, 0) == COMPLETED
    assert reader.event(r) == (4, r, COMPLETED)
    assert bytes(reader.memory.bytes[:4]) == b"abcd"
    for guest, name, number in ((writer, "write", w), (reader, "read", r)):
        assert "at its end" in guest.trap(name, number, 0)
    writer.call("drop-writable", w)
    reader.call("drop-readable", r)


def test_nobody_wants_a_future() -> None:
    guest = Guest(U32, "future")
    r, w = guest.new()
    guest.call("drop-readable", r)
    assert guest.call("write", w, 0) == DROPPED
    guest.call("drop-writable", w)


def test_a_copy_of_a_future_is_cancelled() -> None:
    guest = Guest(None, "future")
    r, w = guest.new()
    assert guest.call("read", r, 0) == BLOCKED
    assert guest.call("cancel-read", r) == CANCELLED
    assert guest.call("write", w, 0) == BLOCKED
    assert guest.call("read", r, 0) == COMPLETED
    # It was over before.
    assert guest.call("cancel-write", w) == COMPLETED


def test_a_promise_of_the_host() -> None:
    for early in (True, False):
        guest, promise = Guest(STRING, "future"), Promise(STRING)
        r = guest.receive(promise.future)
        if early:
            promise.keep("yes")
        assert guest.call("read", r, 0) == (COMPLETED if early else BLOCKED)
        promise.keep("yes")
        promise.keep("no")
        if not early:
            assert guest.event(r) == (4, r, COMPLETED)
        assert STRING.load(guest.context, 0) == "yes"
        guest.call("drop-readable", r)


def test_the_host_reads_a_future() -> None:
    guest, basin = Guest(STRING, "future"), Basin(1)
    r, w = guest.new()
    STRING.store(guest.context, "yes", 0)
    assert guest.call("write", w, 0) == BLOCKED
    guest.type.lift(guest.context, iter([r])).attach(basin)
    assert guest.event(w) == (5, w, COMPLETED)
    assert basin.values == ["yes"]


def test_the_host_reads_its_own_promise_once() -> None:
    promise, basin = Promise(STRING), Basin(10)
    promise.future.attach(basin)
    assert basin.values == []
    promise.keep("yes")
    assert (basin.values, basin.closed) == (["yes"], True)
    promise.future.resume()
    assert basin.values == ["yes"]


def test_a_promise_that_nobody_wants() -> None:
    promise = Promise(U8)
    guest = Guest(U8, "future")
    guest.call("drop-readable", guest.receive(promise.future))
    promise.keep(1)
    assert isinstance(promise.future, SharedFuture)


def ask(context: Context) -> Callable[..., Any]:
    return make("stream.new", Given(Runtime(), context, type=Stream(U8)))


def test_nothing_is_made_while_nothing_may_leave() -> None:
    guest = Guest()
    guest.context.instance.may_leave = False
    with pytest.raises(Trap, match="cannot leave component instance"):
        ask(guest.context)()
