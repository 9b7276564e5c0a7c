"""Session keyrings (library). See session-keyring(7) and keyctl(2)."""

from __future__ import annotations

import ctypes
import errno
from typing import Final

from shim.linux.libc import NUMBERS, fail, system_call

_JOIN_SESSION_KEYRING: Final = 1

_keyctl = system_call(ctypes.c_int, ctypes.c_char_p)


def new_session_keyring() -> int | None:
    """Leave the keys of the session behind for an empty keyring, and return its serial number.

    It has no name, so nobody else can join it, nor have made one to be joined. It counts against
    the quota of the user who makes it, so this is for before a change of user. Returns None where
    the kernel has no keys. Raises OSError: EDQUOT when the user has too many.
    """
    serial = _keyctl(NUMBERS["keyctl"], _JOIN_SESSION_KEYRING, None)
    if serial >= 0:
        return int(serial)
    if ctypes.get_errno() == errno.ENOSYS:
        return None
    fail("keyctl", "session keyring")
