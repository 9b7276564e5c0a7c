"""What is said of a trap where the artifact is out of reach by its name: in a real guest.

The engines look up what an instruction traps for, and the names of functions, when it has happened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.installed import ENGINES, LIBWASMER
from tests.shim.task_api import Container, Shim

DIVISION = """(module
    (func $half (param i32) (result i32) (i32.div_s (i32.const 1) (local.get 0)))
    (func $main (drop (call $half (i32.const 0))))
    (func (export "_start") (call $main)))"""
CALLING = """(module
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $host (param i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func $deeper (param i32) (result i32)
        (i32.add (call $host (i32.const 0) (i32.const 8))
            (i32.add (call $deeper (local.get 0)) (local.get 0))))
    (func (export "_start") (drop (call $deeper (i32.const 1)))))"""
"""Calls the host at each depth, so that the stack may end there."""
MIB = 1 << 20


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("trap",))
    yield started
    await started.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("args", "reason", "innermost"),
    [
        (("/trap.wasm", "unreachable"), "unreachable", "deeper"),
        (("/trap.wasm", "memory"), "out of bounds memory access", "deeper"),
        (("/trap.wasm", "stack"), "call stack exhausted", ""),
        (("/division.wat",), "integer divide by zero", "half"),
    ],
)
async def test_a_trap(
    shim: Shim, engine: str, args: tuple[str, ...], reason: str, innermost: str
) -> None:
    (shim.rootfs / "division.wat").write_text(DIVISION)
    for id in ("compiled", "from-the-cache"):
        shim.bundle(id, *args, annotations={"dev.pywasm.engine": engine})
        ended = await (await Container.create(shim, id)).run()
        assert ended.status == 134
        first, *trace = ended.stderr.splitlines()
        assert first == f"pywasm: wasm trap: {reason}"
        if innermost:
            assert trace[0] == "wasm backtrace:"
            assert trace[1].split()[1] == innermost


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("limit", [MIB // 2, MIB, 3 * MIB, 8 * MIB, 64 * MIB])
async def test_the_end_of_the_stack_is_a_trap_whatever_its_limit(
    shim: Shim, engine: str, limit: int
) -> None:
    if engine == "wasmer" and not LIBWASMER:
        pytest.skip("the wheels' guests share the stack of the process, which ends with a signal")
    (shim.rootfs / "calling.wat").write_text(CALLING)
    rlimit = {"type": "RLIMIT_STACK", "hard": limit, "soft": limit}
    process = {"args": ["/calling.wat"], "cwd": "/", "rlimits": [rlimit]}
    shim.bundle("c", process=process, annotations={"dev.pywasm.engine": engine})
    ended = await (await Container.create(shim, "c")).run()
    assert (ended.status, ended.stderr.splitlines()[0]) == (
        134,
        "pywasm: wasm trap: call stack exhausted",
    )
