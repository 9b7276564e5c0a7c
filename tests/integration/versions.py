"""Which containerds to test with: that on PATH, or those that PYWASM_CONTAINERD names. Library."""

from __future__ import annotations

import os
import re
import subprocess


def bin_dirs() -> list[str]:
    """Where the containerds to test with are; empty stands for PATH."""
    chosen = os.environ.get("PYWASM_CONTAINERD", "").split(os.pathsep)
    return [os.path.abspath(bin_dir) if bin_dir else "" for bin_dir in chosen]


def version_of(bin_dir: str) -> str:
    """Version of the containerd there, such as `1.6`."""
    command = os.path.join(bin_dir, "containerd")
    try:
        done = subprocess.run([command, "--version"], stdout=subprocess.PIPE, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "missing"
    found = re.search(r"\b(\d+\.\d+)\.\d+", done.stdout.decode())
    return found[1] if found else "unknown"
