"""Plans of components: all that is nested is flat, and an engine can link it."""

from __future__ import annotations

import wasmtime

from shim.component import plan
from shim.component.planning import exports_of, plan_component
from tests.shim.component.providing import whatever_is_imported
from tests.shim.component.texts import MEMORY, assembled

COUNTER = """
    (component $Counter
        (core module $M
            (memory (export "memory") 1)
            (func (export "drop") (param i32))
            (func (export "make") (result i32) (i32.const 7)))
        (core instance $m (instantiate $M))
        (type $counter (resource (rep i32) (dtor (core func $m "drop"))))
        (export $shown "counter" (type $counter))
        (func $make (result (own $shown)) (canon lift (core func $m "make")))
        (export "make" (func $make)))
"""


def planned(text: str) -> plan.Plan:
    """Return a plan with a host that has whatever is imported."""
    binary = assembled(text)
    made = plan_component(binary, whatever_is_imported(binary))
    assert plan.decode(plan.encode(made)) == made
    linked(binary, made)
    return made


def linked(binary: bytes, made: plan.Plan) -> None:
    """Instantiate the modules as the plan says, so that an engine compares all core types."""
    settings = wasmtime.Config()
    settings.parallel_compilation = False  # other tests fork, or enter namespaces
    store = wasmtime.Store(wasmtime.Engine(settings))
    functions = [
        wasmtime.Func(store, wasmtime.FuncType(types(each.params), types(each.results)), trap)
        for each in made.functions
    ]
    modules = [
        wasmtime.Module(store.engine, binary[each.offset : each.offset + each.length])
        for each in made.modules
    ]
    instances: list[wasmtime.Instance] = []

    def found(item: plan.Item) -> wasmtime.Func:
        if isinstance(item, plan.Made):
            return functions[item.function]
        extern = instances[item.instance].exports(store)[item.name]
        return extern  # type: ignore[return-value]

    for step in made.steps:
        imports = [found(item) for item in step.imports]
        instances.append(wasmtime.Instance(store, modules[step.module], imports))
    for lift in made.lifts:
        found(lift.core)


def types(names: list[str]) -> list[wasmtime.ValType]:
    """Return wasmtime's types for their names."""
    return [getattr(wasmtime.ValType, name)() for name in names]


def trap(*_: object) -> None:
    raise AssertionError("nothing is called while a plan is linked")


def test_an_import_is_lowered_and_an_export_lifted() -> None:
    made = planned(f"""
        {MEMORY}
        (import "ns:pkg/log@1.0.0" (instance $log (export "write" (func (param "m" string)))))
        (core func $write (canon lower (func $log "write") (memory (core memory $m))))
        (core module $Main
            (import "log" "write" (func (param i32 i32)))
            (import "memory" "memory" (memory 1))
            (func (export "run") (result i32) (i32.const 0)))
        (core instance $main (instantiate $Main
            (with "memory" (instance $memory))
            (with "log" (instance (export "write" (func $write))))))
        (func $run (result bool) (canon lift (core func $main "run")))
        (instance $i (export "run" (func $run)))
        (export "ns:pkg/run@1.0.0" (instance $i))""")
    assert made.imports == [plan.Import("ns:pkg/log@1.0.0", "write", 0)]
    assert made.function_types[0] == plan.Function(["m"], [0], -1)
    assert made.types == [plan.Type("string"), plan.Type("bool")]
    options = plan.Options(memory=plan.Export(0, "memory"))
    lower = plan.Lower(0, 0, -1, options)
    assert made.functions == [plan.Signature(lower, ["i32", "i32"], [])]
    assert [step.imports for step in made.steps] == [
        [],
        [plan.Made(0), plan.Export(0, "memory")],
    ]
    assert made.lifts == [plan.Lift(plan.Export(1, "run"), 1, 0, plan.Options())]
    run = plan.ExportedInstance({"run": plan.ExportedFunction(0)})
    assert made.exports == {"ns:pkg/run@1.0.0": run}
    assert exports_of(made) == ["ns:pkg/run@1.0.0/run"]


def test_what_is_instantiated_twice_is_there_twice() -> None:
    made = planned(f"""{COUNTER}
        (instance $a (instantiate $Counter))
        (instance $b (instantiate $Counter))
        (core func $make-a (canon lower (func $a "make")))
        (core func $make-b (canon lower (func $b "make")))
        (alias export $a "counter" (type $counter-a))
        (alias export $b "counter" (type $counter-b))
        (core func $drop-a (canon resource.drop $counter-a))
        (core func $drop-b (canon resource.drop $counter-b))
        (export "b" (instance $b))""")
    assert made.instances == [-1, 0, 0]
    assert len(made.modules) == 1
    assert [(step.module, step.instance) for step in made.steps] == [(0, 1), (0, 2)]
    assert made.resources == [
        plan.OwnResource(1, plan.Export(0, "drop")),
        plan.OwnResource(2, plan.Export(1, "drop")),
    ]
    assert made.types == [plan.Type("own", number=0), plan.Type("own", number=1)]
    assert [each.function for each in made.functions] == [
        plan.Lower(0, -1, 0, plan.Options()),
        plan.Lower(0, -1, 1, plan.Options()),
        plan.BuiltIn(0, "resource.drop", 0),
        plan.BuiltIn(0, "resource.drop", 1),
    ]
    assert made.exports == {"b": plan.ExportedInstance({"make": plan.ExportedFunction(1)})}


def test_a_resource_is_the_same_wherever_it_comes_through() -> None:
    made = planned("""
        (import "ns:pkg/a" (instance $a (export "r" (type (sub resource)))))
        (alias export $a "r" (type $r))
        (import "ns:pkg/b" (instance $b
            (export "s" (type $s (eq $r))) (export "f" (func (param "x" (own $s))))))
        (component $C
            (import "t" (type $t (sub resource)))
            (import "f" (func $f (param "x" (own $t))))
            (core func $drop (canon resource.drop $t))
            (export "g" (func $f)))
        (instance $c (instantiate $C (with "t" (type $r)) (with "f" (func $b "f"))))
        (export "g" (func $c "g"))""")
    assert made.resources == [plan.HostResource("ns:pkg/a", "r")]
    assert made.types == [plan.Type("own", number=0)]
    assert made.functions[0].function == plan.BuiltIn(1, "resource.drop", 0)
    assert made.exports == {"g": plan.ExportedFunction(-1, 0)}


def test_a_component_is_given_to_another_with_what_it_knows() -> None:
    made = planned("""
        (import "f" (func $f (result u8)))
        (component $Outer
            (component $Inner (import "x" (func $x (result u8))) (export "y" (func $x)))
            (component $Maker (import "x" (func $x (result u8)))
                (alias outer $Outer $Inner (component $I))
                (instance $i (instantiate $I (with "x" (func $x))))
                (export "y" (func $i "y")))
            (export "maker" (component $Maker)))
        (component $User
            (import "c" (component $C
                (import "x" (func (result u8))) (export "y" (func (result u8)))))
            (import "x" (func $x (result u8)))
            (instance $i (instantiate $C (with "x" (func $x))))
            (core func (canon lower (func $i "y"))))
        (instance $outer (instantiate $Outer))
        (instance (instantiate $User
            (with "c" (component $outer "maker")) (with "x" (func $f))))""")
    assert made.imports == [plan.Import("", "f", 0)]
    assert made.instances == [-1, 0, 0, 2, 3]
    assert made.functions[0].function == plan.Lower(2, 0, -1, plan.Options())


def test_exports_are_no_more_than_their_types_tell() -> None:
    made = planned("""
        (import "i" (instance $i (export "f" (func)) (export "g" (func))))
        (component $C)
        (core module $M)
        (export "i" (instance $i) (instance (export "g" (func))))
        (export "c" (component $C))
        (export "m" (core module $M))""")
    assert made.exports == {
        "i": plan.ExportedInstance({"g": plan.ExportedFunction(-1, 1)}),
        "c": plan.ExportedOther("component"),
        "m": plan.ExportedOther("core module"),
    }
    assert exports_of(made) == ["i/g", "c (a component)", "m (a core module)"]


def test_built_ins() -> None:
    made = planned(f"""
        {MEMORY}
        (type $r (resource (rep i32)))
        (type $stream (stream u8))
        (type $future (future))
        (core func (canon resource.new $r))
        (core func (canon resource.rep $r))
        (core func (canon task.return (result string) (memory (core memory $m))))
        (core func (canon context.get i32 1))
        (core func (canon stream.read $stream async (memory (core memory $m))))
        (core func (canon future.cancel-write $future async))
        (core func (canon waitable-set.wait (memory (core memory $m))))
        (core func (canon subtask.drop))""")
    memory = plan.Options(memory=plan.Export(0, "memory"))
    found = [each.function for each in made.functions]
    assert found == [
        plan.BuiltIn(0, "resource.new", 0),
        plan.BuiltIn(0, "resource.rep", 0),
        plan.BuiltIn(0, "task.return", type=0, options=memory),
        plan.BuiltIn(0, "context.get", number=1),
        plan.BuiltIn(
            0, "stream.read", type=2, options=plan.Options(plan.Export(0, "memory"), is_async=True)
        ),
        plan.BuiltIn(0, "future.cancel-write", type=3, flag=True),
        plan.BuiltIn(0, "waitable-set.wait", options=memory),
        plan.BuiltIn(0, "subtask.drop"),
    ]
    assert made.types == [
        plan.Type("string"),
        plan.Type("u8"),
        plan.Type("stream", [1]),
        plan.Type("future", [-1]),
    ]
    assert made.functions[2].params == ["i32", "i32"]


def test_a_destructor_may_be_made() -> None:
    made = planned("""
        (import "f" (func $f (param "x" u32)))
        (core func $drop (canon lower (func $f)))
        (type $r (resource (rep i32) (dtor (core func $drop))))""")
    assert made.resources == [plan.OwnResource(0, plan.Made(0))]
