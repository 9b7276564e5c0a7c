"""A time namespace with clocks of its own, for the next child (library). See time_namespaces(7)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from oci.decoding import SpecError
from oci.linux import TimeOffset
from shim.linux import clone

_CLOCKS: Final = ("monotonic", "boottime")
_SECOND: Final = 10**9


@contextmanager
def for_children(offsets: Mapping[str, TimeOffset]) -> Iterator[None]:
    """Have the children that are cloned meanwhile born in one new time namespace.

    Without offsets, `CLONE_NEWTIME` does the same. With them it does not: a namespace's offsets are
    frozen as soon as a process is in it, and clone3 puts the child there at once. Raises SpecError
    naming the clock; OSError, ERANGE for a clock that would be negative.
    """
    for clock, offset in offsets.items():
        if clock not in _CLOCKS:
            raise SpecError(f"linux.timeOffsets[{clock!r}]: unknown clock")
        if offset.nanosecs >= _SECOND:
            raise SpecError(f"linux.timeOffsets[{clock!r}].nanosecs: a second or more")
    own = os.open("/proc/self/ns/time", os.O_RDONLY | os.O_CLOEXEC)
    try:
        clone.unshare(clone.CLONE_NEWTIME)
        try:
            _write(offsets)
            yield
        finally:
            clone.setns(own, clone.CLONE_NEWTIME)
    finally:
        os.close(own)


def _write(offsets: Mapping[str, TimeOffset]) -> None:
    fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
    try:
        for clock, offset in offsets.items():
            try:
                os.write(fd, f"{clock} {offset.secs} {offset.nanosecs}\n".encode())
            except OSError as e:
                what = f"{offset.secs} s, {offset.nanosecs} ns: {e.strerror}"
                raise OSError(e.errno, what, f"linux.timeOffsets[{clock!r}]") from None
    finally:
        os.close(fd)
