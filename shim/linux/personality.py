"""The execution domain of a process (library). See personality(2)."""

from __future__ import annotations

import ctypes
from typing import Final

from oci.decoding import SpecError
from oci.linux import Personality
from shim.linux.libc import LIBC, fail

_DOMAINS: Final = {"LINUX": 0x0000, "LINUX32": 0x0008}

_personality = LIBC.personality
_personality.argtypes = (ctypes.c_ulong,)


def set_personality(wanted: Personality) -> None:
    """Apply `linux.personality` to this process. Raises SpecError naming the field; OSError."""
    if wanted.domain not in _DOMAINS:
        raise SpecError(f"linux.personality.domain: unknown value {wanted.domain!r}")
    if wanted.flags:
        raise SpecError(f"linux.personality.flags: unknown value {wanted.flags[0]!r}")
    if _personality(_DOMAINS[wanted.domain]) < 0:
        fail("personality", "linux.personality")
