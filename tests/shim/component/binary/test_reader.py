"""Numbers, names and counts of a component's binary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.component.binary.reader import MAX_ITEMS, Allowance, Flaw, Reader


def reader(data: bytes, allowance: Allowance | None = None) -> Reader:
    return Reader(data, 0, len(data), allowance or Allowance())


def unsigned(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@given(st.integers(0, (1 << 32) - 1))
def test_any_number(value: int) -> None:
    assert reader(unsigned(value)).number() == value


@given(st.integers(-(1 << 32), (1 << 32) - 1))
def test_any_signed_number(value: int) -> None:
    out, rest = bytearray(), value
    while not -64 <= rest < 64:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    assert reader(bytes([*out, rest & 0x7F])).signed(33) == value


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\xff" * 4, b"\xff\xff\xff\xff\x1f", b"\x80" * 5 + b"\0"]
)
def test_no_number(data: bytes) -> None:
    with pytest.raises(Flaw):
        reader(data).number()


def test_padded_number() -> None:
    assert reader(b"\x80\x80\x80\x80\x00").number() == 0


@pytest.mark.parametrize("data", [b"\x02a", b"\xff\xff\xff\xff\x0fa", b"\x01\xff", b"\x02\xed\xa0"])
def test_no_name(data: bytes) -> None:
    with pytest.raises(Flaw):
        reader(data).name()


def test_a_count_is_believed_only_if_so_much_follows() -> None:
    assert reader(b"\x02\0\0").vector(lambda: None) == [None, None]
    with pytest.raises(Flaw, match="3 items are said to follow in 2 bytes"):
        reader(b"\x03\0\0").count()


def test_all_vectors_together_are_limited() -> None:
    allowance = Allowance()
    data = unsigned(MAX_ITEMS // 2 + 1) + bytes(MAX_ITEMS)
    reader(data, allowance).count()
    with pytest.raises(Flaw, match="items altogether"):
        reader(data, allowance).count()


def test_a_part_cannot_reach_beyond_itself() -> None:
    whole = reader(b"\x01\x02\x03")
    part = whole.within(2)
    part.skip(2)
    with pytest.raises(Flaw):
        part.byte()
    assert whole.byte() == 3
    with pytest.raises(Flaw):
        whole.within(1)
