"""`python -m bench`, which `scripts/bench` is when all is set up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def _bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [("lives", "--lives", "2"), ("wasi", "--rounds", "1")])
def test_what_is_printed_and_kept(arguments: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    *_, last = _bench(*arguments, "--json", str(path)).splitlines()
    assert last.startswith("machine: ")
    assert set(json.loads(path.read_text())) == {"machine", "load", arguments[0]}


def test_start_times_need_no_name() -> None:
    assert _bench("--pairs", "1", "--runs", "1").startswith("ctr run --rm hello, 1 of each")


def test_all_that_can_be_measured_is_listed() -> None:
    listed = _bench("--help")
    for name in ("run", "lives", "memory", "pods", "wasi", "compute", "charts"):
        assert f"\n    {name} " in listed
