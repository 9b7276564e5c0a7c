"""The runner of the component model's test suite, on a suite of our own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.component_testsuite import FROZEN, Known, frozen, wasm_tools
from tests.installed import ENGINES, needs_libwasmer

SUITE = os.environ.get("PYWASM_COMPONENT_MODEL", "")
needs_wasm_tools = pytest.mark.skipif(
    wasm_tools() is None, reason="no `wasm-tools`, on PATH or as $WASM_TOOLS"
)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.component_testsuite", *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_wasm_tools
@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_as_expected_passes(tmp_path: Path, engine: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "good.wast").write_text(
        r"""
        (component definition $D
          (core module $M
            (func (export "add") (param i32) (result i32)
              (i32.add (local.get 0) (i32.const 1)))
            (func (export "trap") unreachable))
          (core instance $m (instantiate $M))
          (func (export "add") (param "x" u8) (result u32) (canon lift (core func $m "add")))
          (func (export "trap") (canon lift (core func $m "trap"))))
        (component instance $one $D)
        (assert_return (invoke "add" (u8.const 255)) (u32.const 256))
        (assert_trap (invoke "trap") "unreachable")
        (assert_trap (invoke "add" (u8.const 1)) "cannot enter component instance")
        (component instance $two $D)
        (assert_return (invoke $two "add" (u8.const 1)) (u32.const 2))
        (assert_invalid (component (export "f" (func 0))) "function index out of bounds")
        """
    )
    done = run(tmp_path, "--engine", engine)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "own/good.wast: 8 passed, 0 failed\n8 passed, 0 failed\n"


@needs_wasm_tools
def test_what_is_not_fails(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "bad.wast").write_text(
        """(component
          (core module $M (func (export "one") (result i32) (i32.const 1)))
          (core instance $m (instantiate $M))
          (func (export "one") (result u32) (canon lift (core func $m "one"))))
        (assert_return (invoke "one") (u32.const 2))
        (assert_trap (invoke "one") "unreachable")
        (assert_invalid (component) "it is valid")
        """
    )
    (tmp_path / "own" / "broken.wast").write_text("(component")
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "own/bad.wast:5: expected [2], got 1",
        "own/bad.wast:6: a trap was expected (unreachable), got 1",
        "own/bad.wast:7: an error was expected (it is valid)",
        "own/bad.wast: 1 passed, 3 failed",
        "own/broken.wast: wasm-tools: expected `)`",
        "1 passed, 4 failed",
    ]


@needs_wasm_tools
@pytest.mark.skipif(not SUITE, reason="no component-model as $PYWASM_COMPONENT_MODEL")
@pytest.mark.parametrize("engine", ["wasmtime", pytest.param("wasmer", marks=needs_libwasmer)])
def test_the_public_suite(engine: str) -> None:
    done = run(SUITE, "--engine", engine)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "passes now" not in done.stdout


def test_bad_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASM_TOOLS", str(tmp_path / "none"))
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "component-testsuite: no `wasm-tools`; `cargo install wasm-tools` makes one\n"
    )
    monkeypatch.setenv("WASM_TOOLS", "true")
    done = run(tmp_path)
    assert done.stderr == f"component-testsuite: {tmp_path}: no .wast files below it\n"
    done = run(tmp_path, "--engine", "steam")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_list_says_which_lines() -> None:
    found = frozen()
    assert Known("async/async-calls-sync.wast", 251) in found
    assert all(reason.startswith(("stacks", "threads", "gated")) for reason in found.values())
    assert len(found) == int(FROZEN.with_name("testing.md").read_text().split(", but [")[1][:2])
