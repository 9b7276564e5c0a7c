from __future__ import annotations

import pytest

from shim.wasi.preview1 import errno

from .conftest import PAGE, Guest


@pytest.mark.parametrize("kind", ["args", "environ"])
@pytest.mark.parametrize(
    "strings", [[], [b"one"], [b"", b"a b", b"\xff\xfe", "ü=\n".encode(), b"x" * 1000]]
)
def test_strings(guest: Guest, kind: str, strings: list[bytes]) -> None:
    guest.program.args = strings if kind == "args" else [b"other"]
    guest.program.env = strings if kind == "environ" else [b"other"]
    count, size = guest.room(4), guest.room(4)
    assert guest(f"{kind}_sizes_get", count, size) == 0
    assert guest.u32(count) == len(strings)
    array, buffer = guest.room(4 * len(strings)), guest.room(guest.u32(size))
    assert guest(f"{kind}_get", array, buffer) == 0
    whole = bytes(guest.memory[buffer : buffer + guest.u32(size)])
    assert whole == b"".join(text + b"\0" for text in strings)
    for i, text in enumerate(strings):
        address = guest.u32(array + 4 * i)
        assert guest.memory[address : address + len(text) + 1] == text + b"\0"
    if strings:
        assert guest(f"{kind}_get", PAGE - 2, buffer) == errno.FAULT
        assert guest(f"{kind}_get", array, PAGE) == errno.FAULT
        assert guest(f"{kind}_sizes_get", PAGE - 1, size) == errno.FAULT
