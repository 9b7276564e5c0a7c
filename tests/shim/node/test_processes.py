"""Which processes of a node `pywasm` takes for its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shim.node import processes

MAPPED = """
import ctypes, mmap, os, sys

with open(sys.argv[1], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 1)
if sys.argv[2] == "another user's":
    os.setresuid(65534, 65534, 65534)
if sys.argv[2] == "a container's":
    ctypes.CDLL(None).unshare(0x20000000)  # CLONE_NEWPID
    if os.fork():
        os.wait()
        sys.exit()
ctypes.CDLL(None).prctl(15, b"pywasm-shim")  # PR_SET_NAME
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("whose", ["ours", "another user's", "a container's"])
def test_nobody_else_passes_for_a_shim(tmp_path: Path, whose: str) -> None:
    """Whatever it calls itself, and its files."""
    directory = tmp_path / "x" / "installation"
    directory.mkdir(parents=True)
    (directory / "file").write_text("x")
    command = [sys.executable, "-c", MAPPED, str(directory / "file"), whose]

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"\n"
        found = processes.of(str(directory), processes.SHIM)
        assert found == ([running.pid] if whose == "ours" else [])
        running.communicate()
