"""Which modules are kept from an engine that is known to compile them wrongly."""

from __future__ import annotations

import os
from typing import Any

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from shim.engines import engines, flaws, select
from shim.engines.base import ModuleError
from tests.guests.build import SOURCES, build, names
from tests.installed import LIBWASMER, needs_libwasmer, needs_wheels

from .conftest import Runner


class EngineOf:
    """An engine of which only the name and the version matter."""

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version


OLD: Any = EngineOf("wasmer", "1.1.0")
REFUSED = "wasmer 1.1.0 is not safe for a module that uses SIMD (wasmtime#3645, CVE-2022-31104)"

ZERO = "(v128.const i64x2 0 0)"
ADDRESS = "(i32.const 0)"
INSTRUCTIONS = {  # of every class, and at both ends of the opcodes
    "load": f"(v128.load {ADDRESS})",
    "load and extend": f"(v128.load8x8_s {ADDRESS})",
    "load and splat": f"(v128.load64_splat {ADDRESS})",
    "load and fill": f"(v128.load32_zero {ADDRESS})",
    "load a lane": f"(v128.load16_lane 1 {ADDRESS} {ZERO})",
    "store": f"(v128.store {ADDRESS} {ZERO}) {ZERO}",
    "store a lane": f"(v128.store8_lane 1 {ADDRESS} {ZERO}) {ZERO}",
    "constant": ZERO,
    "shuffle": f"(i8x16.shuffle {' '.join(map(str, range(16)))} {ZERO} {ZERO})",
    "swizzle": f"(i8x16.swizzle {ZERO} {ZERO})",
    "splat": "(f64x2.splat (f64.const 1))",
    "extract": f"(i8x16.splat (i16x8.extract_lane_u 3 {ZERO}))",
    "replace": f"(f32x4.replace_lane 3 {ZERO} (f32.const 1))",
    "compare integers": f"(i8x16.eq {ZERO} {ZERO})",
    "compare floats": f"(f64x2.ge {ZERO} {ZERO})",
    "one for all bits": f"(v128.not {ZERO})",
    "two for all bits": f"(v128.andnot {ZERO} {ZERO})",
    "three for all bits": f"(v128.bitselect {ZERO} {ZERO} {ZERO})",
    "test": f"(i32x4.splat (i64x2.all_true {ZERO}))",
    "mask": f"(i32x4.splat (i8x16.bitmask {ZERO}))",
    "narrow": f"(i8x16.narrow_i16x8_s {ZERO} {ZERO})",
    "widen": f"(i64x2.extend_high_i32x4_u {ZERO})",
    "shift": f"(i64x2.shr_s {ZERO} (i32.const 1))",
    "saturating": f"(i8x16.add_sat_u {ZERO} {ZERO})",
    "minimum": f"(i32x4.min_s {ZERO} {ZERO})",
    "average": f"(i8x16.avgr_u {ZERO} {ZERO})",
    "dot": f"(i32x4.dot_i16x8_s {ZERO} {ZERO})",
    "long multiply": f"(i64x2.extmul_low_i32x4_s {ZERO} {ZERO})",
    "by pairs": f"(i32x4.extadd_pairwise_i16x8_u {ZERO})",
    "rounding multiply": f"(i16x8.q15mulr_sat_s {ZERO} {ZERO})",
    "count": f"(i8x16.popcnt {ZERO})",
    "round": f"(f32x4.nearest {ZERO})",
    "float": f"(f64x2.pmax {ZERO} {ZERO})",
    "convert": f"(f64x2.promote_low_f32x4 (i32x4.trunc_sat_f64x2_u_zero {ZERO}))",
    "relaxed": f"(i8x16.relaxed_swizzle {ZERO} {ZERO})",
    "relaxed, the last": f"(i32x4.relaxed_dot_i8x16_i7x16_add_s {ZERO} {ZERO} {ZERO})",
}
PLACES = {  # without an instruction of SIMD
    "parameter": "(func (param v128))",
    "result": "(func (result v128) unreachable)",
    "type that nothing has": "(type (func (result i32 v128)))",
    "local": "(func (local i32 v128))",
    "local after many others": "(func (local i64) (local f32) (local v128))",
    "imported function": '(import "a" "b" (func (param v128)))',
    "imported global": '(import "a" "b" (global v128))',
    "global": "(global v128 (v128.const i64x2 0 0))",
    "block": "(func (drop (block (result v128) unreachable)))",
    "loop": "(func (drop (loop (result v128) unreachable)))",
    "if": "(func (drop (if (result v128) (i32.const 0) (then unreachable) (else unreachable))))",
    "select": "(func unreachable (drop (select (result v128))))",
    "code that is never reached": "(func (return) (drop (v128.load (i32.const 0)))) (memory 1)",
}
PLAIN = {  # 0xfd and 0x7b, but as part of something else
    "number": "(func (drop (i32.const -3)) (drop (i64.const 0x7dfd)) (drop (i32.const 253)))",
    "float": "(func (drop (f32.const nan:0x7dfdfd)) (drop (f64.const -nan:0xdfdfdfdfdfdfd)))",
    "offset": "(memory 1) (func (drop (i32.load offset=253 (i32.const 0))))",
    "branches": "(func (block (block (br_table 0 1 0 1 (i32.const 0x7bfd)))))",
    "function number 253": "(func)" * 253 + "(func $f) (func (call $f))",
    "local number 253": f"(func (local {'i32 ' * 260}) (drop (local.get 253)))",
    "data": '(memory 1) (data (i32.const 0) "\\fd\\0c\\7b\\fd")',
    "name": '(func (export "{"))',
    "other prefix": "(memory 1) (func (memory.fill (i32.const 0) (i32.const 253) (i32.const 3)))",
}


def binary(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {text})"))


def using(instruction: str) -> bytes:
    return binary(f"(memory 1) (func (drop {instruction}))")


def refusal(wasm: bytes) -> str | None:
    try:
        flaws.check(OLD, wasm)
    except ModuleError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_an_instruction(kind: str) -> None:
    assert refusal(using(INSTRUCTIONS[kind])) == REFUSED


@pytest.mark.parametrize("place", PLACES)
def test_a_type(place: str) -> None:
    assert refusal(binary(PLACES[place])) == REFUSED


@pytest.mark.parametrize("kind", PLAIN)
def test_what_only_looks_like_it(kind: str) -> None:
    wasm = binary(PLAIN[kind])
    assert {0xFD, 0x7B} & set(wasm)
    assert refusal(wasm) is None


@pytest.mark.parametrize("name", names())
def test_ordinary_programs_pass(name: str) -> None:
    if "native" in name:
        pytest.skip("no module")
    assert refusal(build(name).read_bytes()) is None


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\0asm",
        b"\0asm\1\0\0\0\x0a\x05\1\x03\0\xfd",
        b"\0asm\1\0\0\0" + b"\x01\xff\xff\xff\xff\x0f" + b"\x60" * 100,
        b"\0asm\1\0\0\0\x0a" + b"\x80" * 20,
        b"\0asm\1\0\0\0\1\4\1\x60\0\0\3\2\1\0\x0a\4\1\2\0\x41",  # ends within an instruction
        using(ZERO)[:-1],
        using(ZERO) + b"\x0b",
        using(ZERO).replace(b"\xfd\x0c", b"\xfd\xff", 1),
    ],
)
def test_what_is_no_module_is_refused(broken: bytes) -> None:
    assert (refusal(broken) or "").startswith("invalid wasm module: ")


SEEDS = [using(text) for text in INSTRUCTIONS.values()] + [binary(t) for t in PLACES.values()]


@given(st.sampled_from(SEEDS), st.data())
def test_any_damage_is_explained(seed: bytes, data: st.DataObject) -> None:
    made = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(8, len(made)))
        made[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    said = refusal(bytes(made))
    assert said is None or (said.isprintable() and said)


@given(st.sampled_from(list(INSTRUCTIONS.values())), st.data())
def test_a_part_of_its_code_is_no_module(text: str, data: st.DataObject) -> None:
    wasm = using(text)
    code = wasm.index(b"\x0a", 20)  # before that it may well be one: of the other sections
    assert refusal(wasm[: data.draw(st.integers(code + 1, len(wasm) - 1))]) is not None


def test_a_large_function_is_read_to_its_end() -> None:
    for last, said in (("", None), (f"(drop {ZERO})", REFUSED)):
        body = "(drop (i32.const 0x7dfdfd))" * 200_000
        assert refusal(binary(f"(func {body} {last})")) == said


def test_it_starts_no_thread() -> None:
    before = os.listdir("/proc/self/task")
    assert refusal(build("probe").read_bytes()) is None
    assert os.listdir("/proc/self/task") == before


@pytest.mark.parametrize(
    ("name", "version", "flawed"),
    [
        ("wasmer", "1.1.0", True),
        ("wasmer", "2.3.0", True),
        ("wasmer", "3.0.0", False),
        ("wasmer", "7.1", False),
        ("wasmer", "unknown", True),
        ("wasmtime", "1.0", False),
    ],
)
def test_a_later_version_has_outlived_its_flaws(name: str, version: str, flawed: bool) -> None:
    engine: Any = EngineOf(name, version)
    assert bool(flaws.known(engine)) is flawed
    condition = flaws.condition(engine, checked=True)
    assert (condition, flaws.condition(engine, checked=False)) == (
        (" without SIMD", " unchecked") if flawed else ("", "")
    )
    if not flawed:
        flaws.check(engine, using(ZERO))


def test_the_table_is_about_engines_there_are() -> None:
    for engine in engines():
        assert bool(flaws.known(engine)) is (engine.name == "wasmer" and not LIBWASMER)


@needs_wheels
def test_the_wheels_are_in_the_table() -> None:
    from shim.engines.wasmer_wheel import WasmerWheel

    assert flaws.known(WasmerWheel())


@needs_libwasmer
def test_the_library_gets_right_what_the_wheels_get_wrong() -> None:
    """239, as the guest says."""
    wasm = bytes(wasmtime.wat2wasm((SOURCES / "simd.wat").read_text()))
    assert Runner(select("wasmer"))(wasm).status == 239


def test_the_guest_of_other_tests_is_one() -> None:
    wasm = bytes(wasmtime.wat2wasm((SOURCES / "simd.wat").read_text()))
    assert refusal(wasm) == REFUSED
