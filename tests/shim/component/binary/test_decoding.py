"""Binaries of components, and bytes that are none."""

from __future__ import annotations

import pytest

from shim.component.binary import definitions as d
from shim.component.binary.decoding import HEADER, decode
from shim.engines.base import ModuleError
from tests.shim.component.texts import MEMORY, assembled

EVERYTHING = assembled(f"""
    {MEMORY}
    (type $record (record (field "a" u8) (field "b" (list string))))
    (type $variant (variant (case "a") (case "b" $record)))
    (type $flags (flags "x" "y"))
    (type $enum (enum "x" "y"))
    (type $nested (tuple bool s8 u8 s16 u16 s32 u32 s64 u64 f32 f64 char string
        (option u8) (result) (result u8) (result (error u8)) (result u8 (error u8))))
    (import "ns:pkg/iface@1.2.3" (instance $i
        (export "r" (type $r (sub resource)))
        (export "[method]r.f" (func (param "self" (borrow $r)) (result (own $r))))))
    (alias export $i "r" (type $r))
    (alias export $i "[method]r.f" (func $f))
    (core func $lowered (canon lower (func $f)))
    (core func $drop (canon resource.drop $r))
    (type $own (resource (rep i32) (dtor (core func $drop))))
    (component $inner (import "f" (func)) (export "g" (func 0)))
    (type $function (func (param "p" string)))
    (type (component (import "a" (func)) (export "b" (type (sub resource)))))
    (core type (module (import "a" "b" (func (param i32))) (export "m" (memory 1))))
    (core module $M (func (export "f") (param i32 i32)))
    (core instance $c (instantiate $M (with "a" (instance (export "x" (func $drop))))))
    (func $lifted (type $function)
        (canon lift (core func $c "f") (memory (core memory $m)) (realloc (core func $realloc))
            string-encoding=utf16))
    (export $e "run" (func $lifted))
""")


def test_everything() -> None:
    found = [placed.definition for placed in decode(EVERYTHING).definitions]
    kinds = {type(each) for each in found}
    assert kinds == {
        d.CoreModule, d.CoreInstantiation, d.CoreExportAlias, d.TypeDefinition, d.Import,
        d.ExportAlias, d.Lower, d.BuiltIn, d.Component, d.CoreTypeDefinition, d.CoreExports,
        d.Lift, d.Export,
    }  # fmt: skip
    types = [each.type for each in found if isinstance(each, d.TypeDefinition)]
    assert d.ValueType("flags", labels=["x", "y"]) in types
    assert d.ResourceType("i32", 2) in types
    (lift,) = [each for each in found if isinstance(each, d.Lift)]
    options = {(option.name, option.index) for option in lift.options}
    assert options == {("memory", 0), ("realloc", 0), ("string-encoding=utf16", 0)}
    module = next(each for each in found if isinstance(each, d.CoreModule))
    assert EVERYTHING[module.offset :][:8] == b"\0asm\1\0\0\0"


def refusal(binary: bytes) -> str:
    with pytest.raises(ModuleError) as caught:
        decode(binary)
    return str(caught.value)


def test_cut_short_it_is_refused_or_ends_with_a_section() -> None:
    refused = []
    for end in range(len(EVERYTHING)):
        try:
            decode(EVERYTHING[:end])
        except ModuleError as error:
            refused.append(str(error))
    assert len(EVERYTHING) - len(refused) < 60  # as many as there are sections


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "invalid component: header at 0x0"),
        (b"\0asm\1\0\0\0", "invalid component: header at 0x0"),
        (HEADER + b"\x0d\0", "section at 0x8: 0x0d is no section"),
        (HEADER + b"\x07\x7f", "section at 0x8: 127 bytes are said to follow, 0 do"),
        (HEADER + b"\x07\x02\0\0", "type at 0xb: a section is longer than its content"),
        (HEADER + b"\x07\x02\x01\x01", "type at 0xb: 0x01 is no kind of a type"),
        (HEADER + b"\x07\x05\xff\xff\xff\xff\x0f", "type at 0x8: 4294967295 items"),
        (HEADER + b"\x07\x04\x01\x69\x80\x80", "type at 0xb: unexpected end"),
    ],
)
def test_refused_with_its_place(data: bytes, message: str) -> None:
    assert message in refusal(data)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (b"\x09\x03\0\0\0", "unsupported component: section at 0x8: a start function"),
        (b"\x0c\x01\0", "unsupported component: section at 0x8: values"),
        (b"\x0a\x07\x01\0\x01a\x02\x01\x7d", "values cannot be imported or exported"),
        (b"\x08\x05\x01\x40\0\0\0", "`thread.spawn-ref`"),
        (b"\x08\x04\x01\x0a\x7e\0", "a context of i64"),
        (b"\x08\x06\x01\x01\0\0\x01\x09", "the canonical option `gc`"),
    ],
)
def test_refused_by_name(section: bytes, message: str) -> None:
    found = refusal(HEADER + section)
    assert found.startswith("unsupported component: ")
    assert message in found


def test_custom_sections_are_skipped() -> None:
    assert decode(HEADER + b"\x00\x04\x01x\xff\xff") == d.Component([])
