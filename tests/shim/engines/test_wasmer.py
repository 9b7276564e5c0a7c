"""What only libwasmer has: our host functions and artifacts under its C API."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from shim import engines
from shim.engines.base import ModuleError
from tests.guests.build import build
from tests.installed import needs_libwasmer

from .conftest import Runner, artifact

if TYPE_CHECKING:
    from shim.engines.wasmer import Wasmer

pytestmark = needs_libwasmer


def another() -> Wasmer:
    """Make an engine with the host functions of now."""
    from shim.engines.wasmer import Wasmer

    return Wasmer()


def test_it_wins_over_the_wheels() -> None:
    from shim.engines.wasmer import Wasmer

    assert isinstance(engines.engines()[0], Wasmer)
    assert [engine.name for engine in engines.engines()] == ["wasmer", "wasmtime"]


WIDE = """
    (func (export "f") (param v128) (result v128) (local.get 0))
    (global (export "g") v128 (v128.const i64x2 0 0))
    (tag (export "t") (param v128))"""


def test_types_that_the_c_api_has_no_word_for() -> None:
    """At which it would end the process."""
    run = Runner(engines.select("wasmer"))
    assert run(f'(module {WIDE} (func (export "_start")))'.encode()).status == 0
    with pytest.raises(ModuleError, match=r"`f` is \(v128\) -> \(v128\), it must not take param"):
        run.check(f"(module {WIDE})".encode(), "f")
    imported = '(import "wasi_snapshot_preview1" "fd_write" (func (param v128)))'
    with pytest.raises(ModuleError, match=r"the module takes it for \(v128\) -> \(\)"):
        run.check(f'(module {imported} (func (export "_start")))'.encode())


def test_the_result_of_a_function_may_be_of_any_type() -> None:
    run = Runner(engines.select("wasmer"))
    for kind in ("i64", "f32", "f64", "v128", "funcref", "externref"):
        function = f'(func (export "_start") (result {kind} i32) unreachable)'
        assert run(f"(module {function})".encode()).status == 134
    for value in ("(v128.const i64x2 1 2)", "(ref.null extern)", "(ref.null func)", "(ref.func 0)"):
        kind = value.split(".")[0].strip("(").replace("ref", "funcref")
        kind = "externref" if "extern" in value else kind
        function = f'(func (export "_start") (result {kind}) {value})'
        assert run(f"(module {function})".encode()).status == 0


@pytest.mark.parametrize("position", [0, 12])
def test_what_is_plainly_no_artifact(position: int) -> None:
    engine = engines.select("wasmer")
    made = bytearray(artifact(engine, build("hello").read_bytes()))
    made[position : position + 4] = struct.pack("<I", 0xFFFF0000)
    with pytest.raises(ModuleError, match=r"^unusable artifact: "):
        engine.load(bytes(made))


def test_neither_an_engine_nor_a_module_starts_a_thread() -> None:
    before = os.listdir("/proc/self/task")
    another().load(artifact(engines.select("wasmer"), build("hello").read_bytes())).check()
    assert os.listdir("/proc/self/task") == before


def test_another_compiler_is_the_choice_of_a_node() -> None:
    others = [engine for engine in engines.settable() if engine not in engines.engines()]
    if not others:
        pytest.skip("this libwasmer has no other one")
    for engine in others:
        run = Runner(engine)
        assert run(build("hello"))[:3] == (0, b"hello from pywasm\n", b"")
        trapped = run(build("trap"), "memory")
        assert trapped.status == 134
        assert trapped.stderr.startswith(b"pywasm: wasm trap: out of bounds memory access\n")
        assert engines.candidates(preferred=engine.name) == [engine, *engines.engines()]
        with pytest.raises(ModuleError, match=f"no engine '{engine.name}' here"):
            engines.candidates(engine.name)
        assert engine.fingerprint() != engines.select("wasmer").fingerprint()
