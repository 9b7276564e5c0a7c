"""Hearing that a writer has closed a FIFO. Runs in: shim.

All streams of a shim share one inotify, which lives as long as the shim: closing one takes the
kernel some 10 ms, in which the loop would stand still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

from shim.linux.inotify import Inotify


class Watch(NamedTuple):
    """One watched FIFO."""

    watcher: _Watcher
    number: int
    closed: Callable[[], object]

    def cancel(self) -> None:
        """Call nobody any more."""
        self.watcher.forget(self)


class _Watcher:
    """The inotify of one event loop."""

    def __init__(self) -> None:
        self._inotify = Inotify()
        self._watches: dict[int, list[Watch]] = {}
        asyncio.get_running_loop().add_reader(self._inotify, self._read)

    def watch(self, path: str, closed: Callable[[], object]) -> Watch:
        watch = Watch(self, self._inotify.add(path), closed)
        self._watches.setdefault(watch.number, []).append(watch)
        return watch

    def forget(self, watch: Watch) -> None:
        others = self._watches[watch.number]
        others.remove(watch)
        if not others:
            del self._watches[watch.number]
            self._inotify.remove(watch.number)

    def _read(self) -> None:
        for number in self._inotify.closed():
            for watch in tuple(self._watches.get(number, ())):
                if watch in self._watches.get(number, ()):  # no other has cancelled it meanwhile
                    watch.closed()


_watchers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Watcher] = WeakKeyDictionary()


def watch(path: str, closed: Callable[[], object]) -> Watch:
    """Call `closed` each time that a writer closes the FIFO. Raises OSError."""
    loop = asyncio.get_running_loop()
    if loop not in _watchers:
        _watchers[loop] = _Watcher()
    return _watchers[loop].watch(path, closed)
