"""The processes of installations on this node (`pywasm`)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

SHIM = "pywasm-shim"
ZYGOTE = "pywasm-zygote"
FOREMAN = "pywasm-foreman"


def named(name: str) -> Iterator[int]:
    """The pids of the processes of this command name that are root's, and in no container.

    The name can be anybody's.
    """
    for entry in filter(str.isdigit, os.listdir("/proc")):
        # It may have ended by now.
        with contextlib.suppress(OSError), open(f"/proc/{entry}/status", "rb") as file:
            status = dict(line.split(b":", 1) for line in file if b":" in line)
            said = status[b"Name"].strip(), status[b"Uid"].split(), status[b"NSpid"].split()
            if said == (name.encode(), [b"0"] * 4, [entry.encode()]):
                yield int(entry)


def of(directory: str, name: str) -> list[int]:
    """The pids of those `named` so that have a file below `directory` mapped."""
    found = []
    for pid in named(name):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
            if f" {directory}/".encode() in file.read():
                found.append(pid)
    return found


def started(pid: int) -> float:
    """When a process was started, in seconds since the epoch (proc_pid_stat(5)); 0 if it ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - since_boot


def end_helpers(directory: str) -> None:
    """End what installations below `directory` have besides shims: zygotes, and foremen."""
    for name in (ZYGOTE, FOREMAN):
        for pid in of(directory, name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
