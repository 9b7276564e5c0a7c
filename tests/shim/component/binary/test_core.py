"""What core modules import and export, with all types."""

from __future__ import annotations

import pytest
import wasmtime

from shim.component.binary.core import (
    CoreFunction,
    Global,
    Limits,
    Memory,
    ModuleShape,
    Table,
    Tag,
    module_shape,
)
from shim.component.binary.reader import Allowance, Flaw, Reader

TEXT = """(module
    (type $s (struct (field i8) (field (mut f64))))
    (rec (type $a (array (mut (ref null $b)))) (type $b (sub (struct (field (ref $a))))))
    (type $f (func (param i32 i64) (result f32)))
    (import "a" "f" (func (type $f)))
    (import "a" "t" (table 1 2 externref))
    (import "b" "m" (memory i64 1 9 ))
    (import "b" "g" (global (mut v128)))
    (import "b" "e" (tag (param i32)))
    (table $own 3 (ref null $b) (ref.null $b))
    (global (export "i32") i32 (i32.add (i32.const -5) (i32.const 7)))
    (global (export "i64") (mut i64) (i64.const -9223372036854775808))
    (global (export "f64") f64 (f64.const 1.5))
    (global (export "v128") v128 (v128.const i64x2 1 2))
    (global (export "null") (ref null $s) (ref.null $s))
    (global (export "made") (ref $s) (struct.new $s (i32.const 1) (f64.const 2)))
    (global (export "i31") i31ref (ref.i31 (i32.const 1)))
    (global (export "func") funcref (ref.func 1))
    (func $own-function (export "own") (param funcref (ref null extern) (ref eq)))
    (func (export "strange") (param (ref $s)))
    (tag (export "e") (param f32))
    (memory (export "memory") 1)
    (export "again" (func 0)) (export "t" (table $own)) (export "m" (memory 0)))"""


def shape(wasm: bytes) -> ModuleShape:
    return module_shape(Reader(wasm, 0, len(wasm), Allowance()))


def test_everything() -> None:
    found = shape(bytes(wasmtime.wat2wasm(TEXT)))
    function = CoreFunction(("i32", "i64"), ("f32",))
    assert found.imports == {
        ("a", "f"): function,
        ("a", "t"): Table("externref", Limits(1, 2)),
        ("b", "m"): Memory(Limits(1, 9, is_64=True)),
        ("b", "g"): Global("v128", mutable=True),
        ("b", "e"): Tag(CoreFunction(("i32",), ())),
    }
    assert found.exports == {
        "i32": Global("i32", mutable=False),
        "i64": Global("i64", mutable=True),
        "f64": Global("f64", mutable=False),
        "v128": Global("v128", mutable=False),
        "null": Global("(ref ...)", mutable=False),
        "made": Global("(ref ...)", mutable=False),
        "i31": Global("i31ref", mutable=False),
        "func": Global("funcref", mutable=False),
        "own": CoreFunction(("funcref", "externref", "(ref eq)"), ()),
        "strange": CoreFunction(("(ref ...)",), ()),
        "e": Tag(CoreFunction(("f32",), ())),
        "memory": Memory(Limits(1, None)),
        "again": function,
        "t": Table("(ref ...)", Limits(3, None)),
        "m": Memory(Limits(1, 9, is_64=True)),
    }


HEADER = b"\0asm\1\0\0\0"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (b"", "no core module of version 1"),
        (b"\0asm\x0d\0\1\0", "no core module of version 1"),
        (HEADER + b"\x07\x05\x01\x01a\0\0", "'a' of a core module is of what there is not"),
        (HEADER + b"\x03\x02\x01\0", "core type 0 is no function's"),
        (HEADER + b"\x01\x03\x01\x5e\x7f", "unexpected end"),
        (HEADER + b"\x05\x04\x01\x01\x02\x01", "at least more than at most"),
        (HEADER + b"\x05\x05\x01\0\xf0\xa2\x04", "a memory of more than 65536 pages"),
        (HEADER + b"\x06\x04\x01\x7f\0\x40", "in a constant expression"),
        (HEADER + b"\x02\x0b\x02\0\0\x02\0\0\0\0\x02\0\0", "imported twice"),
    ],
)
def test_refused(module: bytes, message: str) -> None:
    with pytest.raises(Flaw, match=message):
        shape(module)
