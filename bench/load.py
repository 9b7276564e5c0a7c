"""What else the machine did while something was measured (library).

Others' share is what /proc/stat says was spent, less what this process and all that it has started
have taken. Shims leave their parents, so the kernel would add their time to init's: `adopt` makes
an ancestor of ours their parent instead.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_PR_SET_CHILD_SUBREAPER: Final = 36
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")  # seconds

_USER, _NICE, _SYSTEM, _STEAL = 0, 1, 2, 7  # columns of /proc/stat; guests' time is in user's


def adopt() -> None:
    """Go on in a child of this process, which reaps all that the child and its children leave.

    Returns in the child only; the process that called ends as its child does.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child == 0:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells the child, too
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            sys.exit(code if code >= 0 else 128 - code)


@contextmanager
def observed(result: dict[str, Any]) -> Iterator[None]:
    """Add to `result` which machine this is, and what others did there meanwhile; after `adopt`.

    `others` and `stolen` (by the hypervisor) are shares of all CPUs' time, from 0 to 1. What ran
    inside has ended when it is left.
    """
    result["machine"] = {
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    average, begin = os.getloadavg(), time.monotonic()
    busy, stolen, own = *_spent(), ours()
    yield
    capacity = (time.monotonic() - begin) * (os.cpu_count() or 1)
    busy_after, stolen_after = _spent()
    others = busy_after - busy - (ours() - own)
    result["load"] = {
        "average_before": average[0],
        "others": min(max(others / capacity, 0.0), 1.0),
        "stolen": (stolen_after - stolen) / capacity,
    }


def show(result: dict[str, Any]) -> None:
    """Print what `observed` has added."""
    machine, load = result["machine"], result["load"]
    print(
        f"machine: {machine['cpus']} CPUs, Linux {machine['kernel']}, CPython {machine['python']}; "
        f"meanwhile others used {load['others']:.0%} of it, {load['stolen']:.0%} was stolen; "
        f"load average before {load['average_before']:.1f}"
    )


def ours() -> float:
    """Return the seconds of CPU of this process, and of those of its descendants that have ended.

    Those that `adopt`'s ancestor has reaped are in its count: proc(5), `stat`, cutime and cstime.
    """
    with open(f"/proc/{os.getppid()}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(os.times()[:4]) + (int(fields[13]) + int(fields[14])) * _TICK


def _spent() -> tuple[float, float]:
    """Return the seconds of CPU that processes have taken since boot, and that were stolen."""
    with open("/proc/stat") as file:
        columns = [int(word) * _TICK for word in file.readline().split()[1:]]
    return columns[_USER] + columns[_NICE] + columns[_SYSTEM], columns[_STEAL]
