"""The runner of the WASI test suite, on a suite of our own guests."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.guests.build import build


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.wasi_testsuite", *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    directory = tmp_path / "tests" / "c" / "testsuite" / "wasm32-wasip1"
    (directory / "fs.dir" / "empty").mkdir(parents=True)
    (directory / "fs.dir" / "left.cleanup").touch()
    return directory


def add(suite: Path, name: str, guest: str, spec: dict[str, Any] | None = None) -> None:
    shutil.copy(build(guest), suite / f"{name}.wasm")
    if spec is not None:
        (suite / f"{name}.json").write_text(json.dumps(spec))


def test_what_is_as_expected_passes(suite: Path) -> None:
    add(suite, "plain", "hello")
    add(suite, "output", "hello", {"stdout": "hello from pywasm\n"})
    add(suite, "status", "exit3", {"exit_code": 3})
    add(suite, "root", "files", {"root": "fs.dir", "args": ["empty"]})
    add(suite, "dirs", "files", {"dirs": ["fs.dir"], "args": ["fs.dir/empty"]})
    operations = [
        {"type": "run", "args": ["first"], "env": {"A": "b"}},
        {"type": "read", "id": "stdout", "payload": "arg 0: operations.wasm\narg 1: first\n"},
        {"type": "read", "payload": "env: A=b\n"},
        {"type": "wait"},
    ]
    add(suite, "operations", "args_env", {"operations": operations})
    done = run(suite.parents[3])
    assert (done.returncode, done.stdout) == (0, "6 passed, 0 failed\n")
    # The tests wrote to copies.
    assert sorted(path.name for path in suite.glob("fs.dir/**/*")) == ["empty", "left.cleanup"]


def test_what_is_not_fails(suite: Path) -> None:
    add(suite, "output", "hello", {"stdout": "goodbye\n"})
    add(suite, "status", "exit3")
    add(suite, "trap", "trap", {"args": ["unreachable"]})
    add(suite, "talks", "hello", {"operations": [{"type": "run"}, {"type": "request"}]})
    (suite / "broken.wasm").write_bytes(b"no module")
    done = run(suite)
    *failures, total = done.stdout.splitlines()
    assert (done.returncode, total) == (1, "0 passed, 4 failed, 1 skipped")
    found = dict(line.split(": ", 1) for line in failures)
    assert found["c/output"] == "expected stdout 'goodbye\\n', got 'hello from pywasm\\n'"
    assert found["c/status"] == "expected exit code 0, got 3"
    assert found["c/trap"].startswith("expected exit code 0, got 134; pywasm: wasm trap: ")
    assert found["c/talks"] == "skipped: operation 'request' is not supported"
    assert "broken.wasm" in found["c/broken"]


def test_bad_usage(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"wasi-testsuite: {tmp_path}: no wasm32-wasip1 or wasm32-wasip3 programs below it\n"
    )
    done = run(tmp_path, "--engine", "steam")
    assert done.returncode == 2
    assert "steam" in done.stderr
    assert done.stderr.count("\n") == 1
