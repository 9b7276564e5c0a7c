"""Cutting a field out of a message, beside what protobuf makes of it."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from proto import ttrpc_pb2
from shim.ttrpc.wire import cut

PAYLOAD = ttrpc_pb2.Request.PAYLOAD_FIELD_NUMBER


@given(
    st.builds(
        ttrpc_pb2.Request,
        service=st.text(max_size=5),
        method=st.text(max_size=200),
        payload=st.binary(max_size=500),
        timeout_nano=st.integers(-(2**63), 2**63 - 1),
        metadata=st.lists(st.builds(ttrpc_pb2.KeyValue, key=st.text(), value=st.text())),
    )
)
def test_the_rest_and_the_field_are_the_message(message: ttrpc_pb2.Request) -> None:
    rest, payload = cut(memoryview(message.SerializeToString()), PAYLOAD)
    assert payload == message.payload
    message.ClearField("payload")
    assert ttrpc_pb2.Request.FromString(rest) == message


def test_the_last_one_counts() -> None:
    twice = b"".join(ttrpc_pb2.Request(payload=p).SerializeToString() for p in (b"a", b"b"))
    rest, payload = cut(memoryview(twice), PAYLOAD)
    assert (rest, bytes(payload)) == (b"", b"b")


def test_fields_that_nobody_knows_stay_in_the_rest() -> None:
    unknown = b"\xf8\x07\x01" + b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4) + b"\xfa\x07\x01x"
    rest, payload = cut(memoryview(unknown + b"\x1a\x01y" + unknown), PAYLOAD)
    assert (rest, bytes(payload)) == (unknown * 2, b"y")


@given(st.binary(max_size=40))
def test_any_bytes(data: bytes) -> None:
    try:
        rest, payload = cut(memoryview(data), PAYLOAD)
        message = ttrpc_pb2.Request.FromString(rest)
    except DecodeError:
        return
    whole = ttrpc_pb2.Request.FromString(data)
    assert payload == whole.payload
    whole.ClearField("payload")
    assert message == whole


@pytest.mark.parametrize(
    "data",
    [b"\x1a", b"\x1a\x05abc", b"\x1a\xff\xff\xff\xff\x0f", b"\x80" * 10, b"\x21", b"\x1b\x1c"],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(DecodeError):
        cut(memoryview(data), PAYLOAD)
