"""What only wasmtime has: our host functions through its C API."""

from __future__ import annotations

import pytest

from shim.engines.wasmtime import Wasmtime
from shim.wasi import abi
from shim.wasi.errno import Refused
from tests.guests.assemble import CALL, DROP, I32, Function, Import, Type, module

from .conftest import Runner


def test_a_mistake_of_ours_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the guest, with a line that names the function, and no Python traceback."""

    def sched_yield(program: object) -> None:
        raise KeyError("mistake")

    monkeypatch.setitem(abi.HOSTS, "sched_yield", sched_yield)
    broken = Wasmtime()
    imports = [Import("wasi_snapshot_preview1", "sched_yield", Type((), (I32,)))]
    wasm = module(Function(CALL + b"\0" + DROP, export="_start"), imports=imports)
    result = Runner(broken)(wasm)
    assert result.status == 134
    assert result.stderr == b"pywasm: internal error in sched_yield: KeyError: 'mistake'\n"


def test_parameters_of_all_types_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """In their slots, signed, and the result goes back."""
    seen = []

    def fd_seek(program: object, fd: int, offset: int, whence: int, result: int) -> None:
        seen.append((fd, offset, whence, result))
        raise Refused(int(seen == [(-1, -(1 << 63), 0x7FFFFFFF, 5)]) + 40)

    fd_seek.__annotations__ = dict(zip("pabcdr", ("", "Fd", "S64", "U32", "Ptr", ""), strict=True))
    monkeypatch.setitem(abi.HOSTS, "fd_seek", fd_seek)
    wasm = b"""(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "fd_seek"
            (func $seek (param i32 i64 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start") (call $exit (call $seek (i32.const -1)
            (i64.const 0x8000000000000000) (i32.const 0x7fffffff) (i32.const 5)))))"""
    assert Runner(Wasmtime())(wasm).status == 41


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
