"""The rules of streams, as one state machine for each end of a connection: bytes in, events out.

Library, no I/O. `receive` takes what the socket gave and returns what it means; the other methods
say what to tell the peer; `take` returns the bytes that all this left to be sent.

A stream is one call. The client opens it with a request, under an odd number greater than any
before, and is done with it when the server has closed it; the server closes it with a response, or
with a last data frame, whether the client had finished sending or not.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import NamedTuple

from google.protobuf.message import DecodeError

from proto import ttrpc_pb2
from shim.linux.messages import one_line
from shim.ttrpc.frames import (
    CLOSED,
    DATA,
    MAX_DATA,
    NO_DATA,
    OPEN,
    REQUEST,
    RESPONSE,
    Decoder,
    Frame,
    Oversized,
    encode,
)
from shim.ttrpc.status import Code, RpcError
from shim.ttrpc.wire import cut

MAX_STREAM = 0xFFFFFFFF
MAX_TIMEOUT_NANO = (1 << 63) - 1

# Go's words, which people look for in logs.
DEADLINE_MESSAGE = "context deadline exceeded"

_PAYLOAD = ttrpc_pb2.Request.PAYLOAD_FIELD_NUMBER

Metadata = Mapping[str, Sequence[str]]
NO_METADATA: Metadata = {}


class Call(Enum):
    """What a request frame says about the frames that follow it."""

    UNARY = auto()  # one request, one response
    SENDING = auto()  # the client sends data too
    RECEIVING = auto()  # the client sends nothing more, and takes data


class Request(NamedTuple):
    """Server: a call has begun. timeout is in seconds, None for no limit, and may be negative.

    The payload is what was received, and void as soon as the next event is asked for.
    """

    stream: int
    call: Call
    service: str
    method: str
    payload: bytes | memoryview
    timeout: float | None
    metadata: Metadata


class Data(NamedTuple):
    """Either end: the peer sent a message (None: only said that it was the last)."""

    stream: int
    payload: bytes | None
    last: bool


class Aborted(NamedTuple):
    """Server: the client broke the rules of this stream, and that was its answer."""

    stream: int


class Response(NamedTuple):
    """Client: the call is over; unless code is OK, with a message and no payload."""

    stream: int
    code: Code
    message: str
    payload: bytes


class _End:
    """What both ends have: a decoder, the state of each stream and the bytes to be sent."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._streams: dict[int, Call] = {}
        self._out: list[bytes] = []

    def take(self) -> bytes:
        """Return the bytes to be sent, once."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _send_data(self, stream: int, payload: bytes | None, flags: int) -> None:
        if payload is None:
            flags |= NO_DATA
            payload = b""
        elif len(payload) > MAX_DATA:
            raise _oversized(len(payload))
        self._out.append(encode(stream, DATA, flags, payload))


class ServerProtocol(_End):
    """The end that accepted the connection.

    No input makes it fail. A frame that breaks the rules is answered on its own stream, and the
    connection goes on; so does the Go implementation, and containerd keeps one connection per shim.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last = 0

    def receive(self, chunk: bytes | memoryview) -> Iterator[Request | Data | Aborted]:
        """Take bytes from the peer and yield what they mean, in order.

        Each event is to be dealt with before the next is asked for: an answer given in between
        decides what the frames after it mean.
        """
        try:
            yield from self._events(self._decoder.feed(chunk))
        finally:
            self._decoder.forget()

    def _events(self, frames: Iterable[Frame | Oversized]) -> Iterator[Request | Data | Aborted]:
        for frame in frames:
            try:
                if isinstance(frame, Oversized):
                    raise _oversized(frame.length)
                if frame.stream % 2 == 0:
                    raise _invalid(f"stream {frame.stream}: streams of a client have odd numbers")
                if frame.kind == REQUEST:
                    yield self._receive_request(frame)
                elif frame.kind == DATA:
                    yield self._receive_data(frame)
            except RpcError as error:
                # A request under a number in use gets its error, and the call it collided with
                # still its own answer: every request frame is answered once.
                if frame.kind != REQUEST and frame.stream in self._streams:
                    del self._streams[frame.stream]
                    yield Aborted(frame.stream)
                self._answer(frame.stream, error.code, error.message, b"")

    def _receive_request(self, frame: Frame) -> Request:
        if frame.stream <= self._last:
            raise _invalid(f"stream {frame.stream}: not after {self._last}, the last one")
        self._last = frame.stream
        try:
            envelope, payload = cut(memoryview(frame.data), _PAYLOAD)
            request = ttrpc_pb2.Request.FromString(envelope)
        except DecodeError as error:
            raise _invalid(f"malformed request: {error}") from None
        if frame.flags & OPEN:
            call = Call.SENDING
        elif frame.flags & CLOSED:
            call = Call.RECEIVING
        else:
            call = Call.UNARY
        self._streams[frame.stream] = call
        return Request(
            frame.stream,
            call,
            request.service,
            request.method,
            payload,
            request.timeout_nano / 1e9 if request.timeout_nano else None,
            _group(request.metadata) if request.metadata else NO_METADATA,
        )

    def _receive_data(self, frame: Frame) -> Data:
        call = self._streams.get(frame.stream)
        if call is None:
            raise _invalid(f"stream {frame.stream}: data, but it is not open")
        if call is not Call.SENDING:
            raise _invalid(f"stream {frame.stream}: data after its end")
        last = bool(frame.flags & CLOSED)
        if last:
            self._streams[frame.stream] = Call.RECEIVING
        return Data(frame.stream, None if frame.flags & NO_DATA else bytes(frame.data), last)

    def respond(self, stream: int, payload: bytes) -> None:
        """Answer a call with its result, which ends it."""
        del self._streams[stream]
        self._answer(stream, Code.OK, "", payload)

    def fail(self, stream: int, code: Code, message: str) -> None:
        """Answer a call with an error, which ends it."""
        del self._streams[stream]
        self._answer(stream, code, message, b"")

    def send_data(self, stream: int, payload: bytes | None, *, last: bool = False) -> None:
        """Send a message, or with None only the end, on a stream that is not unary.

        Raises RpcError RESOURCE_EXHAUSTED for a payload that is too long.
        """
        if self._streams[stream] is Call.UNARY:
            raise ValueError(f"stream {stream} is unary")
        self._send_data(stream, payload, CLOSED if last else 0)
        if last:
            del self._streams[stream]

    def _answer(self, stream: int, code: Code, message: str, payload: bytes) -> None:
        response = ttrpc_pb2.Response(payload=payload)
        if code is not Code.OK:
            response.status.code = code
            response.status.message = one_line(message)
        data = response.SerializeToString()
        if len(data) > MAX_DATA:
            error = _oversized(len(data))
            self._answer(stream, error.code, error.message, b"")
        else:
            self._out.append(encode(stream, RESPONSE, 0, data))


class ClientProtocol(_End):
    """The end that made the connection. Frames on streams that are over are ignored."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 1

    def request(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        call: Call = Call.UNARY,
        timeout: float | None = None,
        metadata: Metadata = NO_METADATA,
    ) -> int:
        """Begin a call that may take timeout seconds, and return its stream.

        Raises RpcError: RESOURCE_EXHAUSTED if it is too long, DEADLINE_EXCEEDED if the time is up
        already, UNAVAILABLE if the connection has used up its stream numbers.
        """
        if timeout is not None and timeout <= 0:
            raise RpcError(Code.DEADLINE_EXCEEDED, DEADLINE_MESSAGE)
        if self._next > MAX_STREAM:
            raise RpcError(Code.UNAVAILABLE, "no more streams on this connection")
        data = ttrpc_pb2.Request(
            service=service,
            method=method,
            payload=payload,
            # Zero would mean no limit.
            timeout_nano=0
            if timeout is None
            else max(1, int(min(timeout * 1e9, MAX_TIMEOUT_NANO))),
            metadata=[
                ttrpc_pb2.KeyValue(key=key.lower(), value=value)
                for key, values in metadata.items()
                for value in values
            ],
        ).SerializeToString()
        if len(data) > MAX_DATA:
            raise _oversized(len(data))
        stream, self._next = self._next, self._next + 2
        self._streams[stream] = call
        self._out.append(encode(stream, REQUEST, _REQUEST_FLAGS[call], data))
        return stream

    def send_data(self, stream: int, payload: bytes | None, *, last: bool = False) -> None:
        """Send a message, or with None and last only the end, on a stream opened for SENDING.

        Raises RpcError RESOURCE_EXHAUSTED for a payload that is too long.
        """
        if self._streams[stream] is not Call.SENDING:
            raise ValueError(f"stream {stream} is not open for sending")
        if last and payload is not None:
            # The Go server takes the last message and the end of messages only one by one.
            self._send_data(stream, payload, 0)
            payload = None
        self._send_data(stream, payload, CLOSED if last else 0)
        if last:
            self._streams[stream] = Call.RECEIVING

    def forget(self, stream: int) -> None:
        """Give up on a call: ignore whatever still comes. The server is not told, it cannot be."""
        self._streams.pop(stream, None)

    def receive(self, chunk: bytes) -> Iterator[Response | Data]:
        """Take bytes from the peer and yield what they mean, in order."""
        for frame in self._decoder.feed(chunk):
            call = self._streams.get(frame.stream)
            if call is None:
                continue
            event = self._receive(call, frame)
            if isinstance(event, Response) or event.last:
                del self._streams[frame.stream]
            yield event

    def _receive(self, call: Call, frame: Frame | Oversized) -> Response | Data:
        if isinstance(frame, Oversized):
            error = _oversized(frame.length)
            return Response(frame.stream, error.code, error.message, b"")
        if frame.kind == RESPONSE:
            try:
                response = ttrpc_pb2.Response.FromString(bytes(frame.data))
            except DecodeError as error:
                return Response(frame.stream, Code.INTERNAL, f"malformed response: {error}", b"")
            status = response.status
            if status.code == Code.OK:
                return Response(frame.stream, Code.OK, "", response.payload)
            code = Code(status.code) if status.code in _CODES else Code.UNKNOWN
            return Response(frame.stream, code, status.message, b"")
        if frame.kind == DATA and call is not Call.UNARY:
            data = None if frame.flags & NO_DATA else bytes(frame.data)
            return Data(frame.stream, data, bool(frame.flags & CLOSED))
        return Response(
            frame.stream, Code.INTERNAL, f"protocol error: frame of kind {frame.kind}", b""
        )


_CODES = frozenset(Code)
_REQUEST_FLAGS = {Call.UNARY: 0, Call.SENDING: OPEN, Call.RECEIVING: CLOSED}


def _group(pairs: Iterable[ttrpc_pb2.KeyValue]) -> Metadata:
    metadata: dict[str, list[str]] = {}
    for pair in pairs:
        metadata.setdefault(pair.key.lower(), []).append(pair.value)
    return metadata


def _invalid(message: str) -> RpcError:
    return RpcError(Code.INVALID_ARGUMENT, message)


def _oversized(length: int) -> RpcError:
    return RpcError(
        Code.RESOURCE_EXHAUSTED,
        f"message of {length} bytes; at most {MAX_DATA} are allowed",
    )
