"""Both ends of a ttrpc connection, fed with any bytes in any chunks."""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

from proto import ttrpc_pb2
from shim.ttrpc import frames
from shim.ttrpc.frames import CLOSED, DATA, NO_DATA, OPEN, REQUEST, RESPONSE, Decoder, Frame, encode
from shim.ttrpc.protocol import Aborted, Call, ClientProtocol, Request, Response, ServerProtocol
from shim.ttrpc.status import Code

_PAYLOAD = ttrpc_pb2.Request(
    service="containerd.task.v2.Task",
    method="State",
    payload=b"\n\1x",
    timeout_nano=10**9,
    metadata=[ttrpc_pb2.KeyValue(key="K", value="v")],
).SerializeToString()
_ANSWER = ttrpc_pb2.Response(payload=b"x").SerializeToString()
_ERROR = ttrpc_pb2.Response(status={"code": 5, "message": "no"}).SerializeToString()

SEEDS = [
    b"\xff" + encode(1, REQUEST, 0, _PAYLOAD) + encode(3, REQUEST, 0, _PAYLOAD),
    b"\5" + encode(1, REQUEST, OPEN, _PAYLOAD) + encode(1, DATA, CLOSED | NO_DATA, b""),
    b"\1" + encode(1, REQUEST, CLOSED, _PAYLOAD) + encode(1, DATA, 0, b"x"),
    b"\xff" + encode(2, REQUEST, 0, _PAYLOAD) + encode(1, REQUEST, 0, b"\xff"),
    b"\7" + encode(1, REQUEST, 0, bytes(600)) + encode(1, 9, 0, b"x"),
    b"\3"
    + encode(1, RESPONSE, 0, _ANSWER)
    + encode(3, DATA, 0, b"x")
    + encode(3, DATA, CLOSED, b""),
    b"\3" + encode(1, RESPONSE, 0, _ERROR) + encode(5, RESPONSE, 0, b"\xff"),
]


@patch.object(frames, "MAX_DATA", 512)  # instead of 4 MiB, which no input reaches
def fuzz(data: bytes) -> None:
    """Take the size of the chunks, and then the wire."""
    size, wire = (data[0] + 1, data[1:]) if data else (1, b"")
    assert _serve(wire, size) == _serve(wire, len(wire) + 1)
    assert _ask(wire, size) == _ask(wire, len(wire) + 1)


def _chunks(wire: bytes, size: int) -> list[bytes]:
    return [wire[at : at + size] for at in range(0, len(wire), size)]


def _serve(wire: bytes, size: int) -> tuple[list[object], bytes]:
    """Answer some calls at once, some never; check that what is answered is a client's to read."""
    server = ServerProtocol()
    events: list[object] = []
    aborted = 0
    waiting: set[int] = set()
    for chunk in _chunks(wire, size):
        for event in server.receive(chunk):
            if not isinstance(event, Request):
                events.append(event)
            if isinstance(event, Aborted):
                waiting.remove(event.stream)
                aborted += 1
            elif isinstance(event, Request):
                events.append(event._replace(payload=bytes(event.payload)))
                if event.stream & 6 == 0:
                    server.respond(event.stream, bytes(event.payload))
                elif event.stream & 6 == 2:
                    server.fail(event.stream, Code.NOT_FOUND, event.method)
                else:
                    waiting.add(event.stream)
            else:
                assert event.stream in waiting
    out = server.take()
    answers: Counter[int] = Counter()
    for frame in _decoded(out):
        assert isinstance(frame, Frame)
        assert frame.kind == RESPONSE
        ttrpc_pb2.Response.FromString(bytes(frame.data))
        answers[frame.stream] += 1
    asked: Counter[int] = Counter()
    for received in _decoded(wire):
        asked[received.stream] += received.kind == REQUEST
    # An answer for each request, but those that wait for theirs.
    for stream, count in asked.items():
        assert answers[stream] >= count - (stream in waiting)
    return events, out


def _decoded(wire: bytes) -> list[Frame | frames.Oversized]:
    return Decoder().feed(wire)


def _ask(wire: bytes, size: int) -> list[object]:
    """Have three calls under way, each of which may end once."""
    client = ClientProtocol()
    streams = [client.request("s", "m", b"", call=call) for call in Call]
    over: set[int] = set()
    events: list[object] = []
    for chunk in _chunks(wire, size):
        for event in client.receive(chunk):
            assert event.stream in streams
            assert event.stream not in over
            if isinstance(event, Response) or event.last:
                over.add(event.stream)
            events.append(event)
    return events
