"""What ps and top show of a process: its name and its command line (library).

The kernel shows a command line from where execve(2) has put it, on the stack. A fork of the zygote
has never been executed, so it writes its own in that place: over the zygote's, and over a variable
of the environment behind it, which is there for that alone.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final, NamedTuple

from shim.linux.credentials import prctl
from shim.linux.files import read_small

ROOM: Final = "PYWASM_ROOM"
"""The first variable of a zygote's environment: as long as command lines may be."""

_PR_SET_NAME: Final = 15
_PR_SET_MM: Final = 35
_PR_SET_MM_ARG_END: Final = 9
_ARG_START: Final = 48 - 3  # in what follows the name in /proc/PID/stat (proc_pid_stat(5))


class _Place(NamedTuple):
    """Addresses: where the command line begins, where it ended, and where others begin."""

    start: int
    end: int
    limit: int


_place: _Place | None = None


def find_place() -> None:
    """Find where the command line is; to be called in the zygote, for itself and its forks.

    Without `ROOM`, or where things are otherwise than they should be, command lines stay.
    """
    global _place
    fields = read_small("/proc/self/stat").rpartition(b") ")[2].split()
    start, end, environment, _ = map(int, fields[_ARG_START : _ARG_START + 4])
    room = os.environb.pop(os.fsencode(ROOM), b"")
    first = os.fsencode(ROOM) + b"=" + room
    if room and end == environment and ctypes.string_at(end, len(first)) == first:
        _place = _Place(start, end, end + len(first))


def set_title(name: str, *arguments: str) -> None:
    """Set the name, at most 15 bytes of it, and the command line (default: the name).

    As much of that as there is room for: who lacks CAP_SYS_RESOURCE cannot say where it ends, and
    fills the zygote's.
    """
    buffer = ctypes.create_string_buffer(os.fsencode(name)[:15])
    prctl(_PR_SET_NAME, ctypes.addressof(buffer))
    if _place is None:
        return
    line = b"\0".join(map(os.fsencode, arguments or (name,)))
    end = min(_place.start + len(line) + 1, _place.limit)
    try:
        prctl(_PR_SET_MM, _PR_SET_MM_ARG_END, end)
    except OSError:
        end = _place.end
    size = end - _place.start
    ctypes.memmove(_place.start, line[: size - 1].ljust(size, b"\0"), size)
