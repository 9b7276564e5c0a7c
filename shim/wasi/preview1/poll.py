"""Waiting for clocks and descriptors together (library; runs in the guest).

subscription: | u64 userdata | u8 type | pad 7 | 32 bytes by type |                 48 bytes
  a clock:    | u32 clock | pad 4 | u64 timeout | u64 precision | u16 flags | pad 6 |
  read/write: | u32 descriptor | pad 28 |
event:        | u64 userdata | u16 error | u8 type | pad 5 |                        32 bytes
              | u64 bytes there are | u16 flags | pad 6 |
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Iterable
from typing import Final

from shim.wasi import rights
from shim.wasi.descriptors import Descriptor
from shim.wasi.errors import NotCapable
from shim.wasi.filetypes import REGULAR_FILE, SOCKET_STREAM
from shim.wasi.preview1 import clocks, errno
from shim.wasi.preview1.abi import Ptr, Size, host, number_of
from shim.wasi.preview1.errno import Refused
from shim.wasi.preview1.program import Program
from shim.wasi.waiting import wait

_SUBSCRIPTION: Final = struct.Struct("<QBxxxxxxxIxxxxQQHxxxxxx")
_EVENT: Final = struct.Struct("<QHBxxxxxQHxxxxxx")

CLOCK: Final = 0
_FD_READ: Final = 1
_FD_WRITE: Final = 2
_ABSOLUTE: Final = 1  # subclockflags
_HANGUP: Final = 1  # eventrwflags

_MOST: Final = 1 << 16  # subscriptions in a call; each takes ten times its size from the host


def _deadline(clock: int, timeout: int, flags: int, now: int) -> int:
    """Return when a clock subscription expires, on the monotonic clock."""
    if clock not in (clocks.REALTIME, clocks.MONOTONIC):
        raise Refused(errno.NOTSUP)
    if not flags & _ABSOLUTE:
        return now + timeout
    if clock == clocks.MONOTONIC:
        return timeout
    return now + timeout - time.time_ns()


def _available(descriptor: Descriptor) -> int:
    """Return how many bytes can be read at once, as far as the kernel says.

    A listener that is ready counts for one: to some guests 0 is the end of a stream.
    """
    try:
        if descriptor.kind == REGULAR_FILE:
            end = os.fstat(descriptor.fd).st_size
            return max(end - os.lseek(descriptor.fd, 0, os.SEEK_CUR), 0)
        count = array.array("i", [0])
        fcntl.ioctl(descriptor.fd, termios.FIONREAD, count)
        return count[0]
    except OSError:
        return 1 if descriptor.kind == SOCKET_STREAM else 0


@host
def poll_oneoff(
    program: Program, subscriptions: Ptr, events: Ptr, count: Size, result: Ptr
) -> None:
    """Wait for the first of `count` subscriptions; store an event for each that has occurred."""
    wanted = subscribed(program, subscriptions, events, count, _SUBSCRIPTION.size)
    wait_for(program, _SUBSCRIPTION.iter_unpack(wanted), events, result)


def subscribed(
    program: Program, subscriptions: int, events: int, count: int, size: int
) -> memoryview:
    """Return the memory of subscriptions of this size, with room for as many events."""
    count &= 0xFFFFFFFF
    if count == 0:
        raise Refused(errno.INVAL)
    wanted = program.memory.span(subscriptions, count * size)
    # A bad pointer is an error now, not after the wait.
    program.memory.span(events, count * _EVENT.size)
    if count > _MOST:
        raise Refused(errno.INVAL)
    return wanted


def wait_for(
    program: Program, subscriptions: Iterable[tuple[int, ...]], events: int, result: int
) -> None:
    """Wait for the first; store the events, and their number.

    A subscription is userdata, type, clock or descriptor, and of a clock timeout, precision, flags.
    """
    now = time.monotonic_ns()
    occurred: list[bytes] = []
    deadlines: list[tuple[int, int]] = []  # (expiry, userdata)
    waiting: list[tuple[Descriptor, int, int]] = []  # (descriptor, type, userdata)
    masks: dict[int, int] = {}
    for userdata, kind, number, timeout, _precision, flags in subscriptions:
        try:
            if kind == CLOCK:
                deadlines.append((_deadline(number, timeout, flags, now), userdata))
                continue
            if kind not in (_FD_READ, _FD_WRITE):
                raise Refused(errno.INVAL)
            right = rights.FD_READ if kind == _FD_READ else rights.FD_WRITE
            descriptor = program.descriptors.need(number, rights.POLL_FD_READWRITE)
            if not descriptor.base & right:
                raise Refused(errno.BADF)
            waiting.append((descriptor, kind, userdata))
            mask = select.POLLIN if kind == _FD_READ else select.POLLOUT
            masks[descriptor.fd] = masks.get(descriptor.fd, 0) | mask
        except (Refused, OSError, NotCapable) as error:
            occurred.append(_EVENT.pack(userdata, number_of(error), kind, 0, 0))

    # With an answer at hand already, what else is ready is looked at, not waited for.
    first = min((expiry for expiry, _ in deadlines), default=None)
    found = wait(masks, now if occurred else first)

    for descriptor, kind, userdata in waiting:
        ready = found.get(descriptor.fd, 0)
        if ready & select.POLLNVAL:
            occurred.append(_EVENT.pack(userdata, errno.BADF, kind, 0, 0))
            continue
        mask = select.POLLIN if kind == _FD_READ else select.POLLOUT
        if ready & (mask | select.POLLHUP | select.POLLERR):
            size = _available(descriptor) if kind == _FD_READ else 0
            hangup = _HANGUP if ready & select.POLLHUP else 0
            occurred.append(_EVENT.pack(userdata, errno.SUCCESS, kind, size, hangup))
    now = time.monotonic_ns()
    for expiry, userdata in deadlines:
        if expiry <= now:
            occurred.append(_EVENT.pack(userdata, errno.SUCCESS, CLOCK, 0, 0))
    program.memory.write(events, b"".join(occurred))
    program.memory.write_u32(result, len(occurred))
