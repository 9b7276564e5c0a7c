"""What each engine makes of the features that WebAssembly got after its first version.

A module that wasmer refuses is given to wasmtime, so wasmer has to refuse it when it compiles, or
to do the right thing.
"""

from __future__ import annotations

import pytest

from shim import engines
from shim.engines.base import ModuleError
from tests.installed import ENGINES

from .conftest import Runner

BOTH: dict[str, tuple[str, str]] = {  # a body that leaves 42, and what it needs
    "sign extension": ("(i32.add (i32.extend8_s (i32.const 0xff)) (i32.const 43))", ""),
    "saturating conversion": (
        "(i32.sub (i32.trunc_sat_f64_s (f64.const 1e30)) (i32.const 0x7fffffd5))",
        "",
    ),
    "multi-value": ("call $f i32.add", "(func $f (result i32 i32) (i32.const 40) (i32.const 2))"),
    "bulk memory": (
        """(memory.fill (i32.const 0) (i32.const 7) (i32.const 9))
        (memory.init $d (i32.const 4) (i32.const 0) (i32.const 1)) (data.drop $d)
        (memory.copy (i32.const 8) (i32.const 4) (i32.const 1)) (i32.load8_u (i32.const 8))""",
        '(memory 1) (data $d "*")',
    ),
    "reference types": (
        "(table.set $t (i32.const 1) (ref.func $f)) (call_indirect $t (result i32) (i32.const 1))",
        "(table $t 4 funcref) (elem declare func $f) (func $f (result i32) (i32.const 42))",
    ),
    "SIMD": (
        "(i32x4.extract_lane 2 (i32x4.add"
        " (v128.const i32x4 1 2 40 4) (i32x4.splat (i32.const 2))))",
        "",
    ),
}
YOUNG: dict[str, tuple[str, str]] = {
    "late SIMD": (
        "(i8x16.extract_lane_u 0 (i8x16.popcnt (i8x16.splat"
        " (i32.const 3)))) (i32.const 40) i32.add",
        "",
    ),
    "relaxed SIMD": (
        """(i32.trunc_f32_s (f32x4.extract_lane 0 (f32x4.relaxed_madd
        (f32x4.splat (f32.const 4)) (f32x4.splat (f32.const 10)) (f32x4.splat (f32.const 2)))))""",
        "",
    ),
    "extended constants": (
        "(global.get $g)",
        "(global $g i32 (i32.add (i32.const 40) (i32.const 2)))",
    ),
    "multi-memory": (
        "(i32.store $b (i32.const 8) (i32.const 42)) (i32.load $b (i32.const 8))",
        "(memory $a 1) (memory $b 1)",
    ),
    "exceptions": (
        "(block $h (result i32) (try_table (catch $t $h) (throw $t (i32.const 42))) unreachable)",
        "(tag $t (param i32))",
    ),
}
WASMTIME: dict[str, tuple[str, str]] = {
    "tail calls": (
        "(call $f (i32.const 5000000))",
        """(func $f (param i32) (result i32)
            (if (i32.eqz (local.get 0)) (then (return (i32.const 42))))
            (return_call $f (i32.sub (local.get 0) (i32.const 1))))""",
    ),
    "atomics": (
        "(drop (i32.atomic.rmw.add (i32.const 0) (i32.const 42))) (i32.atomic.load (i32.const 0))",
        "(memory 1)",
    ),
    "memory64": (
        "(i32.store (i64.const 8) (i32.const 42)) (i32.load (i64.const 8))",
        "(memory i64 1)",
    ),
    "garbage collection": (
        "(struct.get $s 0 (struct.new $s (i32.const 42)))",
        "(type $s (struct (field i32)))",
    ),
}


def exiting(body: str, more: str) -> bytes:
    return f"""(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) {more}
        (func $value (result i32) {body})
        (func (export "_start") (call $exit (call $value))))""".encode()


@pytest.mark.parametrize("feature", BOTH)
def test_everywhere(run: Runner, feature: str) -> None:
    assert run(exiting(*BOTH[feature]))[:3] == (42, b"", b"")


@pytest.mark.parametrize("feature", YOUNG)
def test_under_engines_of_today(run: Runner, feature: str) -> None:
    wasm = exiting(*YOUNG[feature])
    if run.engine.version.startswith("1."):  # the wheels
        with pytest.raises(ModuleError, match=r"^invalid wasm module: "):
            run.check(wasm)
    else:
        assert run(wasm)[:3] == (42, b"", b"")


@pytest.mark.parametrize("feature", WASMTIME)
def test_under_wasmtime_only(feature: str) -> None:
    wasm = exiting(*WASMTIME[feature])
    assert Runner(engines.select("wasmtime"))(wasm)[:3] == (42, b"", b"")
    if "wasmer" in ENGINES:
        with pytest.raises(ModuleError, match=r"^invalid wasm module: "):
            Runner(engines.select("wasmer")).check(wasm)
