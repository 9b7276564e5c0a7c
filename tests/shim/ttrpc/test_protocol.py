"""The rules of streams, at both ends, without a socket."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto import ttrpc_pb2
from shim.ttrpc.frames import (
    CLOSED,
    DATA,
    HEADER,
    MAX_DATA,
    NO_DATA,
    OPEN,
    REQUEST,
    RESPONSE,
    Decoder,
    Frame,
    encode,
)
from shim.ttrpc.protocol import (
    Aborted,
    Call,
    ClientProtocol,
    Data,
    Request,
    Response,
    ServerProtocol,
)
from shim.ttrpc.status import Code, RpcError

# Encoded by hand: service "s" and method "m", nothing else.
ENVELOPE = b"\x0a\x01s\x12\x01m"


def answers(end: ServerProtocol) -> list[tuple[int, Code, str]]:
    """Return what the server wants to send, all of which must be responses."""
    result = []
    for frame in Decoder().feed(end.take()):
        assert isinstance(frame, Frame)
        assert (frame.kind, frame.flags) == (RESPONSE, 0)
        status = ttrpc_pb2.Response.FromString(bytes(frame.data)).status
        result.append((frame.stream, Code(status.code), status.message))
    return result


def codes(end: ServerProtocol) -> list[tuple[int, Code]]:
    return [(stream, code) for stream, code, _ in answers(end)]


class TestServer:
    def test_request(self) -> None:
        envelope = bytes.fromhex("0a0173 12016d 1a0170 2080a8d6b907 2a0a0a034b2d7812037a7a7a")
        server = ServerProtocol()
        assert list(server.receive(encode(1, REQUEST, 0, envelope))) == [
            Request(1, Call.UNARY, "s", "m", b"p", 2.0, {"k-x": ["zzz"]})
        ]
        assert server.take() == b""

    @pytest.mark.parametrize(
        ("flags", "call"), [(0, Call.UNARY), (OPEN, Call.SENDING), (CLOSED, Call.RECEIVING)]
    )
    def test_kinds_of_call(self, flags: int, call: Call) -> None:
        (event,) = ServerProtocol().receive(encode(1, REQUEST, flags, ENVELOPE))
        assert event == Request(1, call, "s", "m", b"", None, {})

    def test_answers(self) -> None:
        server = ServerProtocol()
        list(server.receive(encode(1, REQUEST, 0, ENVELOPE) + encode(3, REQUEST, 0, ENVELOPE)))
        server.fail(3, Code.NOT_FOUND, "no")
        server.respond(1, b"p")
        assert server.take() == bytes.fromhex(
            "00000008 00000003 02 00 0a060805 12026e6f 00000003 00000001 02 00 120170"
        )

    def test_even_stream(self) -> None:
        server = ServerProtocol()
        assert list(server.receive(encode(2, REQUEST, 0, ENVELOPE))) == []
        assert codes(server) == [(2, Code.INVALID_ARGUMENT)]

    def test_streams_must_rise(self) -> None:
        server = ServerProtocol()
        list(server.receive(encode(5, REQUEST, 0, ENVELOPE)))
        assert list(server.receive(encode(3, REQUEST, 0, ENVELOPE))) == []
        assert list(server.receive(encode(5, REQUEST, 0, ENVELOPE))) == []
        assert codes(server) == [(3, Code.INVALID_ARGUMENT), (5, Code.INVALID_ARGUMENT)]
        server.respond(5, b"")  # the first call of that number is still owed its answer
        assert codes(server) == [(5, Code.OK)]

    def test_malformed_envelope(self) -> None:
        server = ServerProtocol()
        for stream, data in [(1, b"\x0a\xff"), (3, b"\x0a\x01\xff"), (5, b"\xff" * 11)]:
            assert list(server.receive(encode(stream, REQUEST, 0, data))) == []
        assert codes(server) == [(s, Code.INVALID_ARGUMENT) for s in (1, 3, 5)]

    def test_unknown_kind_is_ignored(self) -> None:
        server = ServerProtocol()
        assert list(server.receive(encode(1, 9, 0, b"x") + encode(1, RESPONSE, 0, b""))) == []
        assert server.take() == b""

    def test_oversized(self) -> None:
        server = ServerProtocol()
        wire = HEADER.pack(MAX_DATA + 1, 1, REQUEST, 0) + bytes(MAX_DATA)
        assert list(server.receive(wire)) == []
        assert server.take() == b""  # not before it is over
        (event,) = server.receive(b"\x00" + encode(3, REQUEST, 0, ENVELOPE))
        assert event.stream == 3
        assert codes(server) == [(1, Code.RESOURCE_EXHAUSTED)]

    def test_oversized_answer(self) -> None:
        server = ServerProtocol()
        list(server.receive(encode(1, REQUEST, 0, ENVELOPE) + encode(3, REQUEST, 0, ENVELOPE)))
        server.respond(1, bytes(MAX_DATA))
        server.fail(3, Code.INTERNAL, "x" * MAX_DATA)
        assert codes(server) == [(1, Code.RESOURCE_EXHAUSTED), (3, Code.INTERNAL)]

    def test_message_that_is_not_unicode(self) -> None:
        server = ServerProtocol()
        list(server.receive(encode(1, REQUEST, 0, ENVELOPE)))
        server.fail(1, Code.NOT_FOUND, "no file /tmp/\udcff")
        assert answers(server) == [(1, Code.NOT_FOUND, "no file /tmp/\\udcff")]

    def test_data(self) -> None:
        server = ServerProtocol()
        wire = (
            encode(1, REQUEST, OPEN, ENVELOPE)
            + encode(1, DATA, 0, b"a")
            + encode(1, DATA, 0, b"")
            + encode(1, DATA, CLOSED | NO_DATA, b"")
        )
        assert list(server.receive(wire))[1:] == [
            Data(1, b"a", False),
            Data(1, b"", False),
            Data(1, None, True),
        ]
        server.send_data(1, b"b")
        server.send_data(1, None, last=True)
        assert server.take() == encode(1, DATA, 0, b"b") + encode(1, DATA, CLOSED | NO_DATA, b"")
        with pytest.raises(KeyError):
            server.respond(1, b"")

    @pytest.mark.parametrize("flags", [0, CLOSED])
    def test_data_where_none_may_come(self, flags: int) -> None:
        server = ServerProtocol()
        events = server.receive(encode(1, REQUEST, flags, ENVELOPE) + encode(1, DATA, 0, b"x"))
        assert list(events)[1:] == [Aborted(1)]
        assert codes(server) == [(1, Code.INVALID_ARGUMENT)]

    def test_data_after_the_last(self) -> None:
        server = ServerProtocol()
        wire = encode(1, REQUEST, OPEN, ENVELOPE) + encode(1, DATA, CLOSED, b"a")
        assert list(server.receive(wire))[1:] == [Data(1, b"a", True)]
        assert list(server.receive(encode(1, DATA, 0, b"b"))) == [Aborted(1)]
        assert codes(server) == [(1, Code.INVALID_ARGUMENT)]

    def test_data_of_no_call(self) -> None:
        server = ServerProtocol()
        assert list(server.receive(encode(1, DATA, 0, b"x"))) == []
        assert codes(server) == [(1, Code.INVALID_ARGUMENT)]

    def test_no_data_to_a_unary_call(self) -> None:
        server = ServerProtocol()
        list(server.receive(encode(1, REQUEST, 0, ENVELOPE)))
        with pytest.raises(ValueError, match="unary"):
            server.send_data(1, b"")

    def test_answer_in_the_middle_of_a_chunk(self) -> None:
        """Whether a data frame is for an open call depends on an answer given just before it."""
        server = ServerProtocol()
        wire = encode(1, REQUEST, OPEN, ENVELOPE) + encode(1, DATA, 0, b"x")
        for event in server.receive(wire):
            assert isinstance(event, Request)
            server.respond(1, b"")
        assert codes(server) == [(1, Code.OK), (1, Code.INVALID_ARGUMENT)]

    @given(st.lists(st.binary(max_size=40)))
    def test_any_bytes(self, chunks: list[bytes]) -> None:
        server = ServerProtocol()
        for chunk in chunks:
            list(server.receive(chunk))

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 9),
                st.sampled_from([REQUEST, REQUEST, DATA, RESPONSE, 7]),
                st.integers(0, 7),
                st.sampled_from([ENVELOPE, b"", b"\xff"]),
                st.booleans(),
            )
        )
    )
    def test_every_request_is_answered_once(
        self, sent: list[tuple[int, int, int, bytes, bool]]
    ) -> None:
        server = ServerProtocol()
        owed: list[int] = []
        seen: Counter[type] = Counter()
        for stream, kind, flags, data, at_once in sent:
            for event in server.receive(encode(stream, kind, flags, data)):
                seen[type(event)] += 1
                if isinstance(event, Aborted):
                    owed.remove(event.stream)
                elif isinstance(event, Request):
                    owed.append(event.stream)
            if at_once and owed:
                server.respond(owed.pop(), b"")
        for stream in owed:
            server.respond(stream, b"")
        requests = sum(kind == REQUEST for _, kind, *_ in sent)
        # Any frame with an even number is refused; of other frames, those that carry data.
        refused = sum(kind != REQUEST and (s % 2 == 0 or kind == DATA) for s, kind, *_ in sent)
        refused -= seen[Data]
        assert len(answers(server)) == requests + refused - seen[Aborted]
        assert server._streams == {}


class TestClient:
    def test_request(self) -> None:
        client = ClientProtocol()
        assert client.request("s", "m", b"p", timeout=2, metadata={"K-x": ["zzz"]}) == 1
        assert client.take() == encode(
            1,
            REQUEST,
            0,
            bytes.fromhex("0a0173 12016d 1a0170 2080a8d6b907 2a0a0a036b2d7812037a7a7a"),
        )
        assert client.request("s", "m", b"", call=Call.SENDING) == 3
        assert client.request("s", "m", b"", call=Call.RECEIVING) == 5
        assert client.take() == encode(3, REQUEST, OPEN, ENVELOPE) + encode(
            5, REQUEST, CLOSED, ENVELOPE
        )

    @pytest.mark.parametrize(
        ("timeout", "nano"), [(1e-12, 1), (1.5, 1_500_000_000), (float("inf"), 2**63 - 1)]
    )
    def test_timeout(self, timeout: float, nano: int) -> None:
        client = ClientProtocol()
        client.request("s", "m", b"", timeout=timeout)
        assert ttrpc_pb2.Request.FromString(client.take()[HEADER.size :]).timeout_nano == nano

    def test_no_time_left(self) -> None:
        client = ClientProtocol()
        with pytest.raises(RpcError) as error:
            client.request("s", "m", b"", timeout=0)
        assert error.value.code is Code.DEADLINE_EXCEEDED
        assert client.take() == b""

    def test_oversized_request(self) -> None:
        client = ClientProtocol()
        with pytest.raises(RpcError) as error:
            client.request("s", "m", bytes(MAX_DATA))
        assert error.value.code is Code.RESOURCE_EXHAUSTED
        assert client.take() == b""
        assert client.request("s", "m", b"") == 1

    def test_numbers_run_out(self) -> None:
        client = ClientProtocol()
        client._next = 0xFFFFFFFF
        assert client.request("s", "m", b"") == 0xFFFFFFFF
        with pytest.raises(RpcError) as error:
            client.request("s", "m", b"")
        assert error.value.code is Code.UNAVAILABLE

    @pytest.mark.parametrize(
        ("frame", "event"),
        [
            (encode(1, RESPONSE, 0, b"\x12\x01p"), Response(1, Code.OK, "", b"p")),
            (encode(1, RESPONSE, 0, b""), Response(1, Code.OK, "", b"")),
            (
                encode(1, RESPONSE, 0, b"\x0a\x06\x08\x05\x12\x02no\x12\x01p"),
                Response(1, Code.NOT_FOUND, "no", b""),
            ),
            (
                encode(1, RESPONSE, 0, b"\x0a\x02\x08\x63"),  # there is no code 99
                Response(1, Code.UNKNOWN, "", b""),
            ),
        ],
    )
    def test_response(self, frame: bytes, event: Response) -> None:
        client = ClientProtocol()
        client.request("s", "m", b"")
        assert list(client.receive(frame)) == [event]
        assert list(client.receive(frame)) == []

    @pytest.mark.parametrize(
        ("frame", "code"),
        [
            (encode(1, RESPONSE, 0, b"\xff"), Code.INTERNAL),
            (encode(1, DATA, 0, b""), Code.INTERNAL),
            (encode(1, REQUEST, 0, b""), Code.INTERNAL),
            (encode(1, 9, 0, b""), Code.INTERNAL),
            (HEADER.pack(MAX_DATA + 1, 1, 2, 0) + bytes(MAX_DATA + 1), Code.RESOURCE_EXHAUSTED),
        ],
    )
    def test_bad_answer_ends_the_call(self, frame: bytes, code: Code) -> None:
        client = ClientProtocol()
        client.request("s", "m", b"")
        (event,) = client.receive(frame)
        assert isinstance(event, Response)
        assert event.code is code
        assert list(client.receive(frame)) == []

    def test_forgotten_call(self) -> None:
        client = ClientProtocol()
        client.forget(client.request("s", "m", b""))
        assert list(client.receive(encode(1, RESPONSE, 0, b""))) == []

    def test_sending(self) -> None:
        client = ClientProtocol()
        stream = client.request("s", "m", b"", call=Call.SENDING)
        client.take()
        client.send_data(stream, b"a")
        client.send_data(stream, b"b", last=True)
        assert client.take() == b"".join(
            [
                encode(1, DATA, 0, b"a"),
                encode(1, DATA, 0, b"b"),
                encode(1, DATA, CLOSED | NO_DATA, b""),
            ]
        )
        with pytest.raises(ValueError, match="not open"):
            client.send_data(stream, b"c")
        with pytest.raises(RpcError):
            client.send_data(client.request("s", "m", b"", call=Call.SENDING), bytes(MAX_DATA + 1))

    def test_receiving(self) -> None:
        client = ClientProtocol()
        client.request("s", "m", b"", call=Call.RECEIVING)
        wire = encode(1, DATA, 0, b"a") + encode(1, DATA, CLOSED, b"b") + encode(1, DATA, 0, b"c")
        assert list(client.receive(wire)) == [Data(1, b"a", False), Data(1, b"b", True)]

    @given(st.lists(st.binary(max_size=40)))
    def test_any_bytes(self, chunks: list[bytes]) -> None:
        client = ClientProtocol()
        for call in Call:
            client.request("s", "m", b"", call=call)
        for chunk in chunks:
            list(client.receive(chunk))


@given(
    st.lists(
        st.tuples(
            st.text(max_size=5),
            st.text(max_size=5),
            st.binary(max_size=20),
            st.none() | st.integers(1, 2**31),
            st.dictionaries(
                st.text("abc-", max_size=3), st.lists(st.text(max_size=3), min_size=1), max_size=2
            ),
            st.sampled_from([Code.OK, *Code]),
        ),
        max_size=8,
    ),
    st.integers(1, 64),
)
def test_client_and_server_understand_each_other(
    calls: Sequence[tuple[str, str, bytes, int | None, dict[str, list[str]], Code]],
    size: int,
) -> None:
    client, server = ClientProtocol(), ServerProtocol()
    for service, method, payload, timeout, metadata, _ in calls:
        client.request(service, method, payload, timeout=timeout, metadata=metadata)
    wire = client.take()
    received = [
        event._replace(payload=bytes(event.payload)) if isinstance(event, Request) else event
        for i in range(0, len(wire), size)
        for event in server.receive(wire[i : i + size])
    ]
    assert received == [
        Request(1 + 2 * i, Call.UNARY, *call[:3], call[3], call[4]) for i, call in enumerate(calls)
    ]
    expected = []
    for i in reversed(range(len(calls))):
        code, payload = calls[i][5], calls[i][2]
        if code is Code.OK:
            server.respond(1 + 2 * i, payload)
            expected.append(Response(1 + 2 * i, code, "", payload))
        else:
            server.fail(1 + 2 * i, code, "why")
            expected.append(Response(1 + 2 * i, code, "why", b""))
    wire = server.take()
    answered = [
        event for i in range(0, len(wire), size) for event in client.receive(wire[i : i + size])
    ]
    assert answered == expected
