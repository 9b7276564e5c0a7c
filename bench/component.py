"""`scripts/bench component`: what components cost, beside modules that do the same.

Starts are of `ctr run`. Calls are timed in a fork that has everything imported, as a guest process
has: the guests, `bench/components/*.wat`, do nothing else a given number of times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import wasmtime
from wasmtime import component as wasmtime_component

from bench.lab import IMAGE, NATIVE, WASM, Kind, containerd_with, timed
from bench.spread import Compared, Spread, compare, plus_minus, show, spread
from shim.compiler.planner import PLANNER
from shim.component.linker import Linker, call
from shim.component.parts import parts_of, plan_of
from shim.engines import engines
from shim.engines.base import Engine
from shim.engines.text import assembled
from shim.wasi import preview1
from shim.wasi.preview1.program import Program as Preview1
from shim.wasi.program import Program
from shim.wasi.registry import REGISTRY
from tests.guests.build import build
from tests.integration import images

SOURCES: Final = Path(__file__).parent / "components"
COMPONENT: Final = Kind("component", WASM.runtime, ".component.wasm")
ITS_OWN: Final = "wasmtime's own 0.2"

_BLOCK: Final = 65536
_BYTES: Final = (5000, 1)  # how often, and how much
_BLOCKS: Final = (500, _BLOCK)
_CALLS: Final = 2000

Timed = Callable[[], float]
"""Returns µs of a call."""


def measure(turns: int, rounds: int) -> dict[str, Any]:
    """Return ms of starts, and µs of each call by what makes it, all in turns."""
    return {"component": {"starts": _starts(turns), "calls": _calls(rounds)}}


def _starts(turns: int) -> Compared:
    files = {
        WASM.program("hello"): images.File(build("hello").read_bytes()),
        NATIVE.program("hello"): images.File(build("hello", native=True).read_bytes(), 0o755),
        COMPONENT.program("hello"): images.File(_binary("writes_p2")),
    }
    kinds = (WASM, COMPONENT, NATIVE)
    ms: dict[str, list[float]] = {kind.title: [] for kind in kinds}
    image = images.build(IMAGE, files, entrypoint=[WASM.program("hello")])
    with containerd_with(image) as daemon:
        for number in range(turns + 2):
            for kind in kinds if number % 2 else reversed(kinds):
                seconds, _ = timed(daemon, kind, "hello")
                if number >= 2:  # the first two warm up
                    ms[kind.title].append(1000 * seconds)
    return compare(ms, "ms", WASM.title)


def _calls(rounds: int) -> dict[str, dict[str, Spread]]:
    """Take turns within each round, in one child each, which has made everything before."""
    samples: dict[str, dict[str, list[float]]] = {}
    makers: dict[str, Callable[[], dict[str, Timed]]] = {
        engine.name: lambda engine=engine: _under(engine)  # type: ignore[misc]
        for engine in engines()
    }
    makers[ITS_OWN] = _under_its_own
    for number in range(rounds):
        for name in list(makers) if number % 2 else reversed(makers):
            for what, microseconds in _in_a_child(makers[name]).items():
                samples.setdefault(what, {}).setdefault(name, []).append(microseconds)
    return {
        what: {name: spread(values) for name, values in by_name.items()}
        for what, by_name in samples.items()
    }


def _in_a_child(make: Callable[[], dict[str, Timed]]) -> dict[str, float]:
    """Time each once to warm it up, and once more."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.memfd_create("written"), 1)
            found = {}
            for what, run in make().items():
                run()
                os.ftruncate(1, 0)
                os.lseek(1, 0, os.SEEK_SET)
                found[what] = run()
            os.write(writer, msgspec.json.encode(found))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"the guest ended with {os.waitstatus_to_exitcode(status)}")
    return msgspec.json.decode(data, type=dict[str, float])


def _under(engine: Engine) -> dict[str, Timed]:
    def linked(name: str) -> Callable[..., Any]:
        wasm = _binary(name)
        kept = PLANNER.compile(wasm)
        parts = parts_of(kept)
        modules = [
            engine.load(engine.compile(wasm[part.offset : part.offset + part.length]))
            for part in parts
        ]
        program = Program()
        program.grant([], [], [])
        linker = Linker(plan_of(kept), modules, engine.store(), REGISTRY, program, program.reactor)
        exports: Any = linker.link()
        (name,) = [name for name in exports if not name.startswith("wasi:")]
        return lambda *arguments: call(linker.runtime, exports[name], *arguments)

    second, third, calls = linked("writes_p2"), linked("writes_p3"), linked("calls")
    first, store = Preview1(), engine.store()
    first.grant([], [], [])
    bound = preview1.provide(first)[preview1.MODULE, "fd_write"]
    module = engine.load(engine.compile((SOURCES / "writes_p1.wat").read_bytes()))
    write = store.function(bound.params, bound.results, bound.call)
    instance = store.instantiate(module, [write])
    first.memory.attach(instance.memory("memory"))
    writes = instance.function("writes")
    return {
        f"{size}, {title}": _timed(run, *times_and_bytes)
        for size, times_and_bytes in (("1 byte", _BYTES), ("64 KiB", _BLOCKS))
        for title, run in (("fd_write", writes), ("0.2", second), ("0.3", third))
    } | {"call with 1 KiB of text": _timed(calls, _CALLS)}


def _under_its_own() -> dict[str, Timed]:
    """0.2 by wasmtime's component API and WASI, which is what to compare ours with."""
    engine = wasmtime.Engine()
    store, linker = wasmtime.Store(engine), wasmtime_component.Linker(engine)
    config = wasmtime.WasiConfig()
    config.inherit_stdout()
    store.set_wasi(config)
    linker.add_wasip2()
    made = wasmtime_component.Component(engine, _binary("writes_p2"))
    writes = linker.instantiate(store, made).get_func(store, "writes")
    assert writes is not None

    def run(times: int, size: int) -> None:
        writes(store, times, size)
        writes.post_return(store)

    # A block would be too much for it: 4 KiB is the most that it writes by one call.
    return {"1 byte, 0.2": _timed(run, *_BYTES)}


def _timed(run: Callable[..., Any], times: int, *more: int) -> Timed:
    def timed_() -> float:
        begin = time.perf_counter()
        run(times, *more)
        return 1e6 * (time.perf_counter() - begin) / times

    return timed_


def _binary(name: str) -> bytes:
    return assembled((SOURCES / f"{name}.wat").read_bytes(), component=True)


def print_found(result: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what `measure` found."""
    found = result["component"]
    print("ctr run --rm hello")
    show(found["starts"])
    names = list(dict.fromkeys(name for row in found["calls"].values() for name in row))
    print("\nµs of one call, medians, ± half of what lies between the quartiles")
    print(f"{'':28}" + "".join(f"{name:>22}" for name in names))
    for what, row in found["calls"].items():
        cells = (f"{row[n]['p50']:.2f} {plus_minus(row[n])}" if n in row else "" for n in names)
        print(f"{what:28}" + "".join(f"{cell:>22}" for cell in cells))
