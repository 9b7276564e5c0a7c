"""What only the wheels of wasmer have: our host functions under them."""

from __future__ import annotations

import pytest

pytest.importorskip("wasmer")

from shim import engines
from shim.engines.wasmer_wheel import WasmerWheel

from .conftest import Runner


def test_the_counter_of_pools_is_found() -> None:
    assert WasmerWheel().host.gil_pool.found


WRONG_TRAPS = {  # where nothing is out of bounds
    "a word at the very end": """
        (memory 1)
        (func $f (param i32) (result i32) (i32.extend8_s (i32.load (local.get 0))))
        (func (export "_start") (drop (call $f (i32.const 0xfffc))))""",
    "bytes at the end of 4 GiB": """
        (memory 65536)
        (func (export "_start")
            (memory.fill (i32.const 0xffff_fff0) (i32.const 1) (i32.const 16)))""",
}


@pytest.mark.parametrize("place", WRONG_TRAPS)
def test_where_it_differs_from_wasmtime(place: str) -> None:
    """All that is known beside what `flaws` is about; docs/security.md tells of it."""
    wasm = f"(module {WRONG_TRAPS[place]})".encode()
    assert Runner(engines.select("wasmtime"))(wasm).status == 0
    told = Runner(WasmerWheel())(wasm)
    assert told.status == 134
    assert told.stderr.startswith(b"pywasm: wasm trap: out of bounds memory access\n")
