"""A component as a program: what it is told before it runs, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest

from shim import engines
from shim.compiler.planner import PLANNER
from shim.component import plan
from shim.component.parts import packed, parts_of
from shim.engines.base import Grants, ModuleError
from shim.engines.text import assembled
from shim.guest.component import Component
from tests.installed import ENGINES
from tests.shim.engines.conftest import Result, artifact, in_child

RUN = "wasi:cli/run@0.2.0"
DESTRUCTORS = """(component
    (core module $Late
        (type $call (func (param i32)))
        (table (export "table") 1 funcref)
        (func (export "destroy") (param i32)
            (if (local.get 0) (then (call_indirect (type $call) (local.get 0) (i32.const 0))))))
    (core instance $late (instantiate $Late))
    (alias core export $late "destroy" (core func $destroy))
    (type $link (resource (rep i32) (dtor (core func $destroy))))
    (core func $new (canon resource.new $link))
    (core func $drop (canon resource.drop $link))
    (core module $Main
        (import "" "table" (table 1 funcref))
        (import "" "new" (func $new (param i32) (result i32)))
        (import "" "drop" (func $drop (param i32)))
        (elem (i32.const 0) func $drop)
        (func (export "run") (result i32) (local $link i32) (local $count i32)
            (loop $more
                (local.set $link (call $new (local.get $link)))
                (local.set $count (i32.add (local.get $count) (i32.const 1)))
                (br_if $more (i32.lt_u (local.get $count) (i32.const 10000))))
            (call $drop (local.get $link))
            (i32.const 0)))
    (core instance $main (instantiate $Main (with "" (instance
        (export "table" (table $late "table"))
        (export "new" (func $new))
        (export "drop" (func $drop))))))
    (func $run (result (result)) (canon lift (core func $main "run")))
    (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"""
"""A chain of resources of which each destroys the next one."""


def planned(exports: dict[str, plan.Exported], **more: Any) -> Component:
    parts: dict[str, Any] = {key: [] for key in plan.Plan.__struct_fields__}
    kept = packed(plan.Plan(**(parts | more | {"exports": exports})))
    return Component(kept, [], engines.select(ENGINES[0]))


def exported(lifted: int) -> plan.Exported:
    return plan.ExportedInstance({"run": plan.ExportedFunction(lifted)})


def test_a_number_that_leads_nowhere() -> None:
    for lift in ([], [plan.Lift(plan.Made(0), 7, 0, plan.Options())]):
        with pytest.raises(ModuleError, match="plan is unusable"):
            planned({RUN: exported(0)}, lifts=lift).check()


def test_the_newest_run_is_the_one() -> None:
    component = planned(
        {
            "wasi:cli/run@0.2.10": exported(-1),
            "wasi:cli/run@0.2.9": plan.ExportedOther("module"),
            f"wasi:cli/run@0.1.{'9' * 5000}": plan.ExportedOther("module"),
        }
    )
    component.check()


def run(engine: str, text: str) -> Result:
    chosen = engines.select(engine)
    binary = assembled(text.encode(), component=True)
    kept = PLANNER.compile(binary)
    modules = [
        chosen.load(artifact(chosen, binary[part.offset : part.offset + part.length]))
        for part in parts_of(kept)
    ]
    return in_child(lambda: Component(kept, modules, chosen).run(Grants([], [], [])))


@pytest.mark.parametrize("engine", ENGINES)
def test_destructors_that_call_one_another(engine: str) -> None:
    ended = run(engine, DESTRUCTORS)
    assert (ended.status, ended.stderr) == (134, b"pywasm: wasm trap: call stack exhausted\n")
