"""What the first bytes of a file say."""

from __future__ import annotations

import pytest

from shim.engines.base import is_component


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\0asm\x0d\0\1\0", True),
        (b"\0asm\1\0\0\0", False),
        (b"(component)", True),
        (b"(components)", False),
        (b"(module)", False),
        (b" ;; a (module\n(; b; c ;)(;;)(;;;)\t(\n component $name", True),
        (b"(; (component ;) (module", False),
        (b"", False),
    ],
)
def test_is_a_component(head: bytes, expected: bool) -> None:
    assert is_component(head) is expected
