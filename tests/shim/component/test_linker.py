"""From a plan to something that can be called; and plans that lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim import engines
from shim.component import plan
from shim.component.errors import Trap
from shim.component.host import Interface, Registry
from shim.component.linker import Linker, PlanError, call
from shim.component.planning import plan_component
from shim.engines.base import Engine, Module, ModuleError
from shim.engines.base import Trap as CoreTrap
from tests.installed import ENGINES
from tests.shim.component.texts import assembled
from tests.shim.engines.conftest import artifact

HOST = Interface("a:b/c", "1")
HOST.resource("thing", lambda thing: thing.clear())


@HOST.function("[constructor]thing", "func(x: string) -> own<thing>")
def make(program: list[str], text: str) -> list[str]:
    program.append(text)
    return [text]


@HOST.function("[method]thing.tell", "func(self: borrow<thing>) -> string")
def tell(program: list[str], thing: list[str]) -> str:
    return "".join(thing) * 2


REGISTRY = Registry([HOST])

TEXT = """
    (import "a:b/c@1.0.0" (instance $host
        (export "thing" (type $thing (sub resource)))
        (export "[constructor]thing" (func (param "x" string) (result (own $thing))))
        (export "[method]thing.tell" (func (param "self" (borrow $thing)) (result string)))))
    (alias export $host "thing" (type $thing))
    (core module $Memory
        (memory (export "memory") 1)
        (global $free (mut i32) (i32.const 1024))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32)
            (global.get $free)
            (global.set $free (i32.add (global.get $free) (i32.add (local.get 3) (i32.const 8)))))
        (data (i32.const 8) "hello"))
    (core instance $memory (instantiate $Memory))
    (alias core export $memory "memory" (core memory $m))
    (alias core export $memory "realloc" (core func $realloc))
    (core func $make (canon lower (func $host "[constructor]thing") (memory (core memory $m))))
    (core func $tell (canon lower (func $host "[method]thing.tell")
        (memory (core memory $m)) (realloc (core func $realloc))))
    (core func $drop (canon resource.drop $thing))
    (component $Inner
        (import "greet" (func $greet (result string)))
        (core module $Memory
            (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 64)))
        (core instance $memory (instantiate $Memory))
        (core func $greet (canon lower (func $greet)
            (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
        (type $s (stream u8))
        (core func $new (canon stream.new $s))
        (core module $Main
            (import "" "greet" (func $greet (param i32)))
            (func (export "run") (result i32) (call $greet (i32.const 16)) (i32.const 16)))
        (core instance $main (instantiate $Main
            (with "" (instance (export "greet" (func $greet))))))
        (func (export "run") (result string)
            (canon lift (core func $main "run") (memory (core memory $memory "memory")))))
    (core module $Main
        (import "" "make" (func $make (param i32 i32) (result i32)))
        (import "" "tell" (func $tell (param i32 i32)))
        (import "" "drop" (func $drop (param i32)))
        (func (export "greet") (result i32)
            (local i32)
            (local.set 0 (call $make (i32.const 8) (i32.const 5)))
            (call $tell (local.get 0) (i32.const 32))
            (call $drop (local.get 0))
            (i32.const 32)))
    (core instance $main (instantiate $Main (with "" (instance
        (export "make" (func $make)) (export "tell" (func $tell)) (export "drop" (func $drop))))))
    (func $greet (result string) (canon lift (core func $main "greet")
        (memory (core memory $m)) (realloc (core func $realloc))))
    (instance $inner (instantiate $Inner (with "greet" (func $greet))))
    (export "greet" (func $greet))
    (export "inner" (instance $inner))
"""


class Linked:
    """A component of TEXT's kind, and what its host function was told."""

    def __init__(self, what: plan.Plan, modules: list[Module], engine: Engine) -> None:
        self.program: list[str] = []
        linker = Linker(what, modules, engine.store(), REGISTRY, self.program)
        self.exports: Any = linker.link()
        self.runtime = linker.runtime


def planned(text: str, engine: Engine) -> tuple[plan.Plan, list[Module]]:
    binary = assembled(text)
    what = plan_component(binary, REGISTRY)
    modules = [
        engine.load(artifact(engine, binary[module.offset : module.offset + module.length]))
        for module in what.modules
    ]
    return what, modules


@pytest.mark.parametrize("name", ENGINES)
def test_a_plan_is_followed(name: str) -> None:
    engine = engines.select(name)
    linked = Linked(*planned(TEXT, engine), engine)
    assert call(linked.runtime, linked.exports["greet"]) == "hellohello"
    assert call(linked.runtime, linked.exports["greet"]) == "hellohello"
    assert linked.program == ["hello", "hello"]
    # Whoever is nested in another one cannot call it yet.
    assert list(linked.exports["inner"]) == ["run"]
    with pytest.raises(Trap, match="cannot enter component instance"):
        call(linked.runtime, linked.exports["inner"]["run"])


@pytest.mark.parametrize("name", ENGINES)
def test_nobody_enters_after_a_trap(name: str) -> None:
    engine = engines.select(name)
    text = """
        (core module $M (func (export "trap") unreachable) (func (export "fine")))
        (core instance $m (instantiate $M))
        (func (export "trap") (canon lift (core func $m "trap")))
        (func (export "fine") (canon lift (core func $m "fine")))"""
    linked = Linked(*planned(text, engine), engine)
    call(linked.runtime, linked.exports["fine"])
    with pytest.raises(CoreTrap):
        call(linked.runtime, linked.exports["trap"])
    with pytest.raises(Trap, match="cannot enter component instance"):
        call(linked.runtime, linked.exports["fine"])


@pytest.mark.parametrize("name", ENGINES)
def test_two_names_of_a_memory_are_one(name: str) -> None:
    engine = engines.select(name)
    text = """
        (core module $Memory (memory (export "m") 1) (data (i32.const 8) "hello"))
        (core instance $memory (instantiate $Memory))
        (core module $Again (import "" "m" (memory 1)) (export "again" (memory 0)))
        (core instance $again (instantiate $Again (with "" (instance $memory))))
        (core instance $other (instantiate $Memory))
        (core func $same (canon task.return (result string) (memory (core memory $again "again"))))
        (core func $not (canon task.return (result string) (memory (core memory $other "m"))))
        (core module $M
            (import "" "same" (func $same (param i32 i32)))
            (import "" "not" (func $not (param i32 i32)))
            (func (export "same") (call $same (i32.const 8) (i32.const 5)))
            (func (export "not") (call $not (i32.const 8) (i32.const 5))))
        (core instance $m (instantiate $M (with "" (instance
            (export "same" (func $same)) (export "not" (func $not))))))
        (func (export "same") async (result string)
            (canon lift (core func $m "same") async (memory (core memory $memory "m"))))
        (func (export "not") async (result string)
            (canon lift (core func $m "not") async (memory (core memory $memory "m"))))"""
    linked = Linked(*planned(text, engine), engine)
    assert call(linked.runtime, linked.exports["same"]) == "hello"
    with pytest.raises(Trap, match="with other options"):
        call(linked.runtime, linked.exports["not"])


# Plans that lie.


@pytest.fixture(scope="module")
def honest() -> Iterator[tuple[plan.Plan, list[Module]]]:
    what, modules = planned(TEXT, engines.select("wasmtime"))
    yield what, modules
    modules.clear()


def places(told: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where in the plan there is a number, or a name."""
    if isinstance(told, (list, tuple)):
        for index, each in enumerate(told):
            yield from places(each, (*path, index))
    elif isinstance(told, dict):
        for key, each in told.items():
            yield from places(each, (*path, key))
    else:
        yield path


def replaced(told: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = dict(told) if isinstance(told, dict) else list(told)
    copy[path[0]] = replaced(told[path[0]], path[1:], by)
    return copy


LIES = st.sampled_from([-(2**63), -2, -1, 0, 1, 2, 3, 7, 50, 10**6, 2**63 - 1, "", "f32", True])


@settings(max_examples=200)
@given(st.data())
def test_a_plan_that_lies(honest: tuple[plan.Plan, list[Module]], data: st.DataObject) -> None:
    """It is followed, or refused; whatever it makes of the guest stays within the guest."""
    what, modules = honest
    told = msgspec.to_builtins(what)
    for _ in range(data.draw(st.integers(1, 2))):
        told = replaced(told, data.draw(st.sampled_from(list(places(told)))), data.draw(LIES))
    try:
        lying = plan.decode(msgspec.msgpack.encode(told))
    except plan.DecodeError:
        return
    try:
        linked = Linked(lying, modules, engines.select("wasmtime"))
    except (PlanError, ModuleError):
        return
    try:
        call(linked.runtime, linked.exports["greet"])
    except Exception:  # the guest ends with it
        return


def lied(**parts: Any) -> str:
    """Return why a plan with these parts is refused."""
    made = plan.Plan([], [], [], [], [-1], [], [], [], [], {})
    made = msgspec.structs.replace(made, **parts)
    with pytest.raises(PlanError) as caught:
        Linked(plan.decode(plan.encode(made)), [], engines.select("wasmtime"))
    return str(caught.value)


def exported(kind: plan.Type, *more: plan.Type) -> dict[str, Any]:
    """Return a plan of a function that takes a value."""
    return {
        "types": [*more, kind],
        "function_types": [plan.Function(["x"], [len(more)], -1)],
        "lifts": [plan.Lift(plan.Made(0), 0, 0, plan.Options())],
        "functions": [plan.Signature(plan.BuiltIn(0, "waitable-set.new"), [], ["i32"])],
        "exports": {"f": plan.ExportedFunction(0)},
    }


@pytest.mark.parametrize(
    "parts",
    [
        {"instances": [0]},
        {"instances": [-1, 7]},
        {"resources": [plan.OwnResource(1)]},
        {"resources": [plan.OwnResource(-1)]},
        {"resources": [plan.HostResource("a:b/c@1.0.0", "none")]},
        {"steps": [plan.Instantiate(0, [], 0)]},
        {"steps": [plan.Instantiate(-1, [], 0)]},
        {"steps": [plan.Instantiate(0, [plan.Export(0, "f")], 0)]},
        {"steps": [plan.Instantiate(0, [plan.Made(-1)], 0)]},
        {"exports": {"f": plan.ExportedFunction(-1)}},
        {"exports": {"f": plan.ExportedFunction(3)}},
        {"exports": {"f": plan.ExportedFunction(-1, 3)}},
        exported(plan.Type("list", [1])),
        exported(plan.Type("list", [-1])),
        exported(plan.Type("list")),
        exported(plan.Type("own", number=0)),
        exported(plan.Type("own", number=-1)),
        exported(plan.Type("record", [0], ["a", "b"]), plan.Type("u8")),
        exported(plan.Type("record", [-1], ["a"])),
        exported(plan.Type("tuple", [-1])),
        exported(plan.Type("list", [0], number=-1), plan.Type("u8")),
        exported(plan.Type("what")),
        # of itself
        {
            "function_types": [plan.Function([], [], -1)],
            "lifts": [plan.Lift(plan.Made(0), 0, 0, plan.Options())],
            "functions": [plan.Signature(plan.Lower(0, -1, 0, plan.Options()), [], [])],
            "exports": {"f": plan.ExportedFunction(0)},
        },
        # about nothing
        {
            "functions": [plan.Signature(plan.BuiltIn(0, "resource.new"), ["i32"], ["i32"])],
            "steps": [plan.Instantiate(0, [plan.Made(0)], 0)],
        },
        {
            "functions": [plan.Signature(plan.BuiltIn(0, "what"), [], [])],
            "steps": [plan.Instantiate(0, [plan.Made(0)], 0)],
        },
    ],
)
def test_what_leads_nowhere(parts: dict[str, Any]) -> None:
    assert lied(**parts).startswith(("the component's plan is unusable", "nobody provides"))
