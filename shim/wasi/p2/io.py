"""wasi:io: errors, pollables and streams of bytes (library; runs in the guest).

A stream lies over a descriptor, and keeps it open. It blocks where it is asked to, in the kernel.
Where it must not block, a descriptor of ours does not; those that others share with us, standard
streams, stay as they are and are asked first. What then cannot be written is kept, until there is
room for it.
"""

from __future__ import annotations

import errno as linux
import os
import select
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final, TypeAlias

from shim.component.errors import Trap
from shim.component.host import Interface
from shim.wasi.descriptors import Descriptor
from shim.wasi.errors import failure
from shim.wasi.filetypes import FILES
from shim.wasi.program import Program
from shim.wasi.waiting import wait

_READ: Final = 1 << 16  # bytes returned at most
_PERMIT: Final = 1 << 16  # bytes that may be written at a time
_ALWAYS: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL

Interest: TypeAlias = "tuple[int, int] | int | None"
"""What to wait for: descriptor and events, or a moment on the monotonic clock; None is here."""


class Closed(Exception):
    """The stream has ended."""


class Pollable:
    """Something to wait for; `interest` says what, each time."""

    __slots__ = ("_descriptor", "interest")

    def __init__(
        self, interest: Callable[[], Interest], descriptor: Descriptor | None = None
    ) -> None:
        self.interest = interest
        self._descriptor = None if descriptor is None else descriptor.share()

    def close(self) -> None:
        """Let go of the descriptor."""
        if self._descriptor is not None:
            self._descriptor.close()


class _Stream:
    """What both directions have in common: a descriptor that it takes over, and keeps open.

    `position` is one of its own in a file; without one it is the kernel's. `end` is called in the
    end.
    """

    __slots__ = ("_end", "_poller", "closed", "descriptor", "position")

    mask: int
    """What poll(2) is asked for."""

    def __init__(
        self,
        descriptor: Descriptor,
        position: int | None = None,
        end: Callable[[], None] | None = None,
    ) -> None:
        self.descriptor = descriptor
        self.position = position
        self.closed = False
        self._end = end
        self._poller: select.poll | None = None

    def _is_ready(self) -> bool:
        """Tell whether a transfer does not block. What has ended or failed counts as ready."""
        if self.descriptor.kind in FILES:
            return True
        poller = self._poller
        if poller is None:
            poller = self._poller = select.poll()
            poller.register(self.descriptor.fd, self.mask)
        return bool(poller.poll(0))

    def interest(self) -> Interest:
        """Return what there is to wait for before a transfer."""
        if self.closed or self.descriptor.kind in FILES:
            return None
        return self.descriptor.fd, self.mask

    def _wait(self) -> None:
        wait({self.descriptor.fd: self.mask}, None)

    def close(self) -> None:
        """End the stream."""
        if self._end is not None:
            self._end()
        self.descriptor.close()


class InputStream(_Stream):
    """Bytes from a descriptor."""

    __slots__ = ()

    mask = select.POLLIN

    def read(self, length: int, *, block: bool) -> bytes:
        """Return up to `length` bytes; without blocking perhaps none. Raises OSError or Closed."""
        if self.closed:
            raise Closed
        length = min(length, _READ)
        if not length:
            return b""
        descriptor = self.descriptor
        try:
            if self.position is not None:
                data = os.pread(descriptor.fd, length, self.position)
                self.position += len(data)
            elif block or descriptor.nonblocking or self._is_ready():
                data = os.read(descriptor.fd, length)
            else:
                return b""
        except BlockingIOError:  # it is ours, or somebody who shares it has made it so
            if not block:
                return b""
            self._wait()
            return self.read(length, block=True)
        except OSError:
            self.closed = True
            raise
        if not data:
            self.closed = True
            raise Closed
        return data


class OutputStream(_Stream):
    """Bytes to a descriptor; a `position` of -1 is the end of a file, wherever that is."""

    __slots__ = ("_permit", "pending")

    mask = select.POLLOUT

    def __init__(
        self,
        descriptor: Descriptor,
        position: int | None = None,
        end: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(descriptor, position, end)
        self.pending = b""
        self._permit = 0

    def check(self) -> int:
        """Return how many bytes may be written. Raises OSError or Closed."""
        self.flush()
        self._permit = 0 if self.pending or not self._is_ready() else _PERMIT
        return self._permit

    def flush(self) -> None:
        """Write what was kept, as far as there is room. Raises OSError or Closed."""
        self._open()
        if self.pending and self._is_ready():
            self._offer(self.pending)

    def write(self, data: Any) -> None:
        """Write without blocking; what there is no room for is kept. Traps beyond the permit."""
        self._open()
        if len(data) > self._permit:
            raise Trap(f"a write of {len(data)} bytes, where {self._permit} were permitted")
        self._permit = 0
        self._offer(data)

    def write_all(self, data: Any) -> None:
        """Write, and block until all is written."""
        self._open()
        if self.pending:
            kept, self.pending = self.pending, b""
            self._put(memoryview(kept), block=True)
        self._put(data, block=True)

    def _open(self) -> None:
        if self.closed:
            raise Closed

    def _offer(self, data: Any) -> None:
        """Write what there is room for, where there is some, and keep the rest."""
        view = memoryview(data)
        written = self._put(view, block=False)
        self.pending = b"" if written == len(view) else bytes(view[written:])
        if self.pending and not self.descriptor.nonblocking:
            _UNFINISHED.add(self)

    def _put(self, data: Any, *, block: bool) -> int:
        """Write what can be; return how much it was. Closes the stream where it fails."""
        written, size = 0, len(data)
        descriptor = self.descriptor
        whole = block or descriptor.nonblocking or descriptor.kind in FILES
        try:
            while written < size:
                if whole:
                    piece = data[written:] if written else data
                elif not written or self._is_ready():
                    piece = data[written : written + select.PIPE_BUF]
                else:
                    break
                try:
                    written += self._transfer(descriptor.fd, piece)
                except BlockingIOError:
                    if not block:
                        break
                    self._wait()
        except BrokenPipeError:
            self.closed = True
            raise Closed from None
        except OSError:
            self.closed = True
            raise
        return written

    def _transfer(self, fd: int, data: Any) -> int:
        position = self.position
        if position is None:
            return os.write(fd, data)
        if position < 0:
            return os.pwritev(fd, [data], 0, os.RWF_APPEND)
        count = os.pwrite(fd, data, position)
        self.position = position + count
        return count

    def finish(self) -> None:
        """Write what was kept, and no more after it."""
        _UNFINISHED.discard(self)
        try:
            if self.pending and not self.closed:
                self.write_all(b"")
        except (Closed, OSError):
            pass  # nobody is there any more to hear of it
        self.closed = True

    def close(self) -> None:
        """End the stream, once all that it has kept is written."""
        self.finish()
        super().close()


_UNFINISHED: Final[set[OutputStream]] = set()


def finish() -> None:
    """Write what streams over shared descriptors have kept: the program, which wrote it, ends."""
    for stream in list(_UNFINISHED):
        stream.finish()


class Error:
    """Why an operation on a stream has failed."""

    __slots__ = ("reason",)

    def __init__(self, reason: OSError) -> None:
        self.reason = reason


def _stream_error(error: Exception) -> tuple[str, Error | None]:
    if isinstance(error, Closed):
        return "closed", None
    if isinstance(error, OSError):
        return "last-operation-failed", Error(error)
    if isinstance(error, OverflowError):  # a position that no file has
        return "last-operation-failed", Error(failure(linux.EINVAL))
    raise error


ERROR: Final = Interface("wasi:io/error", "0.2")
ERROR.resource("error")

POLL: Final = Interface("wasi:io/poll", "0.2")
POLL.resource("pollable", Pollable.close)

STREAMS: Final = Interface("wasi:io/streams", "0.2", errors=_stream_error)
STREAMS.use(ERROR, "error")
STREAMS.use(POLL, "pollable")
STREAMS.type("stream-error", "variant { last-operation-failed(error), closed }")
STREAMS.resource("input-stream", InputStream.close)
STREAMS.resource("output-stream", OutputStream.close)

INTERFACES: Final = (ERROR, POLL, STREAMS)


@ERROR.function("[method]error.to-debug-string", "func(self: borrow<error>) -> string")
def to_debug_string(program: Program, error: Error) -> str:
    """Return an error for people."""
    return error.reason.strerror or str(error.reason)


@POLL.function("[method]pollable.ready", "func(self: borrow<pollable>) -> bool")
def ready(program: Program, pollable: Pollable) -> bool:
    """Tell whether there is nothing to wait for."""
    return bool(_wait([pollable], 0))


@POLL.function("[method]pollable.block", "func(self: borrow<pollable>)")
def block(program: Program, pollable: Pollable) -> None:
    """Wait."""
    _wait([pollable], None)


@POLL.function("poll", "func(in: list<borrow<pollable>>) -> list<u32>")
def poll(program: Program, pollables: list[Pollable]) -> list[int]:
    """Wait for the first; return the places of all that are ready."""
    if not pollables:
        raise Trap("there is nothing to wait for")
    return _wait(pollables, None)


def _wait(pollables: list[Pollable], deadline: int | None) -> list[int]:
    masks: dict[int, int] = {}
    moments: list[int] = [] if deadline is None else [deadline]
    interests = [pollable.interest() for pollable in pollables]
    for interest in interests:
        if interest is None:
            moments.append(0)
        elif isinstance(interest, int):
            moments.append(interest)
        else:
            fd, mask = interest
            masks[fd] = masks.get(fd, 0) | mask
    found = wait(masks, min(moments, default=None))
    now = monotonic_ns()
    answers = []
    for index, interest in enumerate(interests):
        if interest is None:
            is_ready = True
        elif isinstance(interest, int):
            is_ready = interest <= now
        else:
            is_ready = bool(found.get(interest[0], 0) & (interest[1] | _ALWAYS))
        if is_ready:
            answers.append(index)
    return answers


@STREAMS.function(
    "[method]input-stream.read",
    "func(self: borrow<input-stream>, len: u64) -> result<list<u8>, stream-error>",
)
def read(program: Program, stream: InputStream, length: int) -> bytes:
    """Return what there is."""
    return stream.read(length, block=False)


@STREAMS.function(
    "[method]input-stream.blocking-read",
    "func(self: borrow<input-stream>, len: u64) -> result<list<u8>, stream-error>",
)
def blocking_read(program: Program, stream: InputStream, length: int) -> bytes:
    """Wait for bytes."""
    return stream.read(length, block=True)


@STREAMS.function(
    "[method]input-stream.skip",
    "func(self: borrow<input-stream>, len: u64) -> result<u64, stream-error>",
)
def skip(program: Program, stream: InputStream, length: int) -> int:
    """Read for nothing."""
    return len(stream.read(length, block=False))


@STREAMS.function(
    "[method]input-stream.blocking-skip",
    "func(self: borrow<input-stream>, len: u64) -> result<u64, stream-error>",
)
def blocking_skip(program: Program, stream: InputStream, length: int) -> int:
    """Wait for bytes for nothing."""
    return len(stream.read(length, block=True))


@STREAMS.function("[method]input-stream.subscribe", "func(self: borrow<input-stream>) -> pollable")
def subscribe_input(program: Program, stream: InputStream) -> Pollable:
    """Return a pollable that is ready when a read returns something."""
    return Pollable(stream.interest, stream.descriptor)


@STREAMS.function(
    "[method]output-stream.check-write",
    "func(self: borrow<output-stream>) -> result<u64, stream-error>",
)
def check_write(program: Program, stream: OutputStream) -> int:
    """Permit a write."""
    return stream.check()


@STREAMS.function(
    "[method]output-stream.write",
    "func(self: borrow<output-stream>, contents: list<u8>) -> result<_, stream-error>",
)
def write(program: Program, stream: OutputStream, contents: memoryview) -> None:
    """Write what was permitted."""
    stream.write(contents)


@STREAMS.function(
    "[method]output-stream.blocking-write-and-flush",
    "func(self: borrow<output-stream>, contents: list<u8>) -> result<_, stream-error>",
)
def blocking_write_and_flush(program: Program, stream: OutputStream, contents: memoryview) -> None:
    """Write, and wait until that has happened. The contents may be any number of bytes."""
    stream.write_all(contents)


@STREAMS.function(
    "[method]output-stream.flush", "func(self: borrow<output-stream>) -> result<_, stream-error>"
)
def flush(program: Program, stream: OutputStream) -> None:
    """Write what was kept, as far as there is room."""
    stream.flush()


@STREAMS.function(
    "[method]output-stream.blocking-flush",
    "func(self: borrow<output-stream>) -> result<_, stream-error>",
)
def blocking_flush(program: Program, stream: OutputStream) -> None:
    """Write what was kept."""
    stream.write_all(b"")


@STREAMS.function(
    "[method]output-stream.subscribe", "func(self: borrow<output-stream>) -> pollable"
)
def subscribe_output(program: Program, stream: OutputStream) -> Pollable:
    """Return a pollable that is ready when a write is permitted."""
    return Pollable(stream.interest, stream.descriptor)


@STREAMS.function(
    "[method]output-stream.write-zeroes",
    "func(self: borrow<output-stream>, len: u64) -> result<_, stream-error>",
)
def write_zeroes(program: Program, stream: OutputStream, length: int) -> None:
    """Write zeros as if they were contents."""
    stream.write(_zeros(length))


@STREAMS.function(
    "[method]output-stream.blocking-write-zeroes-and-flush",
    "func(self: borrow<output-stream>, len: u64) -> result<_, stream-error>",
)
def blocking_write_zeroes_and_flush(program: Program, stream: OutputStream, length: int) -> None:
    """Write zeros, and wait until that has happened."""
    stream.write_all(_zeros(length))


def _zeros(length: int) -> bytes:
    if length > _PERMIT:
        raise Trap(f"a write of {length} bytes, where {_PERMIT} are the most")
    return bytes(length)


@STREAMS.function(
    "[method]output-stream.splice",
    "func(self: borrow<output-stream>, src: borrow<input-stream>, len: u64)"
    " -> result<u64, stream-error>",
)
def splice(program: Program, stream: OutputStream, source: InputStream, length: int) -> int:
    """Write what can be read."""
    permit = min(stream.check(), length)
    if not permit:
        return 0
    data = source.read(permit, block=False)
    stream.write(data)
    return len(data)


@STREAMS.function(
    "[method]output-stream.blocking-splice",
    "func(self: borrow<output-stream>, src: borrow<input-stream>, len: u64)"
    " -> result<u64, stream-error>",
)
def blocking_splice(
    program: Program, stream: OutputStream, source: InputStream, length: int
) -> int:
    """Wait for what can be read, and write it."""
    stream.write_all(b"")
    data = source.read(length, block=True)
    stream.write_all(data)
    return len(data)
