"""Streams of bytes over descriptors: what the host writes, and what it reads (in the guest).

A copy goes straight from the guest's memory to the kernel or back, when the guest asks for it. Only
where the kernel has nothing, or no room, the reactor asks again later.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from time import monotonic_ns
from typing import Any, Final

from shim.component.streams import (
    COMPLETED,
    DROPPED,
    AnyBuffer,
    HostBuffer,
    Promise,
    Shared,
    SharedStream,
)
from shim.component.types import U8, ValueType
from shim.wasi.descriptors import Descriptor
from shim.wasi.filetypes import FIFO, FILES
from shim.wasi.reactor import Reactor

_TURN: Final = 1 << 20  # bytes that are carried at a time from one descriptor to another
_FINE: Final = ("ok", None)


class _Bytes:
    """What both directions have in common. Takes the descriptor over."""

    _mask = 0

    def __init__(
        self,
        reactor: Reactor,
        descriptor: Descriptor,
        result: ValueType,
        errors: Callable[[Exception], Any],
        position: int | None = None,
    ) -> None:
        self.outcome = Promise(result)
        """Of a `result`: how it went."""
        self.shared: Shared
        self.position = position
        self._reactor = reactor
        self._descriptor: Descriptor | None = descriptor
        self._errors = errors
        self._forget: Callable[[], None] | None = None
        self.before_close: Callable[[], None] = lambda: None

    def _is_ready(self, fd: int) -> bool:
        """Tell whether the kernel can be asked without having to wait; else it is told later."""
        assert self._descriptor is not None
        if self._descriptor.kind in FILES:
            return True
        poller = select.poll()
        poller.register(fd, self._mask)
        if poller.poll(0):
            return True
        self._later(fd)
        return False

    def _later(self, fd: int) -> None:
        if self._forget is None:
            self._forget = self._reactor.watch(fd, self._mask, self._resume)

    def _resume(self) -> None:
        self._forget = None
        self.shared.resume()

    def _end(self, outcome: Any = _FINE) -> int:
        """Be at the end, and say how it went."""
        if self._forget is not None:
            self._forget()
            self._forget = None
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):  # a connection may be gone
                self.before_close()
            descriptor.close()
            self.outcome.keep(outcome)
        return DROPPED

    def close(self) -> None:
        """See `Source.close` and `Sink.close`."""
        self._end()

    def _copy(self, buffer: AnyBuffer, transfer: Callable[[int, memoryview], int]) -> int | None:
        if self._descriptor is None:
            return DROPPED
        fd = self._descriptor.fd
        try:
            if not self._is_ready(fd):
                return None
            if not buffer.remaining:
                return COMPLETED
            count = transfer(fd, buffer.view())
        except BlockingIOError:
            self._later(fd)
            return None
        except (OSError, OverflowError) as error:
            return self._end(("error", self._errors(error)))
        if not count:
            return self._end()
        buffer.advance(count)
        return COMPLETED


class Reading(_Bytes):
    """A stream that the guest reads from a descriptor; from `position` on, or the kernel's."""

    _mask = select.POLLIN

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shared = SharedStream(U8, self)

    def give(self, buffer: AnyBuffer) -> int | None:
        """See `Source.give`."""
        return self._copy(buffer, self._read)

    def _read(self, fd: int, view: memoryview) -> int:
        if self.position is None:
            return os.readv(fd, [view])
        count = os.preadv(fd, [view], self.position)
        self.position += count
        return count


class Writing(_Bytes):
    """A stream that the guest writes to a descriptor; to `position`, -1 is the end, or as above."""

    _mask = select.POLLOUT

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._carried = 0

    def drain(self, shared: Shared) -> None:
        """Take what the guest writes, from now on."""
        self.shared = shared
        shared.attach(self)

    def take(self, buffer: AnyBuffer) -> int | None:
        """See `Sink.take`."""
        if not isinstance(buffer, HostBuffer):
            return self._copy(buffer, self._write)
        # Between two descriptors that are always ready this might never end, and nobody else run.
        if self._carried >= _TURN:
            self._carried = 0
            if self._forget is None:
                self._forget = self._reactor.at(monotonic_ns(), self._resume)
            return None
        before = buffer.progress
        result = self._copy(buffer, self._write)
        self._carried += buffer.progress - before
        return result

    def _write(self, fd: int, view: memoryview) -> int:
        if self.position is None:
            return os.write(fd, view[: self._room(fd)] if len(view) > select.PIPE_BUF else view)
        if self.position < 0:
            return os.pwritev(fd, [view], 0, os.RWF_APPEND)
        count = os.pwrite(fd, view, self.position)
        self.position += count
        return count

    def _room(self, fd: int) -> int:
        """Return how many bytes can be written without waiting for who reads, now that some can."""
        assert self._descriptor is not None
        kind = self._descriptor.kind
        if self._descriptor.nonblocking or kind in FILES:
            return sys.maxsize
        # What else is in a pipe, the kernel does not tell: small pieces have a page each.
        if kind == FIFO and not any(fcntl.ioctl(fd, termios.FIONREAD, bytes(4))):
            return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
        return select.PIPE_BUF


def nothing(kind: ValueType) -> SharedStream:
    """Return a stream that has ended."""
    return SharedStream(kind, _Nothing())


class _Nothing:
    """What writes nothing."""

    def give(self, buffer: AnyBuffer) -> int:
        """See `Source.give`."""
        return DROPPED

    def close(self) -> None:
        """See `Source.close`."""
