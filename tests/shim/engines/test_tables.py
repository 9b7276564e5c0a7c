"""Tables that cannot grow, and are shared."""

from __future__ import annotations

import pytest

from shim.engines import engines
from shim.engines.base import Engine
from shim.engines.tables import growable
from shim.engines.text import assembled
from tests.shim.engines.conftest import artifact

CALLER = b"""(module
  (type (func (result i32)))
  (table (export "table") %s funcref)
  (func (export "call") (result i32) (call_indirect (type 0) (i32.const 1))))"""
FILLER = b"""(module
  (import "" "table" (table %s funcref))
  (func (result i32) i32.const 42)
  (elem (i32.const 1) func 0))"""


@pytest.mark.parametrize("engine", engines(), ids=lambda engine: engine.name)
@pytest.mark.parametrize("limits", [b"2 2", b"2 3", b"2", b"127 127"])
def test_what_others_put_in_is_called(engine: Engine, limits: bytes) -> None:
    store = engine.store()
    caller = store.instantiate(engine.load(artifact(engine, CALLER % limits)), [])
    filler = engine.load(artifact(engine, FILLER % limits))
    store.instantiate(filler, [caller.extern("table")])
    assert caller.function("call")() == 42


@pytest.mark.parametrize(
    "text",
    [
        b"(module (table 2 2 funcref))",  # its own
        b'(module (table (export "t") 2 3 funcref))',
        b'(module (table (export "t") 2 funcref))',
        b'(module (table (export "t") 2 2 externref))',
        b"(module)",
    ],
)
def test_others_stay_as_they_are(text: bytes) -> None:
    binary = assembled(text)
    assert growable(binary) is binary


def test_a_longer_number() -> None:
    binary = assembled(b'(module (table (export "t") 127 127 funcref))')
    wanted = assembled(b'(module (table (export "t") 127 128 funcref))')
    assert growable(binary) == wanted


@pytest.mark.parametrize("cut", range(8, 40))
def test_what_is_cut_off_stays_as_it_is(cut: int) -> None:
    binary = assembled(b'(module (import "" "t" (table 2 2 funcref)) (table 3 3 funcref))')[:cut]
    growable(binary)
