"""wasi:clocks 0.3 (library; runs in the guest). Times are nanoseconds."""

from __future__ import annotations

import time
from typing import Final

from shim.component.host import Interface
from shim.wasi.p2 import clocks as p2
from shim.wasi.program import Program

TYPES: Final = Interface("wasi:clocks/types", "0.3")
TYPES.type("duration", "u64")

MONOTONIC: Final = Interface("wasi:clocks/monotonic-clock", "0.3")
MONOTONIC.use(TYPES, "duration")
MONOTONIC.type("mark", "u64")

SYSTEM: Final = Interface("wasi:clocks/system-clock", "0.3")
SYSTEM.use(TYPES, "duration")
SYSTEM.type("instant", "record { seconds: s64, nanoseconds: u32 }")

INTERFACES: Final = (TYPES, MONOTONIC, SYSTEM)

MONOTONIC.function("now", "func() -> mark")(p2.monotonic_now)
MONOTONIC.function("get-resolution", "func() -> duration")(p2.monotonic_resolution)
SYSTEM.function("now", "func() -> instant")(p2.wall_now)


@MONOTONIC.function("wait-until", "async func(when: mark)")
async def wait_until(program: Program, when: int) -> None:
    """Wait for a moment."""
    await program.reactor.until(when)


@MONOTONIC.function("wait-for", "async func(how-long: duration)")
async def wait_for(program: Program, how_long: int) -> None:
    """Wait for a time."""
    await program.reactor.until(time.monotonic_ns() + how_long)


@SYSTEM.function("get-resolution", "func() -> duration")
def system_resolution(program: Program) -> int:
    """Return the time between two ticks."""
    return round(time.clock_getres(time.CLOCK_REALTIME) * 1e9)
