"""The processes of installations on this node (`pywasm`)."""

from __future__ import annotations

import contextlib
import os
import signal

SHIM = "pywasm-shim"
ZYGOTE = "pywasm-zygote"


def of(directory: str, name: str) -> list[int]:
    """The pids of the processes of this command name that have a file below `directory` mapped.

    Names and paths can be anybody's. Ours are root's, and in no container.
    """
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        # It may have ended by now.
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/status", "rb") as file:
                status = dict(line.split(b":", 1) for line in file if b":" in line)
            said = status[b"Name"].strip(), status[b"Uid"].split(), status[b"NSpid"].split()
            if said != (name.encode(), [b"0"] * 4, [entry.encode()]):
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
