"""Programs in text form that import WASI 0.2, and how to run them as a guest does, in a child."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from shim.compiler.planner import PLANNER
from shim.component.parts import parts_of
from shim.engines.base import START, Engine, Grants, Preopen
from shim.engines.text import assembled
from shim.guest.component import Component
from tests.shim.engines.conftest import Result, artifact, in_child


class Lowered(NamedTuple):
    """A function that the core module calls `$label`: an instance's, with its core type."""

    label: str
    instance: str
    name: str
    core: str


RUN = '(instance (export "wasi:cli/run@0.2.0") (export "run" (func $run)))'
"""What makes a command of a component."""


def component(
    body: str,
    imports: Iterable[str] = (),
    functions: Iterable[Lowered] = (),
    *,
    core: str = "",
    exports: str = RUN,
    pages: int = 2,
) -> str:
    """Return a component whose `$run` has a core function's body: it leaves 0 for ok, 1 for error.

    Memory up to 65536 is its own, what it is given lies above, until `$reset`. `core` adds fields
    to the module, `exports` are the component's.
    """
    lowered = list(functions)
    kept = '(memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))'
    lines = [
        "(component",
        *imports,
        f"""(core module $Memory
            (memory (export "memory") {pages})
            (global $next (mut i32) (i32.const 65536))
            (func (export "realloc") (param i32 i32 i32 i32) (result i32)
                (global.get $next)
                (global.set $next (i32.and (i32.const -8)
                    (i32.add (i32.const 7) (i32.add (global.get $next) (local.get 3))))))
            (func (export "reset") (global.set $next (i32.const 65536))))
        (core instance $memory (instantiate $Memory))""",
        *(
            f'(core func ${each.label} (canon lower (func {each.instance} "{each.name}") {kept}))'
            for each in lowered
        ),
        """(core module $Main
            (import "host" "memory" (memory 1))
            (import "host" "reset" (func $reset))""",
        *(f'(import "host" "{each.label}" (func ${each.label} {each.core}))' for each in lowered),
        core,
        f'(func (export "run") (result i32) {body}))',
        '(core instance $main (instantiate $Main (with "host" (instance',
        """(export "memory" (memory $memory "memory"))
        (export "reset" (func $memory "reset"))""",
        *(f'(export "{each.label}" (func ${each.label}))' for each in lowered),
        "))))",
        '(func $run (result (result)) (canon lift (core func $main "run")))',
        exports,
        ")",
    ]
    return "\n".join(lines)


ERROR = """(import "wasi:io/error@0.2.0" (instance $error
        (export "error" (type $it (sub resource)))
        (export "[method]error.to-debug-string" (func
            (param "self" (borrow $it)) (result string)))))
    (alias export $error "error" (type $an-error))"""
POLL = """(import "wasi:io/poll@0.2.0" (instance $poll
        (export "pollable" (type $it (sub resource)))
        (export "[method]pollable.ready" (func (param "self" (borrow $it)) (result bool)))
        (export "[method]pollable.block" (func (param "self" (borrow $it))))
        (export "poll" (func (param "in" (list (borrow $it))) (result (list u32))))))
    (alias export $poll "pollable" (type $pollable))"""
STREAMS = """(import "wasi:io/streams@0.2.0" (instance $streams
        (export "input-stream" (type $in (sub resource)))
        (export "output-stream" (type $out (sub resource)))
        (export "error" (type $error (eq $an-error)))
        (type $defined (variant (case "last-operation-failed" (own $error)) (case "closed")))
        (export "stream-error" (type $failed (eq $defined)))
        (export "[method]input-stream.blocking-read" (func
            (param "self" (borrow $in)) (param "len" u64)
            (result (result (list u8) (error $failed)))))
        (export "[method]output-stream.check-write" (func
            (param "self" (borrow $out)) (result (result u64 (error $failed)))))
        (export "[method]output-stream.write" (func
            (param "self" (borrow $out)) (param "contents" (list u8))
            (result (result (error $failed)))))
        (export "[method]output-stream.blocking-write-and-flush" (func
            (param "self" (borrow $out)) (param "contents" (list u8))
            (result (result (error $failed)))))))
    (alias export $streams "input-stream" (type $input))
    (alias export $streams "output-stream" (type $output))"""


def standard(name: str, kind: str) -> str:
    """Return the import of a standard stream."""
    return f"""(import "wasi:cli/{name}@0.2.0" (instance ${name}
        (export "{kind}-stream" (type $it (eq ${kind})))
        (export "get-{name}" (func (result (own $it))))))"""


SAYING = (ERROR, STREAMS, standard("stdout", "output"))
"""What a program imports that says something."""
SAY = (
    Lowered("get-stdout", "$stdout", "get-stdout", "(result i32)"),
    Lowered(
        *("write", "$streams", "[method]output-stream.blocking-write-and-flush"),
        "(param i32 i32 i32 i32)",
    ),
)
SAID = """(func $say (param i32 i32)
    (call $write (call $get-stdout) (local.get 0) (local.get 1) (i32.const 64)))"""
"""`$say` writes memory, from an address on, to standard output."""


def saying(
    body: str, imports: Iterable[str] = (), functions: Iterable[Lowered] = (), **more: Any
) -> str:
    """Return a component that can say something, besides."""
    core = SAID + more.pop("core", "")
    return component(body, [*SAYING, *imports], [*SAY, *functions], core=core, **more)


HELLO = saying(
    "(call $say (i32.const 1024) (i32.const 6)) (i32.const 0)",
    core='(data (i32.const 1024) "hello\\n")',
)


class Runner:
    """Runs components under one engine, each in a child that can import nothing any more."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def load(self, text: str | bytes) -> Component:
        """Compile and load. Raises ModuleError."""
        wasm = assembled(text.encode() if isinstance(text, str) else text, component=True)
        kept = PLANNER.compile(wasm)
        codes = [wasm[part.offset :][: part.length] for part in parts_of(kept)]
        modules = [self.engine.load(artifact(self.engine, code)) for code in codes]
        return Component(kept, modules, self.engine)

    def __call__(
        self,
        text: str | bytes,
        *args: str,
        env: Sequence[bytes] = (),
        directory: Path | None = None,
        stdin: bytes = b"",
        function: str = START,
        before: Callable[[], object] = lambda: None,
    ) -> Result:
        """Run to the end; `directory` is the one preopen, as `/`."""
        loaded = self.load(text)
        loaded.check(function)

        def run() -> NoReturn:
            before()
            sys.meta_path.clear()
            sys.path_hooks.clear()
            preopens = []
            if directory is not None:
                preopens.append(Preopen("/", os.open(directory, os.O_PATH | os.O_DIRECTORY)))
            loaded.run(Grants([b"guest", *map(os.fsencode, args)], env, preopens), function)

        return in_child(run, stdin)
