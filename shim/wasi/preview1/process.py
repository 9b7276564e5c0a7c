"""The end of the program, signals to itself, yielding, randomness (library; runs in the guest)."""

from __future__ import annotations

import os
import signal
from typing import Final, NoReturn

from shim.wasi.preview1 import errno
from shim.wasi.preview1.abi import U32, Ptr, Size, host
from shim.wasi.preview1.errno import Refused
from shim.wasi.preview1.program import Program
from shim.wasi.randomness import fill

# In the order of the specification; from 16 on the numbers are not Linux's.
_LIST: Final = (
    "NONE HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM CHLD CONT STOP "
    "TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH POLL PWR SYS"
)
_SIGNALS: Final = _LIST.split()
_HARMLESS: Final = frozenset({"NONE", "CHLD", "CONT", "URG", "WINCH"})
_STOPPING: Final = frozenset({"STOP", "TSTP", "TTIN", "TTOU"})


def proc_exit(status: int) -> NoReturn:
    """End: the process runs this program and nothing else, so there is nothing to unwind."""
    os._exit(status & 0xFF)


@host
def proc_raise(program: Program, number: U32) -> None:
    """Send a signal to the program itself; preview 1 has no handlers, so its default happens."""
    if not 0 <= number < len(_SIGNALS):
        raise Refused(errno.INVAL)
    name = _SIGNALS[number]
    if name in _HARMLESS:
        return
    linux = int(getattr(signal, f"SIG{name}"))
    if name in _STOPPING:
        os.kill(os.getpid(), linux)
        return
    if name != "KILL":
        signal.signal(linux, signal.SIG_DFL)
    os.kill(os.getpid(), linux)
    os._exit(128 + linux)  # PID 1 of a namespace cannot kill itself


@host
def sched_yield(program: Program) -> None:
    """Let somebody else have the CPU."""
    os.sched_yield()


@host
def random_get(program: Program, buffer: Ptr, size: Size) -> None:
    """Fill a buffer, of any size, from the kernel's generator."""
    fill(program.memory.span(buffer, size))
