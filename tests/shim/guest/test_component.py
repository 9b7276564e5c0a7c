"""A component as a program: what is run of it, how it ends, and what is said if it cannot be."""

from __future__ import annotations

import fcntl
import os
import subprocess

import pytest

from shim import engines
from shim.engines.base import ModuleError
from tests.installed import ENGINES
from tests.shim.component.guests import (
    HELLO,
    POLL,
    SAYING,
    Lowered,
    Runner,
    component,
    standard,
)

F_SETPIPE_SZ = 1031  # linux/fcntl.h
NOTHING = "(i32.const 0)"
EXIT = """(import "wasi:cli/exit@0.2.0" (instance $exit
    (export "exit" (func (param "status" (result))))
    (export "exit-with-code" (func (param "status-code" u8)))))"""
WRITES = [
    Lowered("get-stdout", "$stdout", "get-stdout", "(result i32)"),
    Lowered("check", "$streams", "[method]output-stream.check-write", "(param i32 i32)"),
    Lowered("write", "$streams", "[method]output-stream.write", "(param i32 i32 i32 i32)"),
]
WRITE = """(global.set $out (call $get-stdout))
    (call $check (global.get $out) (i32.const 64))
    (call $write (global.get $out) (i32.const 0) (i32.const 65536) (i32.const 64))"""
"""Writes 64 KiB, and does not wait until they are written."""


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest) -> Runner:
    """A runner for each engine there is."""
    return Runner(engines.select(request.param))


def refusal(run: Runner, text: str, function: str = "_start") -> str:
    """Return why something is not run."""
    with pytest.raises(ModuleError) as caught:
        run.load(text).check(function)
    return str(caught.value)


def test_hello(run: Runner) -> None:
    assert run(HELLO)[:3] == (0, b"hello\n", b"")


def test_the_error_of_run(run: Runner) -> None:
    assert run(component("(i32.const 1)"))[:3] == (1, b"", b"")


@pytest.mark.parametrize(
    ("function", "argument", "status"),
    [("exit", 0, 0), ("exit", 1, 1), ("exit-with-code", 0, 0), ("exit-with-code", 42, 42)],
)
def test_exit(run: Runner, function: str, argument: int, status: int) -> None:
    exit_ = Lowered("exit", "$exit", function, "(param i32)")
    text = component(f"(call $exit (i32.const {argument})) unreachable", [EXIT], [exit_])
    assert run(text)[:3] == (status, b"", b"")


def test_a_trap(run: Runner) -> None:
    text = component(
        "(call $outer) (i32.const 0)",
        core="(func $inner unreachable) (func $outer (call $inner))",
    )
    status, stdout, stderr, _ = run(text)
    first, trace, *frames = stderr.decode().splitlines()
    assert (status, stdout, first, trace) == (
        *(134, b""),
        "pywasm: wasm trap: unreachable",
        "wasm backtrace:",
    )
    assert [frame.split()[1] for frame in frames][:2] == ["inner", "outer"]


def test_a_trap_of_the_hosts(run: Runner) -> None:
    poll = Lowered("poll", "$poll", "poll", "(param i32 i32 i32)")
    text = component(
        "(call $poll (i32.const 0) (i32.const 0) (i32.const 64)) (i32.const 0)", [POLL], [poll]
    )
    status, stdout, stderr, _ = run(text)
    assert (status, stdout) == (134, b"")
    assert stderr.splitlines()[0] == b"pywasm: wasm trap: there is nothing to wait for"


@pytest.mark.parametrize(
    ("end", "status"), [(NOTHING, 0), ("(i32.const 1)", 1), ("unreachable", 134)]
)
def test_nothing_written_is_lost_in_the_end(run: Runner, end: str, status: int) -> None:
    """A pipe that is nearly full takes it when somebody reads."""
    reader, writer = os.pipe()
    heard, telling = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    # Reads what was written when it hears that all is.
    script = f"head -c 1 </proc/self/fd/{heard} >/dev/null; exec cat"
    with subprocess.Popen(
        ["sh", "-c", script],
        stdin=reader,
        stdout=subprocess.PIPE,
        pass_fds=[heard],
    ) as later:
        os.close(reader)
        os.close(heard)
        telling_all = [
            Lowered("get-stderr", "$stderr", "get-stderr", "(result i32)"),
            Lowered(
                *("tell", "$streams", "[method]output-stream.blocking-write-and-flush"),
                "(param i32 i32 i32 i32)",
            ),
        ]
        text = component(
            f"""{WRITE}
            (call $tell (call $get-stderr) (i32.const 0) (i32.const 1) (i32.const 64)) {end}""",
            [*SAYING, standard("stderr", "output")],
            [*WRITES, *telling_all],
            core="(global $out (mut i32) (i32.const 0))",
        )

        def before() -> None:
            os.dup2(writer, 1)
            os.dup2(telling, 2)

        ended = run(text, before=before)
        os.close(writer)
        os.close(telling)
        arrived, _ = later.communicate()
    assert (ended.status, len(arrived)) == (status, 65536)


def test_the_newest_run_is_run(run: Runner) -> None:
    """Who has an older one besides has it trap."""
    text = component(
        NOTHING,
        core='(func (export "old") (result i32) unreachable)',
        exports="""
        (func $old (result (result)) (canon lift (core func $main "old")))
        (instance (export "wasi:cli/run@0.2.10") (export "run" (func $run)))
        (instance (export "wasi:cli/run@0.2.9") (export "run" (func $old)))""",
    )
    assert run(text).status == 0


FUNCTIONS = component(
    NOTHING,
    exports="""
    (func $takes (param "a" u32) (result u32) (canon lift (core func $main "takes")))
    (export "plain" (func $run))
    (export "takes" (func $takes))
    (instance (export "ns:pkg/iface@1.2.3") (export "func" (func $run)))""",
    core='(func (export "takes") (param i32) (result i32) (local.get 0))',
)


@pytest.mark.parametrize("function", ["plain", "ns:pkg/iface@1.2.3/func"])
def test_other_functions(run: Runner, function: str) -> None:
    assert run(FUNCTIONS, function=function).status == 0


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            "_start",
            "the component does not export `wasi:cli/run`, so it is no command; it exports"
            " `plain`, `takes`, `ns:pkg/iface@1.2.3`."
            " Append `#` and a function's name to run that",
        ),
        (
            "nothing",
            "the component exports no function `nothing`; it exports"
            " `plain`, `takes`, `ns:pkg/iface@1.2.3`",
        ),
        ("ns:pkg/iface@1.2.3/nothing", "exports no function `ns:pkg/iface@1.2.3/nothing`"),
        ("ns:pkg/iface@1.2.3", "exports no function `ns:pkg/iface@1.2.3`"),
        ("takes", "export `takes` must not take parameters"),
    ],
)
def test_what_is_no_function_to_run(run: Runner, function: str, reason: str) -> None:
    assert reason in refusal(run, FUNCTIONS, function)


@pytest.mark.parametrize(
    ("name", "items", "reason"),
    [
        ("wasi:cli/nope@0.2.0", "", "unknown import `wasi:cli/nope@0.2.0`"),
        (
            "wasi:cli/environment@0.4.0",
            '(export "get-arguments" (func (result (list string))))',
            "unknown import `wasi:cli/environment@0.4.0`",
        ),
        (
            "wasi:cli/environment@0.2.6",
            '(export "get-nothing" (func (result string)))',
            "unknown import `wasi:cli/environment@0.2.6`, function `get-nothing`: nobody",
        ),
        (
            "wasi:cli/environment@0.2.6",
            '(export "get-arguments" (func (result (list u8))))',
            "`get-arguments`",
        ),
        (
            "wasi:cli/exit@0.2.0",
            '(export "exit" (func (param "code" (result))))',
            "`exit`",
        ),
    ],
)
def test_what_nobody_provides(run: Runner, name: str, items: str, reason: str) -> None:
    text = component(NOTHING, [f'(import "{name}" (instance {items}))'])
    found = refusal(run, text)
    assert name in found
    assert reason in found
