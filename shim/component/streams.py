"""Streams and futures: values on their way between two ends (library; used in the guest).

CanonicalABI.md, "Buffer State", "Stream State" and "Future State". Nothing is stored on the way:
whoever comes first, to read or to write, leaves a buffer, and whoever comes second copies. Where
the host has the other end, a `Source` or a `Sink`, it is asked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from shim.component.errors import Trap
from shim.component.types.base import Context, ValueType, same
from shim.component.types.primitive import Byte, is_number
from shim.component.waitables import Waitable

COMPLETED: Final = 0  # the results of a copy
DROPPED: Final = 1
CANCELLED: Final = 2

MAX_LENGTH: Final = (1 << 28) - 1
"""Values in a buffer."""

_PUMPED: Final = 1 << 16  # bytes that go from a source to a sink at once
_MANY: Final = 64  # values of another type

OnDone: TypeAlias = Callable[[int], None]
"""Told the result of a copy."""
OnCopy: TypeAlias = Callable[[Callable[[], None]], None]
"""Told that something was copied, and what takes the buffer back, which may get more until then."""


class Buffer:
    """A guest's memory for values of a type, or only their number where that is None."""

    __slots__ = ("_context", "_start", "instance", "progress", "remaining", "type")

    def __init__(self, context: Context, kind: ValueType | None, start: int, length: int) -> None:
        if length > MAX_LENGTH:
            raise Trap(f"a buffer of {length} values is too long")
        if kind is not None and length:
            context.reach(start, length * kind.size, kind.alignment)
        self._context = context
        self._start = start
        self.instance: object = context.instance
        self.type = kind
        self.progress = 0
        self.remaining = length

    def view(self) -> memoryview:
        """Return what remains of a buffer of bytes, to be read or written before `advance`."""
        return self._context.view[self._start : self._start + self.remaining]

    def advance(self, count: int) -> None:
        """Go on behind as many values."""
        self.progress += count
        self.remaining -= count
        if self.type is not None:
            self._start += count * self.type.size

    def read(self, count: int) -> Any:
        """Return the next values; bytes, a view of them."""
        if self.type is None:
            values: Any = range(count)  # of nothing, of which there may be much
        else:
            values = self.type.load_list(self._context, self._start, count)
        self.advance(count)
        return values

    def write(self, values: Sequence[Any]) -> None:
        """Store the next values."""
        if self.type is not None:
            self.type.store_list(self._context, values, self._start)
        self.advance(len(values))


class HostBuffer:
    """The same in the host's memory: what it has written it can read."""

    __slots__ = ("_bytes", "_values", "progress", "remaining")

    def __init__(self, is_bytes: bool, length: int) -> None:
        self._bytes = bytearray(length) if is_bytes else None
        self._values: list[Any] = []
        self.progress = 0
        self.remaining = length

    def view(self) -> memoryview:
        """See `Buffer.view`."""
        assert self._bytes is not None
        return memoryview(self._bytes)[self.progress : self.progress + self.remaining]

    def advance(self, count: int) -> None:
        """See `Buffer.advance`."""
        self.progress += count
        self.remaining -= count

    def read(self, count: int) -> Any:
        """See `Buffer.read`."""
        start = self.progress
        self.advance(count)
        if self._bytes is not None:
            return memoryview(self._bytes)[start : start + count]
        return self._values[start : start + count]

    def write(self, values: Sequence[Any]) -> None:
        """See `Buffer.write`."""
        if self._bytes is not None:
            self._bytes[self.progress : self.progress + len(values)] = values
        else:
            self._values += values
        self.advance(len(values))

    def turn(self) -> None:
        """Let what was written be read."""
        self.remaining, self.progress = self.progress, 0


AnyBuffer: TypeAlias = Buffer | HostBuffer


class Source(Protocol):
    """The host's end of what it writes."""

    def give(self, buffer: AnyBuffer) -> int | None:
        """Write what there is to the buffer; return the result of the copy.

        COMPLETED, or DROPPED where nothing was written and nothing will be. None if there is
        nothing yet: then `Shared.resume` is to be called when there may be.
        """

    def close(self) -> None:
        """Be told that nobody reads any more."""


class Sink(Protocol):
    """The host's end of what it reads."""

    def take(self, buffer: AnyBuffer) -> int | None:
        """Read what can be used from the buffer; return the result of the copy, as `give`."""

    def close(self) -> None:
        """Be told that nobody writes any more."""


class Shared:
    """What the ends of a stream, or of a future, have in common."""

    __slots__ = (
        "_buffer", "_on_copy", "_on_done", "_pump", "_reading", "dropped", "sink", "source", "type",
    )  # fmt: skip

    is_stream = True

    def __init__(self, kind: ValueType | None, source: Source | None = None) -> None:
        self.type = kind
        self.source = source
        self.sink: Sink | None = None
        self.dropped = False
        self._pump: _Pump | None = None
        self._forget()

    def _forget(self) -> None:
        self._buffer: Buffer | None = None
        self._on_copy: OnCopy | None = None
        self._on_done: OnDone | None = None
        self._reading = False

    def _finish(self, result: int) -> None:
        """Tell whoever left a buffer here, and forget it."""
        on_done = self._on_done
        self._forget()
        assert on_done is not None
        on_done(result)

    def attach(self, sink: Sink) -> None:
        """Let the host read, from now on."""
        self.sink = sink
        if self.source is not None:
            self._pump = _Pump(self.source, sink, self.type, self.is_stream)
        self.resume()
        if self.dropped:
            sink.close()

    def resume(self) -> None:
        """Ask the host again. It calls this where it had nothing to say, and now may."""
        if self._pump is not None:
            self._pump.run()
        elif self._buffer is not None:
            result = self.ask(self._buffer, self._reading)
            if result is not None:
                self._finish(result)

    def ask(self, buffer: AnyBuffer, reading: bool) -> int | None:
        """Have the host copy, if it has the other end; None if that has to wait."""
        if reading:
            return self.source.give(buffer) if self.source is not None else None
        return self.sink.take(buffer) if self.sink is not None else None

    def copy(self, buffer: Buffer, reading: bool, on_copy: OnCopy, on_done: OnDone) -> None:
        """Read to a buffer, or write from it, after the host was asked."""
        if self.dropped:
            on_done(DROPPED)
        elif self._buffer is None:
            self._leave(buffer, reading, on_copy, on_done)
        else:
            self._meet(buffer, reading, on_copy, on_done)

    def _leave(self, buffer: Buffer, reading: bool, on_copy: OnCopy, on_done: OnDone) -> None:
        self._buffer, self._on_copy, self._on_done = buffer, on_copy, on_done
        self._reading = reading

    def _meet(self, buffer: Buffer, reading: bool, on_copy: OnCopy, on_done: OnDone) -> None:
        """Copy between this buffer and the one that was left here."""
        raise NotImplementedError

    def _check_instances(self, buffer: Buffer) -> None:
        assert self._buffer is not None
        if buffer.instance is self._buffer.instance and not is_number(self.type):
            raise Trap("cannot copy within a component instance but numbers")

    def cancel(self) -> None:
        """Take back the buffer that was left here."""
        self._finish(CANCELLED)

    def drop(self) -> None:
        """Have one end no more."""
        if self.dropped:
            return
        self.dropped = True
        if self._buffer is not None:
            self._finish(DROPPED)
        if self.source is not None:
            self.source.close()
        if self.sink is not None:
            self.sink.close()


class SharedStream(Shared):
    """What the ends of a stream have in common."""

    __slots__ = ()

    def _meet(self, buffer: Buffer, reading: bool, on_copy: OnCopy, on_done: OnDone) -> None:
        left = self._buffer
        assert left is not None
        assert self._on_copy is not None
        self._check_instances(buffer)
        if left.remaining:
            count = min(buffer.remaining, left.remaining)
            if count:
                source, target = (left, buffer) if reading else (buffer, left)
                target.write(source.read(count))
                self._on_copy(self._forget)
            on_done(COMPLETED)
        elif not reading and not buffer.remaining:
            # Both only ask whether the other one is there: the writer is told, and may write.
            on_done(COMPLETED)
        else:
            self._finish(COMPLETED)
            self._leave(buffer, reading, on_copy, on_done)


class SharedFuture(Shared):
    """What the ends of a future have in common."""

    __slots__ = ()

    is_stream = False

    def _meet(self, buffer: Buffer, reading: bool, on_copy: OnCopy, on_done: OnDone) -> None:
        left = self._buffer
        assert left is not None
        self._check_instances(buffer)
        source, target = (left, buffer) if reading else (buffer, left)
        target.write(source.read(1))
        self._finish(COMPLETED)
        on_done(COMPLETED)


class _Pump:
    """Carries what the host writes to where the host reads, until one of them has enough."""

    def __init__(self, source: Source, sink: Sink, kind: ValueType | None, is_stream: bool) -> None:
        self._source = source
        self._sink = sink
        self._is_stream = is_stream
        self._is_bytes = isinstance(kind, Byte)
        self._full: HostBuffer | None = None
        self._over = False

    def run(self) -> None:
        while not self._over:
            if self._full is None:
                most = _PUMPED if self._is_bytes else _MANY
                buffer = HostBuffer(self._is_bytes, most if self._is_stream else 1)
                result = self._source.give(buffer)
                if result is None:
                    return
                if result == DROPPED:
                    self._over = True
                    self._sink.close()
                    return
                buffer.turn()
                self._full = buffer
            while self._full.remaining:
                result = self._sink.take(self._full)
                if result is None:
                    return
                if result == DROPPED:
                    self._over = True
                    self._source.close()
                    return
            self._full = None
            if not self._is_stream:
                self._over = True
                self._sink.close()


IDLE, BUSY, CANCELLING, DONE = range(4)
"""What an end does: nothing, a copy, the end of one; or it has seen the last one."""


class End(Waitable):
    """An end of a stream or future in a guest's table."""

    __slots__ = ("shared", "state")

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.shared = shared
        self.state = IDLE

    def drop(self) -> None:
        """Be no more. Raises Trap during a copy."""
        if self.state in (BUSY, CANCELLING):
            raise Trap("cannot drop an end that is being copied from or to")
        self.shared.drop()
        super().drop()


class ReadableStream(End):
    """The end of a stream to read from."""

    __slots__ = ()


class WritableStream(End):
    """The end of a stream to write to."""

    __slots__ = ()


class ReadableFuture(End):
    """The end of a future to read from."""

    __slots__ = ()


class WritableFuture(End):
    """The end of a future to write to."""

    __slots__ = ()

    def drop(self) -> None:
        """Be no more. Raises Trap before the future has a value, or nobody wants it."""
        if self.state != DONE:
            raise Trap("cannot drop a future that was not written to")
        super().drop()


def check_type(end: End, kind: ValueType | None) -> None:
    """Raise Trap unless values of this type are copied there."""
    if not same(end.shared.type, kind):
        raise Trap("the end of a stream or future is used for another type than it is of")


class Promise:
    """The source of a future whose value the host has later."""

    def __init__(self, kind: ValueType | None) -> None:
        self.future = SharedFuture(kind, self)
        self._values: list[Any] = []

    def keep(self, value: Any) -> None:
        """Have the value; the first one counts."""
        if not self._values:
            self._values.append(value)
            self.future.resume()

    def give(self, buffer: AnyBuffer) -> int | None:
        """See `Source.give`."""
        if not self._values:
            return None
        buffer.write(self._values)
        return COMPLETED

    def close(self) -> None:
        """See `Source.close`."""
