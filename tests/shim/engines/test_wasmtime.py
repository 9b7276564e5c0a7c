"""What only wasmtime has: our host functions through its C API."""

from __future__ import annotations

import pytest

from shim import engines
from shim.engines.base import ModuleError
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


@pytest.mark.parametrize("kind", ["v128", "anyref", "exnref", "(ref null $t)"])
def test_types_that_the_c_api_has_no_word_for(kind: str) -> None:
    """At which it would end the process."""
    run = Runner(engines.select("wasmtime"))
    text = f'(type $t (func)) (func (export "f") (param {kind}))'
    assert run(f'(module {text} (func (export "_start")))'.encode()).status == 0
    with pytest.raises(ModuleError, match=r"`f` is \((v128|ref)\) -> \(\), it must not take param"):
        run.check(f"(module {text})".encode(), "f")
    imported = (
        f'(type $t (func)) (import "wasi_snapshot_preview1" "fd_write" (func (param {kind})))'
    )
    with pytest.raises(ModuleError, match=r"the module takes it for \((v128|ref)\) -> \(\)"):
        run.check(f'(module {imported} (func (export "_start")))'.encode())
