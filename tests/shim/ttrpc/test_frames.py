"""Cutting bytes into frames: any chunking gives the same, and no bytes are an error."""

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc import frames
from shim.ttrpc.frames import HEADER, MAX_DATA, REQUEST, Decoder, Frame, Oversized, encode

LIMIT = 32  # instead of 4 MiB, so that examples have frames on both sides of it


@pytest.fixture(autouse=True, scope="module")
def _small_limit() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "MAX_DATA", LIMIT)
        yield


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def test_bytes_of_a_frame() -> None:
    assert encode(3, REQUEST, 2, b"abc") == b"\x00\x00\x00\x03\x00\x00\x00\x03\x01\x02abc"
    assert Decoder().feed(b"\x00\x00\x00\x03\xff\x00\x00\x01\x09\xf0abc") == [
        Frame(0xFF000001, 9, 0xF0, b"abc")
    ]


@given(
    st.lists(
        st.builds(
            Frame,
            st.integers(0, 2**32 - 1),
            st.integers(0, 255),
            st.integers(0, 255),
            st.binary(max_size=2 * LIMIT),
        )
    ),
    st.lists(st.integers(0, 10_000)),
)
def test_any_chunking(sent: list[Frame], cuts: list[int]) -> None:
    wire = b"".join(encode(f.stream, f.kind, f.flags, bytes(f.data)) for f in sent)
    decoder = Decoder()
    received = [frame for chunk in cut(wire, cuts) for frame in decoder.feed(chunk)]
    assert received == [
        f if len(f.data) <= LIMIT else Oversized(f.stream, f.kind, len(f.data)) for f in sent
    ]


@given(st.lists(st.binary(max_size=64)))
def test_any_bytes(chunks: list[bytes]) -> None:
    decoder = Decoder()
    for chunk in chunks:
        decoder.feed(chunk)
        assert len(decoder._header) < HEADER.size
        assert decoder._data is None or len(decoder._data) <= LIMIT


def test_the_longest_claim_is_skipped_without_being_stored() -> None:
    decoder = Decoder()
    assert decoder.feed(HEADER.pack(0xFFFFFFFF, 5, REQUEST, 0)) == []
    mebi = bytes(1 << 20)
    for _ in range(4095):
        assert decoder.feed(mebi) == []
    assert decoder._data is None
    assert decoder.feed(mebi[1:] + encode(7, REQUEST, 0, b"x")) == [
        Oversized(5, REQUEST, 0xFFFFFFFF),
        Frame(7, REQUEST, 0, b"x"),
    ]


def test_the_limit() -> None:
    assert MAX_DATA == 4 * 1024 * 1024
    for length in (LIMIT, LIMIT + 1):
        (frame,) = Decoder().feed(encode(1, REQUEST, 0, bytes(length)))
        assert isinstance(frame, Frame if length == LIMIT else Oversized)


def test_what_was_put_together_is_wiped_and_not_inherited() -> None:
    decoder = Decoder()
    wire = encode(1, REQUEST, 0, b"secret") + encode(3, REQUEST, 0, b"another")
    assert decoder.feed(wire[:12]) == []
    (frame,) = decoder.feed(wire[12:-1])
    assert frame == Frame(1, REQUEST, 0, b"secret")
    assert isinstance(frame, Frame)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, frame.data)
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == bytes(6)
    os.close(reader)
    os.close(writer)
    decoder.forget()
    assert frame.data == bytes(6)
    assert decoder.feed(wire[-1:]) == [Frame(3, REQUEST, 0, b"another")]
