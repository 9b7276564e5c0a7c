"""Clocks (library; runs in the guest). Times are unsigned 64-bit nanoseconds."""

from __future__ import annotations

import time
from typing import Final

from shim.wasi.preview1 import errno
from shim.wasi.preview1.abi import U32, U64, Ptr, host
from shim.wasi.preview1.errno import Refused
from shim.wasi.preview1.program import Program

REALTIME: Final = 0
MONOTONIC: Final = 1
CLOCKS: Final = {
    REALTIME: time.CLOCK_REALTIME,
    MONOTONIC: time.CLOCK_MONOTONIC,
    2: time.CLOCK_PROCESS_CPUTIME_ID,
    3: time.CLOCK_THREAD_CPUTIME_ID,
}


def _clock(number: int) -> int:
    try:
        return CLOCKS[number]
    except KeyError:
        raise Refused(errno.INVAL) from None


@host
def clock_res_get(program: Program, clock: U32, result: Ptr) -> None:
    """Store a clock's resolution."""
    program.memory.write_u64(result, round(time.clock_getres(_clock(clock)) * 1e9))


@host
def clock_time_get(program: Program, clock: U32, precision: U64, result: Ptr) -> None:
    """Store a clock's time, always as precise as there is: reading it coarsely is no faster."""
    program.memory.write_u64(result, time.clock_gettime_ns(_clock(clock)))
