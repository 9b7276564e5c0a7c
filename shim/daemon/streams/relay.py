"""An exec's output on its way to a FIFO, which can be ended before its writers are. Runs in: shim.

Whoever a native program has started may outlive it and keep its output open. Its client waits for
the end of that, and gives up some time after the exit by a Delete, which has to end it. A
descriptor cannot be taken back from others, so they have a pipe, and the kernel moves the pages
from there to the FIFO. A container's first program needs none of this: what it has started ends
with it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable

from shim.daemon.streams import fifo

_AT_ONCE = 1 << 20


class Relay:
    """Moves what comes from a pipe to a FIFO, until nobody has the pipe open any more."""

    def __init__(self, source: int, sink: int, ended: Callable[[int], object]) -> None:
        """Both descriptors do not block, and are taken over; see `before`."""
        self.over = asyncio.Event()
        self._source, self._sink, self._ended = source, sink, ended
        self._loop = asyncio.get_running_loop()
        self._blocked = False
        self._loop.add_reader(source, self._go_on)

    @classmethod
    def before(cls, sink: int, ended: Callable[[int], object]) -> tuple[Relay, int]:
        """Return one for a FIFO, open both ways and taken over, and the pipe's end to write to.

        When all is moved `ended` gets a writer of the FIFO, for readers that are late. Raises
        OSError, and then the FIFO is closed.
        """
        try:
            source, guest = os.pipe()
        except OSError:
            os.close(sink)
            raise
        os.set_blocking(source, False)
        return cls(source, sink, ended), guest

    def _go_on(self) -> None:
        try:
            moved = os.splice(self._source, self._sink, _AT_ONCE, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            self._wait_for_sink(self._holds_something())
            return
        if moved:
            self._wait_for_sink(False)
        else:
            writer = fifo.reopen(self._sink, os.O_WRONLY)
            self.close()
            self._ended(writer)

    def _holds_something(self) -> bool:
        count = fcntl.ioctl(self._source, termios.FIONREAD, bytes(4))
        return struct.unpack("i", count) != (0,)

    def _wait_for_sink(self, blocked: bool) -> None:
        if blocked != self._blocked:
            self._blocked = blocked
            if blocked:
                self._loop.remove_reader(self._source)
                self._loop.add_writer(self._sink, self._go_on)
            else:
                self._loop.remove_writer(self._sink)
                self._loop.add_reader(self._source, self._go_on)

    def close(self) -> None:
        """Let go of both: whoever reads comes to an end, whoever still writes gets SIGPIPE."""
        if self._source >= 0:
            self._loop.remove_reader(self._source)
            self._loop.remove_writer(self._sink)
            os.close(self._source)
            os.close(self._sink)
            self._source = self._sink = -1
            self.over.set()
