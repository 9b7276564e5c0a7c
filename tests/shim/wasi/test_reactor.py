"""Waiting for descriptors and moments."""

from __future__ import annotations

import os
import select
import weakref
from collections.abc import Iterator
from time import monotonic_ns

import pytest

from shim.wasi.reactor import Reactor


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_nothing_to_wait_for() -> None:
    assert not Reactor().wait(block=True)
    assert not Reactor().wait(block=False)


def test_a_descriptor(pipe: tuple[int, int]) -> None:
    reactor, called = Reactor(), list[str]()
    reactor.watch(pipe[0], select.POLLIN, lambda: called.append("read"))
    assert reactor.wait(block=False)
    assert called == []
    os.write(pipe[1], b"x")
    assert reactor.wait(block=True)
    assert called == ["read"]
    assert not reactor.wait(block=True)  # it was for once


def test_both_directions_of_one(pipe: tuple[int, int]) -> None:
    reactor, called = Reactor(), list[str]()
    reactor.watch(pipe[1], select.POLLIN, lambda: called.append("read"))
    reactor.watch(pipe[1], select.POLLOUT, lambda: called.append("write"))
    reactor.wait(block=True)
    assert called == ["write"]
    assert reactor.wait(block=False)  # for the other one


def test_two_that_wait_for_one(pipe: tuple[int, int]) -> None:
    reactor, called = Reactor(), list[str]()
    forget = reactor.watch(pipe[1], select.POLLOUT, lambda: called.append("first"))
    reactor.watch(pipe[1], select.POLLOUT, lambda: called.append("second"))
    forget()
    forget()  # which changes nothing
    reactor.wait(block=True)
    assert called == ["second"]


def test_who_is_called_may_forget_another(pipe: tuple[int, int]) -> None:
    reactor, called = Reactor(), list[str]()

    def first() -> None:
        called.append("first")
        forget_second()

    reactor.watch(pipe[1], select.POLLOUT, first)
    forget_second = reactor.watch(pipe[1], select.POLLOUT, lambda: called.append("second"))
    reactor.wait(block=True)
    assert called == ["first"]


def test_the_end_of_the_other_side(pipe: tuple[int, int]) -> None:
    reactor, called = Reactor(), list[str]()
    writer = os.dup(pipe[1])
    reactor.watch(pipe[0], select.POLLIN, lambda: called.append("end"))
    os.close(writer)
    reader, other = os.pipe()
    os.close(other)
    reactor.watch(reader, select.POLLIN, lambda: called.append("over"))
    reactor.wait(block=True)
    os.close(reader)
    assert called == ["over"]


def test_moments_in_their_order() -> None:
    reactor, called, now = Reactor(), list[int](), monotonic_ns()
    for after in (3, 1, 2):
        reactor.at(now + after * 1_000_000, lambda after=after: called.append(after))  # type: ignore[misc]
    while reactor.wait(block=True):
        pass
    assert called == [1, 2, 3]
    assert monotonic_ns() >= now + 3_000_000


def test_a_moment_that_is_forgotten() -> None:
    reactor, called = Reactor(), list[str]()
    forget = reactor.at(monotonic_ns() + 1_000_000, lambda: called.append("never"))
    forget()
    assert not reactor.wait(block=True)
    assert called == []


def test_what_is_awaited_yields_how_to_be_called_back(pipe: tuple[int, int]) -> None:
    reactor = Reactor()

    async def wait() -> str:
        await reactor.until(monotonic_ns() - 1)  # it has passed: nothing to wait for
        await reactor.ready(pipe[1], select.POLLOUT)
        return "done"

    coroutine, called = wait(), list[bool]()
    coroutine.send(None)(lambda: called.append(True))
    reactor.wait(block=True)
    assert called == [True]
    with pytest.raises(StopIteration, match="done"):
        coroutine.send(None)


def test_what_is_forgotten_is_not_kept() -> None:
    reactor, called, alive = Reactor(), list[str](), weakref.WeakSet[Callback]()
    soon = monotonic_ns()
    reactor.at(soon, lambda: called.append("first"))
    for _ in range(1000):
        callback = Callback()
        alive.add(callback)
        reactor.at(soon + 10**15, callback)()
    del callback
    assert len(alive) < 10
    reactor.at(soon, lambda: called.append("second"))
    while len(called) < 2:
        assert reactor.wait(block=True)
    assert called == ["first", "second"]
    assert not reactor.wait(block=False)


class Callback:
    def __call__(self) -> None:
        raise AssertionError("it is forgotten")
