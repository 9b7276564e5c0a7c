"""Modules that are linked by hand: what every engine has to do alike."""

from __future__ import annotations

import gc
import math
import os
import resource
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

from shim import engines
from shim.engines.base import MAX_PARAMS, Engine, Extern, Instance, ModuleError, Store, Trap
from tests.installed import ENGINES

from .conftest import artifact, in_child


class Bench(NamedTuple):
    """A store, and modules in text to put into it."""

    engine: Engine
    store: Store

    def __call__(self, text: str, *imports: Extern) -> Instance:
        module = self.engine.load(artifact(self.engine, f"(module {text})".encode()))
        return self.store.instantiate(module, imports)

    def host(self, call: Callable[..., Any], params: str = "", results: str = "") -> Extern:
        return self.store.function(params.split(), results.split(), call)


@pytest.fixture(params=ENGINES)
def put(request: pytest.FixtureRequest) -> Bench:
    engine = engines.select(request.param)
    return Bench(engine, engine.store())


class Recorder:
    """A host function that keeps what it is called with, and answers with the same number."""

    def __init__(self, answer: Any = None) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self._answer = answer

    def __call__(self, *given: Any) -> Any:
        self.seen.append(given)
        return self._answer


class Strange(BaseException):
    """What no host function raises."""


KINDS = ("i32", "i64", "f32", "f64")
EDGES: dict[str, Sequence[Any]] = {
    "i32": (0, 1, -1, 2**31 - 1, -(2**31)),
    "i64": (0, 1, -1, 2**63 - 1, -(2**63)),
    "f32": (0.0, 1.5, -(2.0**-149), math.inf),
    "f64": (0.0, 1.1, -5e-324, math.inf),
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_go_in_and_out(put: Bench, kind: str) -> None:
    seen: list[Any] = []

    def call(number: Any) -> Any:
        seen.append(number)
        return number

    echo = put(
        f"""(import "host" "f" (func $f (param {kind}) (result {kind})))
        (func (export "f") (param {kind}) (result {kind}) (call $f (local.get 0)))""",
        put.host(call, kind, kind),
    ).function("f")
    assert [echo(number) for number in EDGES[kind]] == list(EDGES[kind])
    assert seen == list(EDGES[kind])
    if kind.startswith("f"):
        assert math.isnan(echo(math.nan))


def test_integers_may_be_of_either_sign(put: Bench) -> None:
    recorder = Recorder(2**32 - 1)
    instance = put(
        """(import "host" "f" (func $f (param i32 i64) (result i32)))
        (import "host" "g" (func $g (result i64)))
        (func (export "f") (param i32 i64) (result i32) (call $f (local.get 0) (local.get 1)))
        (func (export "g") (result i64) (call $g))""",
        put.host(recorder, "i32 i64", "i32"),
        put.host(lambda: 2**64 - 1, "", "i64"),
    )
    assert instance.function("f")(2**32 - 2, 2**64 - 3) == -1
    assert recorder.seen == [(-2, -3)]
    assert instance.function("g")() == -1


@pytest.mark.parametrize("count", [0, 1, 17, MAX_PARAMS])
def test_many_parameters(put: Bench, count: int) -> None:
    kinds = [KINDS[i % 4] for i in range(count)]
    params = " ".join(kinds)
    numbers = [i + 0.5 if kind.startswith("f") else -i for i, kind in enumerate(kinds)]
    recorder = Recorder(0.25)
    pushed = " ".join(f"(local.get {i})" for i in range(count))
    instance = put(
        f"""(import "host" "f" (func $f (param {params}) (result f64)))
        (func (export "f") (param {params}) (result f64) (call $f {pushed}))""",
        put.host(recorder, params, "f64"),
    )
    assert instance.function("f")(*numbers) == 0.25
    assert recorder.seen == [tuple(numbers)]


def test_what_no_host_function_can_be(put: Bench) -> None:
    for params, results in (
        ("i32 " * (MAX_PARAMS + 1), ""),
        ("", "i32 i32"),
        ("v128", ""),
        ("", "externref"),
    ):
        with pytest.raises(ModuleError):
            put.host(print, params, results)


def test_results_of_a_function(put: Bench) -> None:
    instance = put(
        """(func (export "none"))
        (func (export "one") (result i64) (i64.const -7))
        (func (export "three") (result i32 f32 i64) (i32.const -1) (f32.const 0.5) (i64.const 3))
        (func (export "more") (param i32) (result i32 i32) (i32.const 4) (local.get 0))"""
    )
    assert instance.function("none")() is None
    assert instance.function("one")() == -7
    assert instance.function("three")() == (-1, 0.5, 3)
    assert instance.function("more")(9) == (4, 9)


def test_what_an_instance_does_not_export(put: Bench) -> None:
    instance = put(
        """(memory (export "memory") 1) (func (export "f")) (func (export "wide") (param externref))
        (global (export "g") i32 (i32.const 0))"""
    )
    for look, name in (
        (instance.extern, "nothing"),
        (instance.function, "nothing"),
        (instance.memory, "nothing"),
        (instance.function, "memory"),
        (instance.function, "g"),
        (instance.memory, "f"),
        (instance.memory, "g"),
        (instance.function, "wide"),
    ):
        with pytest.raises(ModuleError):
            look(name)
    assert instance.function("f")() is None


CALLS = """(import "host" "f" (func $f)) (func (export "go") (call $f))"""


@pytest.mark.parametrize("error", [ValueError("x"), Strange(), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_unwinds_the_guest(put: Bench, error: BaseException) -> None:
    after: list[int] = []

    def raising() -> None:
        raise error

    instance = put(
        """(import "host" "f" (func $f)) (import "host" "after" (func $after))
        (func (export "go") (call $f) (call $after))""",
        put.host(raising),
        put.host(lambda: after.append(1)),
    )
    for _ in range(3):
        with pytest.raises(type(error)) as caught:
            instance.function("go")()
        assert caught.value is error
    assert after == []


def test_an_exception_crosses_guests_and_hosts_in_turns(put: Bench) -> None:
    error, depths = Strange(), []

    def deeper(depth: int) -> int:
        depths.append(depth)
        if depth == 0:
            raise error
        result: int = go(depth - 1)
        return result

    go = put(
        """(import "host" "f" (func $f (param i32) (result i32)))
        (func (export "go") (param i32) (result i32) (call $f (local.get 0)))""",
        put.host(deeper, "i32", "i32"),
    ).function("go")
    with pytest.raises(Strange) as caught:
        go(20)
    assert caught.value is error
    assert depths == list(range(20, -1, -1))


def test_a_host_function_can_catch_what_ends_a_guest(put: Bench) -> None:
    def catching() -> int:
        for function, kind in ((trapping, Trap), (raising, ValueError)):
            with pytest.raises(kind):
                function()
        return 5

    def refuse() -> None:
        raise ValueError

    trapping = put('(func (export "go") unreachable)').function("go")
    raising = put(CALLS, put.host(refuse)).function("go")
    go = put(
        """(import "host" "f" (func $f (result i32)))
        (func (export "go") (result i32) (call $f))""",
        put.host(catching, "", "i32"),
    ).function("go")
    assert go() == 5


def test_calls_within_calls_of_one_function(put: Bench) -> None:
    def fibonacci(n: int) -> int:
        return n if n < 2 else go(n - 1, 100 + n) + go(n - 2, 200 + n)

    go = put(
        """(import "host" "f" (func $f (param i32) (result i32)))
        (func (export "go") (param i32 i32) (result i32)
          (i32.sub (i32.add (call $f (local.get 0)) (local.get 1)) (local.get 1)))""",
        put.host(fibonacci, "i32", "i32"),
    ).function("go")
    assert go(12, 7) == 144


def test_endless_recursion_is_an_exception(put: Bench) -> None:
    def again() -> None:
        go()

    go = put(CALLS, put.host(again)).function("go")
    with pytest.raises((RecursionError, Trap)):
        go()
    assert put('(func (export "go") (result i32) (i32.const 1))').function("go")() == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("unreachable", "unreachable"),
        ("(drop (i32.load (i32.const 0x7fffffff)))", "out of bounds memory access"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "integer divide by zero"),
        ("(call $go)", "call stack exhausted"),
        ("(call_indirect (i32.const 0))", "uninitialized element"),
    ],
)
def test_a_trap_is_explained(put: Bench, body: str, reason: str) -> None:
    instance = put(f'(memory 1) (table 1 funcref) (func $go (export "go") {body})')
    for _ in range(2):
        with pytest.raises(Trap) as caught:
            instance.function("go")()
        assert str(caught.value) == reason
        # wasmer has none of an exhausted stack
        assert all("go" in frame for frame in caught.value.frames)


def test_a_trap_below_a_host_function_stays_what_it_is(put: Bench) -> None:
    inner = put('(func (export "go") unreachable)').function("go")
    with pytest.raises(Trap, match=r"^unreachable$"):
        put(CALLS, put.host(inner)).function("go")()


def test_memory(put: Bench) -> None:
    instance = put(
        """(memory (export "memory") 0 10) (data (i32.const 0) "")
        (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
        (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))"""
    )
    memory = instance.memory("memory")
    assert len(memory()) == 0
    assert instance.function("grow")(2) == 0
    view = memory()
    assert len(view) == 2 << 16
    view[70000:70004] = struct.pack("<I", 0x12345678)
    assert instance.function("load")(70000) == 0x12345678
    assert instance.function("grow")(7) == 2
    assert len(memory()) == 9 << 16
    view[0] = 9
    assert memory()[0] == 9
    memory()[-1] = 3
    assert instance.function("load")((9 << 16) - 4) == 3 << 24


@pytest.mark.parametrize("kind", ["i64 1", "1 2 shared"])
def test_a_memory_that_may_move_or_is_shared(put: Bench, kind: str) -> None:
    with pytest.raises(ModuleError):
        put(f'(memory (export "memory") {kind})').memory("memory")


def test_everything_crosses_between_instances(put: Bench) -> None:
    first = put(
        """(memory (export "memory") 1 4)
        (table (export "table") 4 funcref)
        (global (export "constant") i32 (i32.const 11))
        (global $g (export "variable") (mut i64) (i64.const 1))
        (func $f (export "function") (result i32) (i32.const 42))
        (func (export "variable?") (result i64) (global.get $g))
        (elem (i32.const 1) $f)"""
    )
    second = put(
        """(import "" "memory" (memory 1))
        (import "" "table" (table 2 funcref))
        (import "" "constant" (global $c i32))
        (import "" "variable" (global $v (mut i64)))
        (import "" "function" (func $f (result i32)))
        (func $own (result i32) (i32.const 43))
        (elem (i32.const 2) $own)
        (data (i32.const 100) "there")
        (func (export "add") (result i32) (i32.add (call $f) (global.get $c)))
        (func (export "set") (global.set $v (i64.const -5)))
        (func (export "call") (param i32) (result i32)
          (call_indirect (result i32) (local.get 0)))
        (export "again" (func $f)) (export "memory again" (memory 0))""",
        *map(first.extern, ("memory", "table", "constant", "variable", "function")),
    )
    assert second.function("add")() == 53
    second.function("set")()
    assert first.function("variable?")() == -5
    assert [second.function("call")(i) for i in (1, 2)] == [42, 43]
    with pytest.raises(Trap):
        second.function("call")(0)
    assert second.function("again")() == 42
    assert bytes(first.memory("memory")()[100:105]) == b"there"
    first.memory("memory")()[100] = 0
    assert second.memory("memory again")()[100] == 0


def test_host_functions_in_a_table(put: Bench) -> None:
    """As wit-component does: the stubs come first, and what they call when all is there."""
    first, second = Recorder(11), Recorder(22)
    stubs = put(
        """(table (export "table") 2 funcref)
        (type $t (func (param i32 f64) (result i32)))
        (func (export "0") (param i32 f64) (result i32)
          (call_indirect (type $t) (local.get 0) (local.get 1) (i32.const 0)))
        (func (export "1") (param i32 f64) (result i32)
          (call_indirect (type $t) (local.get 0) (local.get 1) (i32.const 1)))"""
    )
    main = put(
        """(import "" "0" (func $0 (param i32 f64) (result i32)))
        (import "" "1" (func $1 (param i32 f64) (result i32)))
        (func (export "go") (param i32) (result i32)
          (i32.add
            (call $0 (local.get 0) (f64.const 0.5))
            (call $1 (i32.const 2) (f64.const 3))))""",
        stubs.extern("0"),
        stubs.extern("1"),
    )
    with pytest.raises(Trap):
        main.function("go")(1)
    put(
        """(import "" "0" (func $0 (param i32 f64) (result i32)))
        (import "" "1" (func $1 (param i32 f64) (result i32)))
        (import "" "$imports" (table 2 funcref))
        (elem (i32.const 0) func $0 $1)""",
        put.host(first, "i32 f64", "i32"),
        put.host(second, "i32 f64", "i32"),
        stubs.extern("table"),
    )
    assert main.function("go")(1) == 33
    assert first.seen == [(1, 0.5)]
    assert second.seen == [(2, 3.0)]


def test_the_host_calls_a_host_function(put: Bench) -> None:
    """Its arguments then lie on the heap, not on a stack."""

    def refuse(number: int) -> int:
        if number < 0:
            raise Strange
        return number + 1

    through = put(
        """(import "host" "f" (func $f (param i32) (result i32))) (export "f" (func $f))""",
        put.host(refuse, "i32", "i32"),
    )
    assert through.function("f")(4) == 5
    with pytest.raises(Strange):
        through.function("f")(-4)
    again = put(
        '(import "" "f" (func $f (param i32) (result i32))) (export "g" (func $f))',
        through.extern("f"),
    )
    assert again.function("g")(6) == 7


def test_a_start_function(put: Bench) -> None:
    started = """(import "host" "f" (func $f (param i32)))
        (memory (export "memory") 1)
        (func $start (i32.store (i32.const 8) (i32.const 77)) (call $f (i32.const 5)))
        (start $start)"""
    seen: list[int] = []
    instance = put(started, put.host(seen.append, "i32"))
    assert seen == [5]
    assert instance.memory("memory")()[8] == 77
    error = Strange()

    def raising(_: int) -> None:
        raise error

    with pytest.raises(Strange) as caught:
        put(started, put.host(raising, "i32"))
    assert caught.value is error
    with pytest.raises(Trap, match=r"^unreachable$"):
        put("(func $start unreachable) (start $start)")
    with pytest.raises(Trap, match=r"^out of bounds memory access$"):
        put('(memory 1) (data (i32.const 65535) "two")')


IMPORTS = {
    "function": "(func (param i32) (result i32))",
    "memory": "(memory 1)",
    "small": "(memory 1 1)",
    "table": "(table 1 funcref)",
    "constant": "(global i32)",
    "variable": "(global (mut i32))",
    "wide": "(global i64)",
    "other": "(func (param i64) (result i32))",
}


@pytest.mark.parametrize("wanted", IMPORTS)
def test_what_is_not_of_its_type_is_refused(put: Bench, wanted: str) -> None:
    there = put(
        """(func (export "function") (param i32) (result i32) (i32.const 1))
        (func (export "other") (param i64) (result i32) (i32.const 1))
        (memory (export "memory") 1) (table (export "table") 1 funcref)
        (global (export "constant") i32 (i32.const 0)) (global (export "wide") i64 (i64.const 0))
        (global (export "variable") (mut i32) (i32.const 0))"""
    )
    text = f'(import "here" "it" {IMPORTS[wanted]}) (func (export "ok") (result i32) (i32.const 1))'
    fits = {"small": ()}.get(wanted, (wanted,))
    for name in ("function", "other", "memory", "table", "constant", "wide", "variable"):
        if name in fits:
            assert put(text, there.extern(name)).function("ok")() == 1
            continue
        with pytest.raises(ModuleError) as caught:
            put(text, there.extern(name))
        assert len(str(caught.value).splitlines()) == 1
        assert "it" in str(caught.value)


def test_too_few_imports(put: Bench) -> None:
    with pytest.raises(ModuleError):
        put('(import "here" "it" (func))')


def test_modules_as_components_have_them(put: Bench) -> None:
    """Without exports, and with globals that are computed."""
    put("")
    put('(func) (data "x") (table 0 funcref)')
    base = put('(global (export "base") i32 (i32.const 100))')
    if put.engine.version.startswith("1."):
        return  # which does not know extended constants
    assert (
        put(
            """(import "" "base" (global $base i32)) (memory (export "memory") 1)
            (global $g i32 (i32.add (global.get $base) (i32.const 5)))
            (data (global.get $base) "there")
            (func (export "g") (result i32) (global.get $g))""",
            base.extern("base"),
        ).function("g")()
        == 105
    )


def test_tags(put: Bench) -> None:
    if put.engine.version.startswith("1."):
        pytest.skip("exceptions came later")
    thrower = put(
        """(tag $t (export "t") (param i32))
        (func (export "throw") (param i32) (throw $t (local.get 0)))"""
    )
    catch = put(
        """(import "" "t" (tag $t (param i32)))
        (import "" "throw" (func $throw (param i32)))
        (func (export "catch") (param i32) (result i32)
          (block $caught (result i32)
            (try_table (catch $t $caught) (call $throw (local.get 0)))
            (i32.const -1)))""",
        thrower.extern("t"),
        thrower.extern("throw"),
    ).function("catch")
    assert catch(7) == 7
    with pytest.raises(Trap):
        thrower.function("throw")(1)
    with pytest.raises(ModuleError):
        put('(import "" "t" (tag $t (param i64)))', thrower.extern("t"))


def test_an_exception_of_the_host_is_none_of_the_guests(put: Bench) -> None:
    """What catches all that is thrown does not catch a trap."""
    if put.engine.version.startswith("1."):
        pytest.skip("exceptions came later")

    def raising() -> None:
        raise Strange

    with pytest.raises(Strange):
        put(
            """(import "host" "f" (func $f))
            (func (export "go") (block $all (try_table (catch_all $all) (call $f))))""",
            put.host(raising),
        ).function("go")()


def test_data_of_a_module_that_imports_a_function(put: Bench) -> None:
    """An engine may keep so much data apart from the module."""
    data = bytes(range(1, 251)) * 1200
    text = "".join(f"\\{byte:02x}" for byte in data)
    seen: list[int] = []
    for more, memory in (
        ('(func (export "memory_of_wasi"))', '(export "memory" (memory 0))'),
        (
            "(func $s (call $f (i32.load8_u (i32.const 5000)))) (start $s)",
            '(export "memory" (memory 0))',
        ),
        ("", '(export "other" (memory 0))'),
        ("", '(export "memory" (memory 0)) (export "more" (memory 0))'),
    ):
        instance = put(
            f"""(import "host" "f" (func $f (param i32))) (memory 8)
            (data (i32.const 5000) "{text}")
            (func (export "load") (param i32) (result i32) (i32.load8_u (local.get 0)))
            {more} {memory}""",
            put.host(seen.append, "i32"),
        )
        name = "other" if "other" in memory else "memory"
        view = instance.memory(name)()
        assert bytes(view[5000 : 5000 + len(data)]) == data
        assert view[4999] == view[5000 + len(data)] == 0
        assert instance.function("load")(5001) == 2
    assert seen == [1]


@pytest.mark.parametrize("mapped", [True, False])
def test_a_module_can_be_instantiated_more_than_once(
    put: Bench, tmp_path: Path, *, mapped: bool
) -> None:
    data = "x" * (300 << 10)
    wasm = f'(module (memory (export "memory") 8) (data (i32.const 0) "{data}"))'.encode()
    made = artifact(put.engine, wasm)
    (tmp_path / "artifact").write_bytes(made)
    module = put.engine.load_file(str(tmp_path / "artifact")) if mapped else put.engine.load(made)
    for _ in range(3):
        memory = put.store.instantiate(module, []).memory("memory")()
        assert bytes(memory[: len(data)]) == data.encode()
        memory[0] = 0


COUNT = 4299


def test_thousands_of_exports_and_imports(put: Bench) -> None:
    one = put(
        "".join(
            f'(func (export "function {i}") (result i32) (i32.const {i}))' for i in range(COUNT)
        )
    )
    assert one.function("function 4298")() == COUNT - 1
    names = [f"function {i}" for i in range(COUNT)]
    two = put(
        "".join(f'(import "" "{name}" (func $f{i} (result i32)))' for i, name in enumerate(names))
        + '(func (export "sum") (result i32) (i32.add (call $f0) (call $f4298)))',
        *map(one.extern, names),
    )
    assert two.function("sum")() == COUNT - 1


def test_a_store_leaves_nothing(put: Bench) -> None:
    """An instance for each request must not fill the address space."""
    if put.engine.version.startswith("1."):
        pytest.skip("of what its objects refer to the garbage collector knows nothing")
    wasm = (
        b'(module (import "host" "f" (func $f)) (memory (export "memory") 1)'
        b'(func (export "go") (call $f)))'
    )
    module = put.engine.load(artifact(put.engine, wasm))

    def once() -> None:
        store = put.engine.store()
        instance = store.instantiate(module, [store.function([], [], lambda: None)])
        instance.memory("memory")()[0] = 1
        instance.function("go")()

    def mappings() -> int:
        with open("/proc/self/maps") as file:
            return len(file.readlines())

    counts = []
    for _ in range(3):
        for _ in range(40):
            once()
        gc.collect()
        counts.append(mappings())
    assert counts[2] - counts[1] < 40


def test_a_guest_has_its_stack_whatever_the_process_has(put: Bench) -> None:
    wasm = b"""(module (func $deep (export "deep") (param i32) (result i32)
        (if (result i32) (local.get 0)
          (then (i32.add (call $deep (i32.sub (local.get 0) (i32.const 1))) (i32.const 1)))
          (else (i32.const 0)))))"""
    module = put.engine.load(artifact(put.engine, wasm))

    def run() -> NoReturn:
        deep = put.engine.store().instantiate(module, []).function("deep")
        os.write(1, str(deep(80_000)).encode())
        with pytest.raises(Trap, match=r"^call stack exhausted$"):
            deep(-1)
        os._exit(0)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, resource.RLIM_INFINITY))
        put.engine.with_stack(run)

    assert in_child(work)[:3] == (0, b"80000", b"")
