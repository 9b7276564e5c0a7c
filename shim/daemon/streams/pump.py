"""Bytes on their way between descriptors, with nobody waiting for them. Runs in: shim.

People type passwords: nothing of it stays, and no fork sees what is on its way.
"""

import asyncio
import os
from collections.abc import Callable

from shim.linux import fleeting

_CAPACITY = 1 << 16
_MAX_TRAILER = 8
_SHORT = 2048


class Pump:
    """Copies from `source` to `sink`, descriptors that do not block, until the source ends.

    What is between the two is bounded: no more is read until all of it is written. An error of the
    source is its end. A sink that fails might as well have taken everything: the guest goes on.
    """

    def __init__(
        self,
        source: int,
        sink: int,
        ended: Callable[[], object],
        trailer: Callable[[int], bytes] = lambda _: b"",
    ) -> None:
        """`ended` is called once, after all is written.

        `trailer` tells what to write last, 8 bytes at most; it gets the last byte copied, or -1.
        """
        self._source, self._sink = source, sink
        self._ended, self._trailer = ended, trailer
        self._buffer = fleeting.buffer(_CAPACITY + _MAX_TRAILER)
        self._start = self._end = 0
        self._last = -1
        self._finishing = self._at_end = self._stopped = self._blocked = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(source, self._go_on)

    def finish(self) -> None:
        """Take it for the end when the source has no more to give for the moment."""
        self._finishing = True
        if not self._blocked:
            self._go_on()

    def stop(self) -> None:
        """Stop at once, and do not call `ended` any more."""
        if not self._stopped:
            self._stopped = True
            self._loop.remove_reader(self._source)
            self._loop.remove_writer(self._sink)
            fleeting.wipe(self._buffer[: self._end])

    def _go_on(self) -> None:
        # No more than one buffer in a go: the loop has others to serve.
        if self._stopped:
            return
        if self._start == self._end:
            self._fill()
        self._flush()
        if self._start < self._end:
            if not self._blocked:
                self._blocked = True
                self._loop.remove_reader(self._source)
                self._loop.add_writer(self._sink, self._go_on)
            return
        if self._at_end:
            self.stop()
            self._ended()
            return
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._go_on)
        if self._finishing:
            self._loop.call_soon(self._go_on)  # an empty source wakes nobody

    def _fill(self) -> None:
        self._start = self._end = 0
        try:
            # A terminal gives 4 KiB at a time, however much it is asked for.
            while self._end < _CAPACITY and not self._at_end:
                got = os.readv(self._source, [self._buffer[self._end : _CAPACITY]])
                self._end += got
                self._at_end = not got
                if got < _SHORT:
                    break  # most likely there is no more, and to be told so costs as much again
        except BlockingIOError:
            self._at_end = self._finishing
        except OSError:
            self._at_end = True
        if self._end:
            self._last = self._buffer[self._end - 1]
        if self._at_end:
            trailer = self._trailer(self._last)
            self._buffer[self._end : self._end + len(trailer)] = trailer
            self._end += len(trailer)

    def _flush(self) -> None:
        try:
            while self._start < self._end:
                self._start += os.write(self._sink, self._buffer[self._start : self._end])
        except BlockingIOError:
            pass
        except OSError:
            self._start = self._end
        if self._start == self._end:
            fleeting.wipe(self._buffer[: self._end])
