"""Bytes that may be a component: a line that says why it is none, or a plan without a loose end."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from shim.component import plan
from shim.component.planning import exports_of, plan_component
from shim.engines.base import ModuleError
from tests.shim.component.providing import whatever_is_imported
from tests.shim.component.texts import MEMORY, assembled

SEEDS = [
    assembled(text)
    for text in (
        f"""{MEMORY}
        (import "a:b/c@0.2.1" (instance $i
            (export "r" (type $r (sub resource)))
            (export "[method]r.f" (func (param "self" (borrow $r)) (result string)))))
        (alias export $i "r" (type $r))
        (core func $f (canon lower (func $i "[method]r.f")
            (memory (core memory $m)) (realloc (core func $realloc))))
        (core func $drop (canon resource.drop $r))
        (core module $M
            (import "i" "f" (func (param i32 i32))) (import "i" "drop" (func (param i32)))
            (func (export "run") (result i32) (i32.const 0)))
        (core instance $c (instantiate $M
            (with "i" (instance (export "f" (func $f)) (export "drop" (func $drop))))))
        (func $run (result (result)) (canon lift (core func $c "run")))
        (instance $e (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $e))""",
        """(component $C
            (import "t" (type $t (sub resource)))
            (import "f" (func $f (param "x" (own $t))))
            (type $own (resource (rep i32)))
            (export $shown "own" (type $own))
            (export "g" (func $f)))
        (import "r" (type $r (sub resource)))
        (import "f" (func $f (param "x" (own $r))))
        (instance $a (instantiate $C (with "t" (type $r)) (with "f" (func $f))))
        (instance $b (instantiate $C (with "t" (type $r)) (with "f" (func $a "g"))))
        (export "b" (instance $b))""",
        f"""{MEMORY}
        (type $record (record (field "a" u8) (field "b" (list string 3))))
        (type $variant (variant (case "a") (case "b" $record)))
        (type $flags (flags "x" "y"))
        (type $stream (stream $flags))
        (type $future (future $variant))
        (core func (canon stream.read $stream async (memory (core memory $m))))
        (core func (canon future.new $future))
        (core func (canon task.return (result $variant) (memory (core memory $m))))
        (type (component (import "a" (func)) (export "b" (type (sub resource)))))
        (core type (module (import "a" "b" (func (param i32))) (export "m" (memory 1))))""",
    )
]


def fuzz(data: bytes) -> None:
    """Make a plan."""
    with suppress(ModuleError):
        check(plan_component(data, whatever_is_imported(data)))


def check(made: plan.Plan) -> None:
    """Raise AssertionError unless whatever is referred to is there, and made before."""
    assert plan.decode(plan.encode(made)) == made
    exports_of(made)
    for number, kind in enumerate(made.types):
        assert all(-1 <= part < number for part in kind.parts)
        if kind.kind in ("own", "borrow"):
            assert kind.number < len(made.resources)
    for function in made.function_types:
        assert all(0 <= kind < len(made.types) for kind in function.params)
        assert -1 <= function.result < len(made.types)
    for number, step in enumerate(made.steps):
        assert step.module < len(made.modules)
        assert step.instance < len(made.instances)
        exist(made, step.imports, number)
    for lift in made.lifts:
        assert lift.type < len(made.function_types)
        assert lift.instance < len(made.instances)
        exist(made, [lift.core, *used(lift.options)], len(made.steps))
    for made_function in made.functions:
        about = made_function.function
        assert about.instance < len(made.instances)
        exist(made, used(about.options), len(made.steps))
        if isinstance(about, plan.Lower):
            assert about.imported < len(made.imports)
            assert about.lifted < len(made.lifts)
            assert (about.imported < 0) != (about.lifted < 0)
        else:
            assert about.resource < len(made.resources)
            assert about.type < len(made.types)
    for number, parent in enumerate(made.instances):
        assert -1 <= parent < number
        assert (parent < 0) == (number == 0)


def used(options: plan.Options) -> list[plan.Item]:
    """Return what options refer to."""
    items = (options.memory, options.realloc, options.post_return, options.callback)
    return [item for item in items if item is not None]


def exist(made: plan.Plan, items: Iterable[plan.Item], steps: int) -> None:
    """Raise AssertionError unless all of these are there after so many steps."""
    for item in items:
        if isinstance(item, plan.Export):
            assert item.instance < steps
        else:
            assert item.function < len(made.functions)
