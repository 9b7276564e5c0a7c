"""Waiting for the kernel and for moments, while tasks of a component run (library; in the guest).

What an async function of the host awaits is from here: it yields how to be called back
(`shim.component.calls.Subscribe`).
"""

from __future__ import annotations

import heapq
import itertools
import select
from collections.abc import Callable, Generator
from time import monotonic_ns
from typing import TypeAlias

from shim.wasi.waiting import milliseconds

Callback: TypeAlias = Callable[[], None]
Subscribe: TypeAlias = Callable[[Callback], Callback]


class Reactor:
    """Calls back when a descriptor is ready, or a time has come: each time once."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._watches: dict[int, list[tuple[int, Callback]]] = {}
        self._timers: list[tuple[int, int, Callback]] = []
        self._numbers = itertools.count()
        self._forgotten: set[int] = set()

    def watch(self, fd: int, mask: int, callback: Callback) -> Callback:
        """Call back when one of the events of `mask` is there; returns how to forget about it."""
        watch = mask, callback
        self._watches.setdefault(fd, []).append(watch)
        self._register(fd)

        def forget() -> None:
            watches = self._watches.get(fd, [])
            if watch in watches:
                watches.remove(watch)
                self._register(fd)

        return forget

    def _register(self, fd: int) -> None:
        watches = self._watches[fd]
        if watches:
            mask = 0
            for each, _ in watches:
                mask |= each
            self._poll.register(fd, mask)
        else:
            self._poll.unregister(fd)
            del self._watches[fd]

    def at(self, moment: int, callback: Callback) -> Callback:
        """Call back at a moment of the monotonic clock, in ns; returns how to forget about it."""
        number = next(self._numbers)
        heapq.heappush(self._timers, (moment, number, callback))

        def forget() -> None:
            self._forgotten.add(number)
            if 2 * len(self._forgotten) > len(self._timers):
                # Most limits of time are given up long before their moments come.
                self._timers = [each for each in self._timers if each[1] not in self._forgotten]
                heapq.heapify(self._timers)
                self._forgotten.clear()

        return forget

    def wait(self, block: bool) -> bool:
        """See `shim.component.tasks.Reactor.wait`."""
        while self._timers and self._timers[0][1] in self._forgotten:
            self._forgotten.remove(heapq.heappop(self._timers)[1])
        if not self._watches and not self._timers:
            return False
        timeout: int | None = None if block else 0
        if block and self._timers:
            timeout = milliseconds(self._timers[0][0] - monotonic_ns())
        for fd, events in self._poll.poll(timeout):
            self._notify(fd, events)
        now = monotonic_ns()
        while self._timers and self._timers[0][0] <= now:
            _, number, callback = heapq.heappop(self._timers)
            if number in self._forgotten:
                self._forgotten.remove(number)
            else:
                callback()
        return True

    def _notify(self, fd: int, events: int) -> None:
        ended = events & (select.POLLERR | select.POLLHUP | select.POLLNVAL)
        watches = self._watches.get(fd, [])
        due = [watch for watch in watches if ended or watch[0] & events]
        for watch in due:
            if watch in watches:  # else one of those before has forgotten it
                watches.remove(watch)
                watch[1]()
        if fd in self._watches:
            self._register(fd)

    def ready(self, fd: int, mask: int) -> Waiting:
        """Return what to await until one of the events of `mask` is there."""
        return Waiting(lambda callback: self.watch(fd, mask, callback))

    def until(self, moment: int) -> Waiting:
        """Return what to await until a moment of the monotonic clock, in ns."""
        passed = moment <= monotonic_ns()
        return Waiting(None if passed else lambda callback: self.at(moment, callback))


class Waiting:
    """What a host's function awaits."""

    def __init__(self, subscribe: Subscribe | None) -> None:
        self._subscribe = subscribe

    def __await__(self) -> Generator[Subscribe, None, None]:
        if self._subscribe is not None:
            yield self._subscribe
