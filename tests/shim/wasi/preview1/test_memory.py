from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.wasi.preview1.memory import Fault, Memory

PAGE = 65536


def of(data: bytearray) -> Memory:
    memory = Memory()
    memory.attach(lambda: memoryview(data))
    return memory


def test_without_a_memory_everything_faults() -> None:
    with pytest.raises(Fault):
        Memory().write_u32(0, 1)
    with pytest.raises(Fault):
        Memory().write(0, b"x")


def test_addresses_are_unsigned() -> None:
    memory = of(bytearray(PAGE))
    for address in (-1, -PAGE, -4, 0xFFFFFFFF):  # Python would count these from the end
        with pytest.raises(Fault):
            memory.write_u64(address, 1)
        with pytest.raises(Fault):
            memory.write_u32(address, 1)
        with pytest.raises(Fault):
            memory.span(address, 1)


def test_the_last_bytes_are_usable_and_the_next_are_not() -> None:
    data = bytearray(PAGE)
    memory = of(data)
    memory.write_u64(PAGE - 8, 1 << 63)
    memory.write_u32(PAGE - 8, 1)
    assert data[PAGE - 8] == 1
    assert data[-1] == 0x80
    for address in (PAGE - 7, PAGE):
        with pytest.raises(Fault):
            memory.write_u64(address, 1)
    with pytest.raises(Fault):
        memory.write_u32(PAGE - 3, 1)
    with pytest.raises(Fault):
        memory.span(PAGE - 1, 2)
    assert len(memory.span(PAGE, 0)) == 0


def test_memory_that_has_grown_is_found_when_it_is_used() -> None:
    data = bytearray(PAGE)
    fetched = []

    def fetch() -> memoryview:
        fetched.append(len(data))
        return memoryview(bytearray(data)) if len(data) == PAGE else memoryview(data)

    memory = Memory()
    memory.attach(fetch)
    for _ in range(100):
        memory.write_u32(0, 1)
    assert fetched == [PAGE]
    data += bytes(PAGE)
    memory.write_u32(PAGE, 7)
    assert data[PAGE] == 7
    assert memory.span(PAGE, 1)[0] == 7
    assert fetched == [PAGE, 2 * PAGE]


def test_spans_are_the_memory_itself() -> None:
    data = bytearray(PAGE)
    of(data).span(100, 5)[:] = b"hello"
    assert data[100:105] == b"hello"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_buffers(count: int) -> None:
    data = bytearray(PAGE)
    pairs = [(1000 * i, i) for i in range(1, count + 1)]
    data[: 8 * count] = b"".join(struct.pack("<II", *pair) for pair in pairs)
    found = of(data).buffers(0, count)
    assert [len(buffer) for buffer in found] == [size for _, size in pairs]
    found[-1][:] = b"x" * count
    assert data[1000 * count : 1001 * count] == b"x" * count


@pytest.mark.parametrize(
    ("pairs", "count"),
    [
        ([(PAGE, 1)], 1),
        ([(PAGE - 1, 2)], 1),
        ([(0xFFFFFFFF, 0xFFFFFFFF)], 1),
        ([(0, 1), (1, 0xFFFFFFFF)], 2),
        ([(0, 1)], 0xFFFFFFFF),
        ([(0, 1)], -1),
    ],
)
def test_buffers_outside(pairs: list[tuple[int, int]], count: int) -> None:
    data = bytearray(PAGE)
    where = PAGE - 8 * len(pairs)
    data[where:] = b"".join(struct.pack("<II", *pair) for pair in pairs)
    with pytest.raises(Fault):
        of(data).buffers(where, count)


def test_no_more_buffers_than_the_kernel_takes() -> None:
    assert len(of(bytearray(PAGE)).buffers(0, 5000)) == 1024
    assert of(bytearray(PAGE)).buffers(0, 0) == []


_I32 = st.integers(-(2**31), 2**31 - 1)


@given(_I32, _I32)
def test_any_numbers(address: int, size: int) -> None:
    memory = of(bytearray(PAGE))
    inside = (address % 2**32) + (size % 2**32) <= PAGE
    try:
        assert len(memory.span(address, size)) == size % 2**32
    except Fault:
        assert not inside
    else:
        assert inside
