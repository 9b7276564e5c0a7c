"""The same components under wasmtime's own component model and WASI 0.2: the same output and end.

What differs on purpose is not here: sockets, which wasmtime has to be told to allow, and the
working directory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from wasmtime import component as model

from shim.engines.text import assembled
from tests.shim.component.guests import HELLO, Lowered, Runner, component, saying
from tests.shim.component.test_wasi import CASES
from tests.shim.engines.conftest import Result, in_child

COMPARED = (
    "cli/environment arguments",
    "cli/environment variables",
    "cli/environment directory",
    "cli/stdin",
    "cli/terminal-stdin",
    "cli/terminal-stdout",
    "cli/terminal-stderr",
    "io/poll",
    "filesystem",
    "filesystem, what is not there",
)
EXIT = """(import "wasi:cli/exit@0.2.0" (instance $exit
    (export "exit" (func (param "status" (result))))))"""
EXITS = [Lowered("exit", "$exit", "exit", "(param i32)")]

PROGRAMS = {
    **{
        name: saying(
            CASES[name].body + "(i32.const 0)",
            CASES[name].imports,
            CASES[name].functions,
            core=CASES[name].data,
        )
        for name in COMPARED
    },
    "hello": HELLO,
    "an error": component("(i32.const 1)"),
    "exit, well": component("(call $exit (i32.const 0)) unreachable", [EXIT], EXITS),
    "exit, not well": component("(call $exit (i32.const 1)) unreachable", [EXIT], EXITS),
    "a trap after output": saying(
        "(call $say (i32.const 1024) (i32.const 3)) unreachable",
        core='(data (i32.const 1024) "abc")',
    ),
}
ENV = {"NAME": "value", "OTHER": ""}
ARGS = ("one", "", "two words")


def reference(binary: bytes, directory: Path, stdin: bytes) -> Result:
    """Run a command by wasmtime alone."""

    def run() -> None:
        settings = wasmtime.Config()
        settings.parallel_compilation = False  # its threads would be those of before the fork
        engine = wasmtime.Engine(settings)
        store = wasmtime.Store(engine)
        config = wasmtime.WasiConfig()
        config.argv = ["guest", *ARGS]
        config.env = list(ENV.items())
        config.inherit_stdin()
        config.inherit_stdout()
        config.inherit_stderr()
        config.preopen_dir(str(directory), "/")
        store.set_wasi(config)
        linker = model.Linker(engine)
        linker.add_wasip2()
        loaded = model.Component(engine, binary)
        instance = linker.instantiate(store, loaded)
        (name,) = (name for name in loaded.type.exports(engine) if name.startswith("wasi:cli/run@"))
        place = instance.get_export_index(store, "run", instance.get_export_index(store, name))
        assert place is not None
        function = instance.get_func(store, place)
        assert function is not None
        try:
            result: Any = function(store)
        except wasmtime.ExitTrap as exit_:
            os._exit(exit_.code)
        except (wasmtime.Trap, wasmtime.WasmtimeError):
            os._exit(134)
        os._exit(0 if result.tag == "ok" else 1)

    return in_child(run, stdin)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same(run: Runner, name: str, tmp_path: Path) -> None:
    binary = assembled(PROGRAMS[name].encode(), component=True)
    (tmp_path / "file").write_bytes(b"contents")
    theirs = reference(binary, tmp_path, b"typed")
    env = [f"{variable}={value}".encode() for variable, value in ENV.items()]
    ours = run(binary, *ARGS, env=env, directory=tmp_path, stdin=b"typed")
    assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout), (ours, theirs)
