"""Components through the compiler process: the plan, and each core module."""

from __future__ import annotations

import os

import pytest

from shim.compiler.planner import PLANNER, Planner
from shim.compiler.process import Refused, start
from shim.component.parts import Part, parts_of, plan_of
from shim.engines import engines
from shim.engines.base import Compiler, Engine
from shim.engines.cache import key, read_artifact
from shim.engines.text import assembled
from tests.shim.compiler.test_process import module_file

KEY = key(b"\2" * 32, "test")
TEXT = b"""(component
  (core module $one (func (export "run") (result i32) i32.const 0))
  (core module $two (memory 1))
  (core instance $one (instantiate $one))
  (core instance (instantiate $two))
  (func (export "run") (result u32) (canon lift (core func $one "run"))))"""


def compiled(compiler: Compiler, wasm: bytes, part: Part | None = None, pages: int = 0) -> bytes:
    """Have it compiled in a process, as a foreman does; return the artifact."""
    if compiler is PLANNER:
        PLANNER.prepare()
    fd = module_file(wasm)
    try:
        outputs = [os.memfd_create("artifact")]
        compilation = start(compiler, KEY, fd, outputs, part=part, memory_pages=pages or None)
        artifact = read_artifact(compilation.result(), KEY)
    finally:
        os.close(fd)
    try:
        return artifact.read()
    finally:
        artifact.close()


@pytest.mark.parametrize("wasm", [TEXT, assembled(TEXT, component=True)], ids=["text", "binary"])
@pytest.mark.parametrize("engine", engines(), ids=lambda engine: engine.name)
def test_a_component(engine: Engine, wasm: bytes) -> None:
    kept = compiled(PLANNER, wasm)
    parts = parts_of(kept)
    assert len(parts) == 2
    store = engine.store()
    one, two = (engine.load(compiled(engine, wasm, part)) for part in parts)
    assert store.instantiate(one, []).function("run")() == 0
    store.instantiate(two, [])
    assert list(plan_of(kept).exports) == ["run"]


def test_its_memory_is_limited() -> None:
    (_, part) = parts_of(compiled(PLANNER, TEXT))
    engine = engines()[0]
    compiled(engine, TEXT, part, pages=1)
    with pytest.raises(Refused, match="its memory begins with 2 pages"):
        compiled(engine, TEXT.replace(b"(memory 1)", b"(memory 2)"), part, pages=1)


@pytest.mark.parametrize(
    "part", [Part(0, 8), Part(3, 20), Part(1 << 40, 8), Part(0, 0), Part(0, 1 << 62)]
)
def test_what_is_no_module_of_it(part: Part) -> None:
    with pytest.raises(Refused, match="module"):
        compiled(engines()[0], TEXT, part)


@pytest.mark.parametrize(
    ("wasm", "said"),
    [
        (b'(component (import "wasi:no/such@0.2.0" (instance)))', "wasi:no/such@0.2.0"),
        (b"(component", "invalid wasm text: 1:11"),
        (b"\0asm\x0d\0\1\0\1", "component"),
        (b"\0asm\1\0\0\0", "invalid component: header"),
    ],
)
def test_refusals(wasm: bytes, said: str) -> None:
    with pytest.raises(Refused) as refused:
        compiled(PLANNER, wasm)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_fingerprint_tells_what_the_host_has() -> None:
    assert PLANNER.fingerprint() == Planner().fingerprint()
    assert PLANNER.name in PLANNER.fingerprint()
