"""The processes of installations on this node (`pywasm`)."""

from __future__ import annotations

import contextlib
import os
import signal

SHIM = "pywasm-shim"
ZYGOTE = "pywasm-zygote"


def of(directory: str, name: str) -> list[int]:
    """The pids of the processes of this command name that have a file below `directory` mapped."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        # It may have ended by now.
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/comm", "rb") as file:
                if file.read() != f"{name}\n".encode():
                    continue
            with open(f"/proc/{entry}/maps", "rb") as file:
                if f" {directory}/".encode() in file.read():
                    found.append(int(entry))
    return found


def end_zygotes(directory: str) -> int:
    """End the zygotes of the installations below `directory`; return how many there were."""
    pids = of(directory, ZYGOTE)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return len(pids)
