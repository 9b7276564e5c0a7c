"""Small binaries that ask for much: a line, and soon."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shim.component.binary.decoding import HEADER
from shim.component.host import Registry
from shim.component.planning import plan_component
from shim.engines.base import ModuleError
from tests.shim.component.providing import whatever_is_imported

CORE = b"\0asm\1\0\0\0"
NO_FUNCTION = b"\x40\0\1\0"
"""The type of a function without parameters and result."""


def number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def index(value: int) -> bytes:
    """Return a type's index, a signed number."""
    out = number(value)
    return out if out[-1] < 0x40 else bytes([*out[:-1], out[-1] | 0x80, 0])


def name(text: str) -> bytes:
    return number(len(text)) + text.encode()


def plain(text: str) -> bytes:
    return b"\0" + name(text)


def vector(items: Sequence[bytes]) -> bytes:
    return number(len(items)) + b"".join(items)


def section(kind: int, *items: bytes) -> bytes:
    content = vector(items)
    return bytes([kind]) + number(len(content)) + content


def nested(content: bytes, kind: int = 4) -> bytes:
    return bytes([kind]) + number(len(content)) + content


def components_in_components(levels: int) -> bytes:
    binary = HEADER
    for _ in range(levels):
        binary = HEADER + nested(binary)
    return binary


def types_in_types(levels: int) -> bytes:
    return HEADER + section(7, b"\x42\1\1" * levels + b"\x42\0")


def instances_of_types_before(levels: int, each: int = 1) -> bytes:
    """Nested by references, each to the type before it."""
    types = [b"\x42" + vector([b"\4" + plain("r") + b"\3\1"])]
    for level in range(levels):
        exports = [b"\4" + plain(f"x{place}") + b"\5\0" for place in range(each)]
        types.append(b"\x42" + vector([b"\2\3\2\1" + number(level), *exports]))
    return HEADER + section(7, *types)


def instances_of_components_before(levels: int, each: int) -> bytes:
    binary = HEADER + nested(HEADER)
    for level in range(levels):
        inner = section(6, b"\4\2\1" + number(level)) + section(5, *[b"\0\0\0"] * each)
        binary += nested(HEADER + inner)
    return binary + section(5, b"\0" + number(levels) + b"\0")


def large_instance() -> bytes:
    exports = [b"\4" + plain(f"f{place}") + b"\1\0" for place in range(2000)]
    return b"\x42" + vector([b"\1" + NO_FUNCTION, *exports])


def wide_modules() -> bytes:
    """Functions of 1,000 parameters, 2,000 of them, imported 400 times."""
    kind = section(1, b"\x60" + vector([b"\x7f"] * 1000) + b"\0")
    imports = [name("a") + name(f"f{place}") + b"\0\0" for place in range(2000)]
    exports = [name(f"f{place}") + b"\0\0" for place in range(2000)]
    return (
        HEADER
        + nested(CORE + kind + section(2, *imports), 1)
        + nested(CORE + kind + section(3, b"\0") + section(7, *exports), 1)
        + section(2, b"\0\1\0", *[b"\0\0" + vector([name("a") + b"\x12\0"])] * 400)
    )


TUPLES = [b"\x6f\2\x7d\x7d"] + [b"\x6f\2" + index(level) * 2 for level in range(200)]
OPTIONS = [b"\x6b\x7d"] + [b"\x6b" + index(level) for level in range(100_000)]
BAGS = [b"\1\0"] + [b"\1" + vector([plain("a") + b"\5" + number(n)]) for n in range(1000)]


@pytest.mark.parametrize(
    ("binary", "message"),
    [
        (components_in_components(10_000), "nested deeper than 32 levels"),
        (types_in_types(100_000), "nested deeper than 32 levels"),
        (instances_of_types_before(10_000), "instances are nested deeper than 32 levels"),
        (HEADER + section(5, *BAGS), "instances are nested deeper than 32 levels"),
        (HEADER + section(7, *TUPLES), "letters to write"),
        (HEADER + section(7, *OPTIONS), "a type is nested deeper than 100 levels"),
        (HEADER + section(7, b"\x6b\0"), "type 0 is out of bounds: there are 0"),
        (HEADER + section(7, b"\x69\0"), "type 0 is out of bounds: there are 0"),
        (
            HEADER + section(7, NO_FUNCTION)
            + section(10, *[plain(f"a{n}") + b"\1\0" for n in range(250_000)]),
            "more than 200,000 items altogether",
        ),
        (HEADER + b"\x0a\x05\xff\xff\xff\xff\x0f", "4294967295 items are said to follow in 0"),
        (HEADER + nested(CORE + b"\1\5\xff\xff\xff\xff\x0f", 1), "4294967295 items"),
        (
            HEADER + section(7, large_instance())
            + section(10, *[plain(f"i{n}") + b"\5\0" for n in range(20_000)]),
            "its types are too much to compare",
        ),
        (
            HEADER + section(7, large_instance()) + section(10, plain("i") + b"\5\0")
            + section(11, *[plain(f"e{n}") + b"\5\0\0" for n in range(20_000)]),
            "its types are too much to compare",
        ),
        (
            instances_of_types_before(28, 2) + section(10, plain("a") + b"\5\x1c"),
            "its types are too much to compare",
        ),
        (
            HEADER
            + nested(
                instances_of_types_before(31) + section(10, plain("a") + b"\5" + number(31))
            ),
            "component at 0xb: instances are nested deeper than 32 levels",
        ),
        (instances_of_components_before(30, 2), "more than 200,000 definitions"),
        (instances_of_components_before(3000, 1), "deeper than 64 levels"),
        (wide_modules(), "its types are too much to compare"),
        (
            HEADER + section(7, NO_FUNCTION)
            + section(10, plain("a" + "-1" * 100_000 + "_") + b"\1\0"),
            "a-1-1-1",
        ),
        (
            HEADER + section(7, NO_FUNCTION)
            + section(10, plain("a:b/c@1.0.0-" + "1." * 100_000 + "_") + b"\1\0"),
            "a:b/c@1.0.0-1.1",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_refused(binary: bytes, message: str) -> None:
    with pytest.raises(ModuleError) as caught:
        plan_component(binary, whatever_is_imported(binary))
    assert message in str(caught.value)


def test_what_is_just_small_enough_is_planned() -> None:
    for binary in (
        components_in_components(31),
        types_in_types(30),
        instances_of_types_before(31),
        instances_of_components_before(60, 1),
        instances_of_components_before(12, 2),
    ):
        plan_component(binary, whatever_is_imported(binary))


def test_deep_everywhere_at_once() -> None:
    """What is gone through by a function that calls itself has all its depths together."""
    options = [b"\1\x6b" + index(level) for level in range(1, 99)]
    types = [
        b"\x42"
        + vector(
            [
                b"\4" + plain("r") + b"\3\1",
                b"\1\x69\0",
                *options,
                b"\1\x40\1" + name("x") + index(99) + b"\1\0",
                b"\4" + plain("f") + b"\1" + number(100),
            ]
        )
    ]
    for level in range(30):
        instance = [b"\2\3\2\1" + number(level), b"\4" + plain("x") + b"\5\0"]
        types.append(b"\x42" + vector(instance))
    binary = HEADER + section(7, *types) + section(10, plain("a") + b"\5" + number(30))
    for _ in range(30):
        binary = HEADER + nested(binary)
    plan_component(binary, whatever_is_imported(binary))


def test_cut_off_anywhere() -> None:
    binary = instances_of_types_before(3, 2) + section(10, plain("a") + b"\5\1")
    for end in range(len(binary)):
        with pytest.raises(ModuleError):
            plan_component(binary[:end] + b"\xff", Registry())
