"""wasi:clocks (library; runs in the guest). Times are nanoseconds."""

from __future__ import annotations

import time
from typing import Final

from shim.component.host import Interface
from shim.wasi.p2.io import POLL, Pollable
from shim.wasi.program import Program
from shim.wasi.words import Datetime, datetime

MONOTONIC: Final = Interface("wasi:clocks/monotonic-clock", "0.2")
MONOTONIC.use(POLL, "pollable")
MONOTONIC.type("instant", "u64")
MONOTONIC.type("duration", "u64")

WALL: Final = Interface("wasi:clocks/wall-clock", "0.2")
WALL.type("datetime", "record { seconds: u64, nanoseconds: u32 }")

INTERFACES: Final = (MONOTONIC, WALL)


@MONOTONIC.function("now", "func() -> instant")
def monotonic_now(program: Program) -> int:
    """Return the time since some moment in the past."""
    return time.monotonic_ns()


@MONOTONIC.function("resolution", "func() -> duration")
def monotonic_resolution(program: Program) -> int:
    """Return the time between two ticks."""
    return round(time.clock_getres(time.CLOCK_MONOTONIC) * 1e9)


@MONOTONIC.function("subscribe-instant", "func(when: instant) -> pollable")
def subscribe_instant(program: Program, when: int) -> Pollable:
    """Return a pollable that is ready from a moment on."""
    return Pollable(lambda: when)


@MONOTONIC.function("subscribe-duration", "func(when: duration) -> pollable")
def subscribe_duration(program: Program, when: int) -> Pollable:
    """Return a pollable that is ready after a time."""
    end = time.monotonic_ns() + when
    return Pollable(lambda: end)


@WALL.function("now", "func() -> datetime")
def wall_now(program: Program) -> Datetime:
    """Return the time since 1970."""
    return datetime(time.time_ns())


@WALL.function("resolution", "func() -> datetime")
def wall_resolution(program: Program) -> Datetime:
    """Return the time between two ticks."""
    return datetime(round(time.clock_getres(time.CLOCK_REALTIME) * 1e9))
