"""What only wasmtime has: our host functions through its C API."""

from __future__ import annotations

from shim.engines.wasmtime import Wasmtime

from .conftest import Runner


def test_a_module_may_want_a_variant() -> None:
    """WasmEdge's first `sock_accept` takes no flags."""
    wasm = b"""(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "sock_accept"
            (func $accept (param i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start") (call $exit (call $accept (i32.const 0) (i32.const 8)))))"""
    run = Runner(Wasmtime())
    assert run(wasm).status == 57  # ENOTSOCK
