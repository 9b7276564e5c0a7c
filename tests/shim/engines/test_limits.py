"""What a bound for memory does to modules of all shapes, and to real ones that grow."""

import pytest

from shim.engines.base import ModuleError
from shim.engines.limits import limit_memory
from tests.guests.build import build
from tests.shim.engines.conftest import Runner

HEADER = b"\0asm\1\0\0\0"
CUSTOM = b"\0\x05\x04name"


def module(content: bytes) -> bytes:
    return HEADER + CUSTOM + bytes([5, len(content)]) + content + CUSTOM


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"\1\0\1", b"\1\1\1\x10"),  # without a maximum: 16
        (b"\1\1\1\2", b"\1\1\1\2"),  # the module's own is lower
        (b"\1\1\1\x80\x01", b"\1\1\1\x10"),  # ... or higher
        (b"\1\1\x81\x00\x80\x80\x00", b"\1\1\1\0"),  # numbers longer than they need be
        (b"\2\0\1\4\1", b"\2\1\1\x10\5\1\x10"),  # two, one of them of 64 bits
        (b"\1\3\1\x7f", b"\1\3\1\x10"),  # shared
        (b"\0", b"\0"),
    ],
)
def test_the_section_is_rewritten_and_nothing_else(before: bytes, after: bytes) -> None:
    assert limit_memory(module(before), 16) == module(after)


def test_a_module_without_a_memory_stays_as_it_is() -> None:
    assert limit_memory(HEADER + CUSTOM, 16) == HEADER + CUSTOM


def test_a_memory_that_begins_with_more_is_refused() -> None:
    with pytest.raises(ModuleError, match="begins with 17 pages, and 16 are allowed"):
        limit_memory(module(b"\1\0\x11"), 16)


@pytest.mark.parametrize(
    "broken",
    [
        HEADER + b"\5",
        HEADER + b"\5\x7f\1",
        HEADER + b"\5" + b"\xff" * 10,
        module(b"\1\0"),
        module(b"\2\0\1"),
        module(b"\1\0\1\0"),
        module(b"\1\x08\1\0"),  # pages of another size
        module(b""),
    ],
)
def test_what_cannot_be_followed_is_refused(broken: bytes) -> None:
    with pytest.raises(ModuleError):
        limit_memory(broken, 16)


def test_a_program_cannot_grow_beyond_it(run: Runner) -> None:
    whole = build("memory").read_bytes()  # takes 8 times 4 MiB
    assert run(whole, "grow").status == 0
    limited = run(limit_memory(whole, 400), "grow")
    assert limited.status == 1  # which is what it makes of a malloc that fails
    assert limited.stdout.startswith(b"grown 0\n")
    assert b"grown 7\n" not in limited.stdout
