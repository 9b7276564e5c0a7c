from __future__ import annotations

import subprocess
import sys

import pytest

# In an interpreter of its own: no callback may be made or dropped after it.
PROGRAM = """
import ctypes, os, sys
from shim.linux import callbacks
from shim.linux.credentials import prctl

if sys.argv[1] == "where such pages are not allowed":
    try:
        prctl(65, 1)  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    except OSError:
        os._exit(77)
prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
doubles = [prototype(lambda number: 2 * number) for _ in range(500)]
callbacks.seal()
callbacks.seal()
assert all(double(21) == 42 for double in doubles)
if os.fork() == 0:
    assert doubles[0](4) == 8
    os._exit(0)
assert os.wait()[1] == 0
with open("/proc/self/maps") as file:
    lines = [line.split(maxsplit=5) for line in file]
code = {tuple(line[3:5]) for line in lines if line[1].endswith("xs")}
for line in lines:
    assert not {"w", "x"} <= set(line[1]), line
    assert "w" not in line[1] or tuple(line[3:5]) not in code, line
os._exit(0)
"""


@pytest.mark.parametrize("where", ["anywhere", "where such pages are not allowed"])
def test_no_code_can_be_written(where: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, where], check=False)
    if done.returncode == 77:
        pytest.skip("the kernel cannot forbid them")
    assert done.returncode == 0
