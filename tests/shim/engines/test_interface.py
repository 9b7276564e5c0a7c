"""What a module imports and exports, read from its binary."""

from __future__ import annotations

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from shim.engines.base import ModuleError
from shim.engines.interface import (
    FUNCTION,
    GLOBAL,
    MEMORY,
    TABLE,
    TAG,
    Import,
    interface_of,
)
from shim.engines.linking import Signature

EVERYTHING = bytes(
    wasmtime.wat2wasm("""(module
    (type (func (param i32 i64 f32 f64 v128 funcref externref) (result externref v128)))
    (import "a" "table" (table 1 externref)) (import "a" "table" (table 1 2 (ref null 0)))
    (import "a" "memory" (memory 1)) (import "ä" "memory" (memory 1 65536))
    (import "a" "global" (global (mut v128))) (import "a" "" (global i64))
    (import "a" "tag" (tag (param i32)))
    (import "a" "function" (func (type 0)))
    (func $second (export "second") (result i32) (i32.const 1))
    (func (export "third") (param i64))
    (export "again" (func 0)) (export "m" (memory 1)) (export "t" (table 0)) (export "g" (global 0))
    (tag (export "tag") (param f64)) (export "" (func $second)))""")
)


def test_everything() -> None:
    imported = Signature(
        ("i32", "i64", "f32", "f64", "v128", "funcref", "externref"), ("externref", "v128")
    )
    others = (
        ("table", TABLE),
        ("table", TABLE),
        ("memory", MEMORY),
        ("memory", MEMORY),
        ("global", GLOBAL),
        ("", GLOBAL),
        ("tag", TAG),
    )
    found = interface_of(EVERYTHING)
    assert found.imports == [
        *(Import("ä" if i == 3 else "a", *other, None) for i, other in enumerate(others)),
        Import("a", "function", FUNCTION, 0),
    ]
    assert {name: found.exported(name) for name in found.exports} == {
        "second": Signature((), ("i32",)),
        "third": Signature(("i64",), ()),
        "again": imported,
        **dict.fromkeys(("m", "t", "g", "tag")),
        "": Signature((), ("i32",)),
    }
    assert found.types[0] == imported
    assert found.exported("nothing") is None


def test_nothing() -> None:
    assert interface_of(b"\0asm\1\0\0\0") == ([], {}, [])


def refusal(wasm: bytes) -> str:
    try:
        interface_of(wasm)
    except ModuleError as error:
        return str(error)
    return "invalid wasm module"  # to the engine, maybe


@pytest.mark.parametrize("end", range(9, len(EVERYTHING), 7))
def test_a_part_of_it(end: int) -> None:
    assert refusal(EVERYTHING[:end]).startswith(("invalid wasm module", "truncated wasm module"))


@given(st.data())
def test_any_damage_is_explained(data: st.DataObject) -> None:
    """The engine has found the module valid before, but what is read here is still hostile."""
    made = bytearray(EVERYTHING)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(8, len(made)))
        made[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    assert refusal(bytes(made)).startswith(("invalid wasm module", "truncated wasm module"))
