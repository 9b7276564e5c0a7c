"""A module's data, kept apart from the module: which modules, and that none of them notices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import wasmtime

from shim import engines
from shim.engines.binary import sections
from shim.engines.data import PAGE, apart
from tests.guests.assemble import leb
from tests.installed import needs_libwasmer
from tests.shim.engines.conftest import Runner, artifact

MARK = b"a word that is nowhere else"
CONTENT = MARK + bytes(range(256)) * 1200
PAGES = 8


def text(content: bytes) -> str:
    return "".join(f"\\{byte:02x}" for byte in content)


def module(
    *segments: tuple[int, bytes],
    memory: str = f'(memory (export "memory") {PAGES})',
    more: str = "",
) -> bytes:
    """A module that writes all of its memory to standard output."""
    data = "".join(f'(data (i32.const {at}) "{text(content)}")' for at, content in segments)
    return bytes(
        wasmtime.wat2wasm(f"""
        (module
          (import "wasi_snapshot_preview1" "fd_write"
            (func $write (param i32 i32 i32 i32) (result i32)))
          {memory}
          (func (export "_start")
            (i32.store (i32.const 4) (i32.const {PAGES << 16}))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (drop (memory.grow (i32.const 1)))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
          {data} {more})
        """)
    )


LAID = [(70_001, CONTENT), (70_105, b"over it"), ((PAGES << 16) - 5, b"end")]


def test_pages_of_the_memory() -> None:
    whole = module(*LAID)
    rest, data = apart(whole)
    assert data is not None
    expected = bytearray(PAGES << 16)
    for offset, content in LAID:
        expected[offset : offset + len(content)] = content
    assert data.offset == 70_001 // PAGE * PAGE
    assert data.content == expected[data.offset :]
    assert MARK in whole
    assert MARK not in rest


def test_an_offset_above_2_gib() -> None:
    memory = '(memory (export "memory") 65536)'
    _, data = apart(module((0xC000_0000, CONTENT), memory=memory))
    assert data is not None
    assert data.offset == 0xC000_0000


LARGE = '(memory (export "memory") 64)'
IMPORTED = '(import "a" "b" (memory 8)) (memory 8) (export "memory" (memory 0))'
TWO = '(memory (export "memory") 8) (memory 1)'
AT_GLOBAL = f'(global $at i32 (i32.const 0)) (data (global.get $at) "{text(CONTENT)}")'


ALMOST = r'(func $other) (export "\06memory\02\00" (func $other))'


def at(offset: bytes) -> bytes:
    """A module whose data is at what these bytes stand for."""
    whole = module((0, CONTENT))
    data = next(section for section in sections(whole) if section.number == 11)
    head, rest = whole[data.content : data.content + 3], whole[data.content + 4 : data.end]
    content = head + offset + rest
    return whole[: data.start] + b"\x0b" + leb(len(content)) + content + whole[data.end :]


def test_the_bytes_of_an_offset() -> None:
    assert at(b"\x00") == module((0, CONTENT))
    _, data = apart(at(b"\x80\x80\x00"))
    assert data is not None
    assert data.offset == 0


@pytest.mark.parametrize(
    "wasm",
    [
        module((0, CONTENT[: 1 << 17])),  # not worth it
        module((0, CONTENT), (3 << 20, b"far"), memory=LARGE),  # sparse
        module((300_000, CONTENT)),  # it does not fit
        module((0, CONTENT), memory=f"(memory {PAGES})"),
        module((0, CONTENT), memory=TWO),
        module((0, CONTENT), more="(func $first) (start $first)"),
        module((0, CONTENT), more='(data $late "x") (func (data.drop $late))'),
        module(more=AT_GLOBAL),
        module((0, CONTENT), memory="(memory 8)", more=ALMOST),
        module((0, CONTENT), memory=IMPORTED),
        # Invalid: an offset of more bytes, or bits, than one has.
        *(at(offset) for offset in (b"\x80\x80\x80\x80\x80\x00", b"\x80\x80\x80\x80\x70")),
        module((0, CONTENT)) + b"\x0b\x01\x00",  # invalid: twice
        module((0, CONTENT))[:-1],
    ],
)
def test_what_is_left_as_it_is(wasm: bytes) -> None:
    assert apart(wasm) == (wasm, None)


@needs_libwasmer
@pytest.mark.parametrize("mapped", [True, False])
def test_the_module_does_not_notice(tmp_path: Path, *, mapped: bool) -> None:
    wasm, engine = module(*LAID), engines.select("wasmer")
    made = artifact(engine, wasm)
    file = tmp_path / "artifact"
    file.write_bytes(made + os.urandom(88))  # a trailer
    assert made.count(MARK) == 1
    load = (lambda: engine.load_file(str(file))) if mapped else None
    first = Runner(engine)(wasm, load=load)
    second = Runner(engines.select("wasmtime"))(wasm)
    assert first.status == second.status == 0
    assert len(first.stdout) == 2 * PAGES << 16
    assert first.stdout == second.stdout
    assert file.read_bytes()[: len(made)] == made
