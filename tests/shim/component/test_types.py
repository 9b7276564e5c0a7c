"""Values on their way through memory and core values, and what may be wrong with those."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.component.errors import Trap
from shim.component.host import Interface
from shim.component.types import (
    BOOL,
    CHAR,
    F32,
    F64,
    MAX_FLAT,
    S8,
    S16,
    S32,
    S64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Enum,
    FixedList,
    Flags,
    FunctionType,
    List,
    Map,
    Option,
    Record,
    Result,
    Tuple,
    ValueType,
    Variant,
)
from tests.shim.component.contexts import Memory, passed, stored

PAIR = Record([("a", U8), ("b", U32)])
SHAPE = Variant([("none", None), ("one", F32), ("two", Tuple([F64, U8])), ("text", STRING)])
LABELS = [f"l{number}" for number in range(32)]

VALUES: list[tuple[ValueType, list[Any]]] = [
    (BOOL, [False, True]),
    (U8, [0, 255]),
    (S8, [-128, 127]),
    (U16, [0, 65535]),
    (S16, [-32768, 32767]),
    (U32, [0, 2**32 - 1]),
    (S32, [-(2**31), 2**31 - 1]),
    (U64, [0, 2**64 - 1]),
    (S64, [-(2**63), 2**63 - 1]),
    (F32, [0.0, -1.5, math.inf]),
    (F64, [0.1, -math.inf]),
    (CHAR, ["a", "\0", "\ud7ff", "\ue000", "\U0010ffff"]),
    (STRING, ["", "a", "\xff", "ä€\U0001f600"]),
    (List(U8), [b"", b"\0\xff"]),
    (List(U16), [[], [1, 65535]]),
    (List(S64), [[-1, 1]]),
    (List(F32), [[0.5, -0.5]]),
    (List(BOOL), [[True, False]]),
    (List(STRING), [["a", "", "b"]]),
    (List(PAIR), [[(1, 2), (255, 2**32 - 1)]]),
    (FixedList(U8, 3), [b"abc"]),
    (FixedList(U32, 2), [[1, 2]]),
    (Map(STRING, U32), [[], [("a", 1), ("b", 2)]]),
    (PAIR, [(1, 2)]),
    (Tuple([U8, U64, U8, U16]), [(1, 2, 3, 4)]),
    (SHAPE, [("none", None), ("one", 1.5), ("two", (2.5, 7)), ("text", "x")]),
    (Enum(LABELS[:3]), ["l0", "l2"]),
    (Enum([f"l{number}" for number in range(257)]), ["l0", "l256"]),
    (Option(U32), [None, 0]),
    (Option(Option(BOOL)), [None, ("some", None), ("some", True)]),
    (Result(U8, STRING), [("ok", 1), ("error", "no")]),
    (Result(None, None), [("ok", None), ("error", None)]),
    (Flags(LABELS[:1]), [frozenset(), frozenset(["l0"])]),
    (Flags(LABELS[:9]), [frozenset(["l0", "l8"])]),
    (Flags(LABELS), [frozenset(LABELS)]),
]


@pytest.mark.parametrize("encoding", ["utf8", "utf16", "latin1+utf16"])
@pytest.mark.parametrize(("kind", "values"), VALUES, ids=lambda each: str(each)[:40])
def test_what_goes_in_comes_out(kind: ValueType, values: list[Any], encoding: str) -> None:
    for value in values:
        context = Memory().context(encoding)
        assert stored(context, kind, value) == value
        assert passed(context, kind, value) == value


@pytest.mark.parametrize(
    ("kind", "size", "alignment", "flat"),
    [
        (BOOL, 1, 1, "i32"),
        (S64, 8, 8, "i64"),
        (STRING, 8, 4, "i32 i32"),
        (Tuple([U8, U64, U8]), 24, 8, "i32 i64 i32"),
        (PAIR, 8, 4, "i32 i32"),
        (Flags(LABELS[:9]), 2, 2, "i32"),
        (Enum(LABELS[:3]), 1, 1, "i32"),
        (Option(U64), 16, 8, "i32 i64"),
        (Result(F32, U32), 8, 4, "i32 i32"),
        (Result(F32, F32), 8, 4, "i32 f32"),
        (Result(F64, F32), 16, 8, "i32 i64"),
        (Variant([("a", Tuple([U8, F32])), ("b", F64)]), 16, 8, "i32 i64 f32"),
        (SHAPE, 24, 8, "i32 i64 i32"),
        (FixedList(U16, 3), 6, 2, "i32 i32 i32"),
        (FixedList(U8, 1000), 1000, 1, " ".join(["i32"] * MAX_FLAT)),
        (Map(U8, U64), 8, 4, "i32 i32"),
    ],
    ids=str,
)
def test_how_they_lie(kind: ValueType, size: int, alignment: int, flat: str) -> None:
    assert (kind.size, kind.alignment, kind.flat) == (size, alignment, tuple(flat.split()))


@pytest.mark.parametrize(
    ("kind", "flat", "value"),
    [
        (BOOL, [2], True),
        (BOOL, [-(2**31)], True),
        (U8, [0x1FF], 255),
        (S8, [0xFF], -1),
        (S8, [0x17F], 127),
        (U32, [-1], 2**32 - 1),
        (U64, [-1], 2**64 - 1),
        (S64, [2**64 - 1], -1),
        (Option(U8), [0, 99], None),
        (Flags(LABELS[:2]), [0xFF], frozenset(LABELS[:2])),
        (Flags(LABELS), [-1], frozenset(LABELS)),
        # what a case shares with wider ones: the bits that are its own count
        (Result(F32, U64), [0, -1 << 32 | 0x3FC00000], ("ok", 1.5)),
        (Result(F64, U64), [0, 0x3FF8000000000000], ("ok", 1.5)),
        (Result(U8, U64), [0, 2**40 + 0x107], ("ok", 7)),
        (Result(F32, U32), [0, 0x3FC00000], ("ok", 1.5)),
    ],
    ids=str,
)
def test_what_core_values_mean(kind: ValueType, flat: list[Any], value: Any) -> None:
    assert kind.lift(Memory().context(), iter(flat)) == value


def test_of_what_is_no_number_there_is_one() -> None:
    memory = Memory()
    context = memory.context()
    context.reach(0, 64)
    struct.pack_into("<IIQ", memory.bytes, 0, 0x7FA00001, 0xFFFFFFFF, 0x7FF4000000000001)
    for kind, start in ((F32, 0), (F32, 4), (F64, 8)):
        assert struct.pack("<d", kind.load(context, start)) == struct.pack("<d", math.nan)
    assert all(map(math.isnan, List(F32).lift(context, iter([0, 2]))))
    assert math.isnan(F64.lift(context, iter([math.nan])))


END = 4096


@pytest.mark.parametrize(
    ("encoding", "kind", "flat", "message"),
    [
        ("utf8", CHAR, [0xD800], "0xd800 is no character"),
        ("utf8", CHAR, [0xDFFF], "0xdfff is no character"),
        ("utf8", CHAR, [0x110000], "0x110000 is no character"),
        ("utf8", CHAR, [-1], "0xffffffff is no character"),
        ("utf8", Enum(LABELS[:3]), [3], "3 is no case: there are 3"),
        ("utf8", Option(U8), [-1, 0], "4294967295 is no case"),
        ("utf8", Result(None, None), [2], "2 is no case"),
        ("utf8", STRING, [END, 1], "1 bytes at 0x1000 are outside"),
        ("utf8", STRING, [END + 1, 0], "0 bytes at 0x1001 are outside"),
        ("utf8", STRING, [0, -1], "a string of 4294967295 bytes is too long"),
        ("utf8", STRING, [-1, 1], "1 bytes at 0xffffffff are outside"),
        ("utf8", STRING, [0, 1], "a string is no utf-8"),
        ("utf8", STRING, [8, 3], "a string is no utf-8"),  # a surrogate
        ("utf8", STRING, [16, 2], "a string is no utf-8"),  # longer than it need be
        ("utf8", STRING, [24, 2], "a string is no utf-8"),  # cut off
        ("utf16", STRING, [1, 1], "0x1 is not aligned to 2"),
        ("utf16", STRING, [0, 2**31 - 1], "is too long"),
        ("utf16", STRING, [END - 2, 2], "4 bytes at 0xffe are outside"),
        ("utf16", STRING, [32, 1], "a string is no utf-16-le"),  # half of a pair
        ("utf16", STRING, [32, 2], "a string is no utf-16-le"),
        ("utf16", STRING, [34, 2], "a string is no utf-16-le"),  # the halves the wrong way round
        ("latin1+utf16", STRING, [1, 1], "0x1 is not aligned to 2"),
        ("latin1+utf16", STRING, [32, 1 << 31 | 1], "a string is no utf-16-le"),
        ("latin1+utf16", STRING, [END, 1], "1 bytes at 0x1000 are outside"),
        ("utf8", List(U32), [2, 1], "0x2 is not aligned to 4"),
        ("utf8", List(U32), [2, 0], "0x2 is not aligned to 4"),
        ("utf8", List(U64), [0, 513], "4104 bytes at 0x0 are outside"),
        ("utf8", List(U64), [0, -1], "is too long"),
        ("utf8", List(U8), [-8, 8], "8 bytes at 0xfffffff8 are outside"),
        ("utf8", List(STRING), [40, 1], "are outside"),
        ("utf8", List(Enum(LABELS[:3])), [0, 1], "255 is no case"),
        ("utf8", Map(U8, U64), [4, 1], "0x4 is not aligned to 8"),
    ],
)
def test_a_trap(encoding: str, kind: ValueType, flat: list[Any], message: str) -> None:
    memory = Memory(END)
    for start, data in (
        (0, b"\xff"),
        (8, b"\xed\xa0\x80"),
        (16, b"\xc1\x81"),
        (24, b"\xe2\x82"),
        (32, b"\x00\xdc\x00\xdc\x00\xd8"),
        (40, b"\xff\xff\xff\xff\1\0\0\0"),
    ):
        memory.bytes[start : start + len(data)] = data
    with pytest.raises(Trap) as caught:
        kind.lift(memory.context(encoding), iter(flat))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (END, "are outside"),
        (END - 4, "are outside"),
        (-8, "at 0xfffffff8 are outside"),
        (3, "is not aligned to 4"),
    ],
)
def test_a_guest_may_make_room_badly(start: int, message: str) -> None:
    memory = Memory(END)
    context = memory.context()
    context._realloc = lambda *_: start
    with pytest.raises(Trap, match=message):
        stored(context, List(U32), [1, 2])


def test_nothing_leaves_an_instance_that_makes_room() -> None:
    memory = Memory()
    context = memory.context()
    seen = []

    def realloc(*_: int) -> int:
        seen.append(context.instance.may_leave)
        return 0

    context._realloc = realloc
    passed(context, STRING, "a")
    assert (seen, context.instance.may_leave) == ([False], True)


def test_memory_may_have_grown() -> None:
    memory = Memory(64)
    context = memory.context()
    assert STRING.lift(context, iter([60, 4])) == "\0\0\0\0"
    memory.bytes = bytearray(128)
    assert STRING.lift(context, iter([120, 8])) == "\0" * 8


@pytest.mark.parametrize(
    ("encoding", "asked", "length"),
    [
        ("utf8", (0, 0, 1, 3), 3),
        ("utf16", (0, 0, 2, 4), 2),
        ("latin1+utf16", (0, 0, 2, 2), 2),
    ],
)
def test_room_for_a_string(encoding: str, asked: tuple[int, ...], length: int) -> None:
    memory = Memory()
    flat: list[Any] = []
    STRING.lower(memory.context(encoding), "aä", flat)
    assert (memory.asked, flat) == ([asked], [1024, length])


def test_functions_of_many_values() -> None:
    many = FunctionType([(f"p{number}", U32) for number in range(17)], Tuple([U8, U8]))
    memory = Memory()
    context = memory.context()
    assert many.lowered(is_async=False) == (("i32", "i32"), ())
    assert many.lowered(is_async=True) == (("i32", "i32"), ("i32",))
    assert many.lifted(is_async=False, callback=False) == (("i32",), ("i32",))
    assert many.lifted(is_async=True, callback=True) == (("i32",), ("i32",))
    (start,) = many.lower_params(context, list(range(17)))
    assert many.lift_params(context, iter([start])) == list(range(17))
    with pytest.raises(Trap, match="is not aligned to 4"):
        many.lift_params(context, iter([2]))
    with pytest.raises(Trap, match="are outside"):
        many.lift_params(context, iter([-4]))
    assert many.lower_result(context, (1, 2), 8) is None
    assert many.lift_result(context, [8]) == (1, 2)
    with pytest.raises(Trap, match="are outside"):
        many.lower_result(context, (1, 2), -1)
    few = FunctionType([("a", U32)], U64)
    assert few.lowered(is_async=True) == (("i32", "i32"), ("i32",))
    assert few.lower_result(context, 7, None) == 7


KINDS = Interface("a:b/c", "1")
TEXTS = [
    "list<string>",
    "list<list<u16>>",
    "record { a: char, b: option<string>, c: list<bool> }",
    "variant { a, b(char), c(list<f32>), d(tuple<string, s64>) }",
    "map<string, list<enum { x, y }>>",
    "list<flags { a, b, c }, 3>",
    "result<list<char>, option<option<u8>>>",
]


@given(
    st.sampled_from(TEXTS),
    st.sampled_from(["utf8", "utf16", "latin1+utf16"]),
    st.binary(min_size=64, max_size=256),
    st.data(),
)
def test_whatever_lies_in_memory(
    text: str, encoding: str, content: bytes, data: st.DataObject
) -> None:
    """It is a value, which is the same when it was written and read again, or a trap."""
    kind = KINDS.parse(text)
    # Small numbers, or else hardly a pointer would lead anywhere.
    content = bytes(each & 0x3F if index % 4 else each for index, each in enumerate(content))
    if data.draw(st.booleans()):
        content = bytes(0 if index % 4 > 1 else each for index, each in enumerate(content))
    memory = Memory()
    memory.bytes[: len(content)] = content
    context = memory.context(encoding)
    start = 8 * data.draw(st.integers(0, 3))
    context.reach(start, kind.size, kind.alignment)
    try:
        value = kind.load(context, start)
    except Trap:
        return
    other = Memory(1 << 16).context(encoding)
    assert repr(stored(other, kind, value)) == repr(value)
    assert repr(passed(other, kind, value)) == repr(value)


CORE = {
    "i32": st.integers(-(2**31), 2**32 - 1) | st.integers(0, 64),
    "i64": st.integers(-(2**63), 2**64 - 1),
    "f32": st.floats(width=32),
    "f64": st.floats(),
}


@given(st.sampled_from(TEXTS), st.binary(max_size=64), st.data())
def test_whatever_a_guest_passes(text: str, content: bytes, data: st.DataObject) -> None:
    kind = KINDS.parse(text)
    flat = [data.draw(CORE[core]) for core in kind.flat]
    memory = Memory(64)
    memory.bytes[: len(content)] = content
    context = memory.context()
    try:
        value = kind.lift(context, iter(flat))
    except Trap:
        return
    assert repr(passed(Memory(1 << 16).context(), kind, value)) == repr(value)
