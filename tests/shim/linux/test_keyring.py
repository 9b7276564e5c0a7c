from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from shim.linux.keyring import new_session_keyring
from shim.linux.libc import LIBC, NUMBERS

SPEC_SESSION = -3
DESCRIBE, GET_ID = 6, 0


def keyctl(*arguments: object) -> int:
    return int(LIBC.syscall(NUMBERS["keyctl"], *arguments))


def add_key(description: bytes, ring: int) -> int:
    number = {"x86_64": 248, "aarch64": 217}[os.uname().machine]
    return int(LIBC.syscall(number, b"user", description, b"secret", 6, ring))


def test_empty_and_of_nobody_else(in_child: Callable[..., None]) -> None:
    def entry() -> None:
        assert new_session_keyring() is not None
        parents = keyctl(GET_ID, SPEC_SESSION, 0)
        key = add_key(b"parents", SPEC_SESSION)
        assert key > 0

        def child() -> None:
            serial = new_session_keyring()
            assert serial == keyctl(GET_ID, SPEC_SESSION, 0)
            assert serial not in (parents, None)
            found = ctypes.create_string_buffer(100)
            keyctl(DESCRIBE, serial, found, 100)
            assert found.value.split(b";")[0] == b"keyring"
            search = 10  # KEYCTL_SEARCH
            assert keyctl(search, SPEC_SESSION, b"user", b"parents", 0) == -1
            os.setresuid(1000, 1000, 1000)
            assert add_key(b"own", SPEC_SESSION) > 0

        in_child(child)
        assert keyctl(GET_ID, SPEC_SESSION, 0) == parents

    in_child(entry)
