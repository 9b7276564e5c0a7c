"""In processes of their own: `adopt` forks, and pytest's children are others' for it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

_BURN = """
import os
while sum(os.times()[:2]) < 0.5:  # seconds of CPU, however long they take
    pass
"""

_ORPHAN = f"""
import json, os, sys, time
from bench import load

load.adopt()
result = {{}}
with load.observed(result):
    own = load.ours()
    if os.fork() == 0:
        if os.fork() == 0:  # which is nobody's child when its parent has ended
            os.execv(sys.executable, [sys.executable, "-c", {_BURN!r}])
        os._exit(0)
    os.wait()
    while load.ours() - own < 0.5:  # until it has ended and was reaped; sleeping takes nothing
        time.sleep(0.1)
load.show(result)
print(json.dumps(result))
"""


def _run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


def test_what_orphans_take_is_ours() -> None:
    done = _run(_ORPHAN)
    assert done.returncode == 0, done.stderr
    line, document = done.stdout.splitlines()
    result = json.loads(document)
    assert 0 <= result["load"]["others"] <= 1
    assert result["machine"]["cpus"] >= 1
    assert line.startswith(f"machine: {result['machine']['cpus']} CPUs, Linux ")


@pytest.mark.parametrize(
    ("end", "status"),
    [("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL)],
)
def test_the_first_process_ends_as_the_second(end: str, status: int) -> None:
    done = _run(f"import os, signal, sys\nfrom bench import load\nload.adopt()\n{end}")
    assert done.returncode == status, done.stderr
