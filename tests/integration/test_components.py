"""Components wherever modules run: `ctr` and the real containerd, on each engine."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from shim.engines.text import assembled
from tests.guests.build import build
from tests.installed import ENGINES
from tests.integration import images
from tests.integration.client import Client
from tests.integration.containerd import PYWASM, Containerd, Result, eventually, parent_of
from tests.integration.test_bad_input import one_line
from tests.integration.test_control import cpu_time, pid_of
from tests.integration.test_terminal import Person
from tests.shim.component.guests import (
    ERROR,
    HELLO,
    POLL,
    Lowered,
    component,
    saying,
    standard,
)
from tests.shim.component.test_hostile import components_in_components, wide_modules
from tests.shim.component.test_wasi import FILES, MONOTONIC, NETWORK, PREOPENS, sockets, terminal

IMAGE = "localhost/components:1"

READ = [
    Lowered("get-stdin", "$stdin", "get-stdin", "(result i32)"),
    Lowered(
        *("read", "$streams", "[method]input-stream.blocking-read"),
        "(param i32 i64 i32)",
    ),
]
COPY = """(local.set $in (call $get-stdin))
    (loop $more
        (call $reset)
        (call $read (local.get $in) (i64.const 50000) (i32.const 1024))
        (if (i32.load8_u (i32.const 1024)) (then (return (i32.const 0))))
        (call $say (i32.load (i32.const 1028)) (i32.load (i32.const 1032)))
        (br $more))
    unreachable"""
CAT = saying(f"(local $in i32) {COPY}", [standard("stdin", "input")], READ)
TERMINAL = saying(
    f"""(local $in i32)
    (call $ask (i32.const 1024))
    (if (i32.load8_u (i32.const 1024)) (then (call $say (i32.const 2048) (i32.const 14))))
    {COPY}""",
    [standard("stdin", "input"), *terminal("stdin", "input")],
    [*READ, Lowered("ask", "$asked", "get-terminal-stdin", "(param i32)")],
    core='(data (i32.const 2048) "at a terminal\\n")',
)
WITH_CODE = """(import "wasi:cli/exit@0.2.0" (instance $exit
    (export "exit-with-code" (func (param "status-code" u8)))))"""
EXITS = Lowered("exit", "$exit", "exit-with-code", "(param i32)")
EXIT = component("(call $exit (i32.const 42)) unreachable", [WITH_CODE], [EXITS])
CONNECTS = component(
    "(call $create (i32.const 0) (i32.const 1024)) (i32.load8_u (i32.const 1024))",
    [ERROR, POLL, NETWORK, sockets("tcp", "is-listening", "bool")],
    [Lowered("create", "$creating", "create-tcp-socket", "(param i32 i32)")],
)
CREATES = component(
    """(call $directories (i32.const 1024))
    (call $open (i32.load (i32.load (i32.const 1024))) (i32.const 0) (i32.const 2048)
        (i32.const 4) (i32.const 1) (i32.const 2) (i32.const 1024))
    (if (i32.load8_u (i32.const 1024)) (then (call $exit (i32.load8_u (i32.const 1028)))))
    (i32.const 0)""",
    [FILES, PREOPENS, WITH_CODE],
    [
        Lowered("directories", "$preopens", "get-directories", "(param i32)"),
        Lowered(
            *("open", "$files", "[method]descriptor.open-at"),
            "(param i32 i32 i32 i32 i32 i32 i32)",
        ),
        EXITS,
    ],
    core='(data (i32.const 2048) "made")',
)
READ_ONLY = 33  # its place among the error codes of wasi:filesystem
WAITS = component(
    "(call $block (call $later (i64.const 3600000000000))) (i32.const 0)",
    [POLL, MONOTONIC],
    [
        Lowered("later", "$monotonic", "subscribe-duration", "(param i64) (result i32)"),
        Lowered("block", "$poll", "[method]pollable.block", "(param i32)"),
    ],
)
SPINS = component("(loop (br 0)) unreachable")
GROWS = component("(i32.eq (memory.grow (i32.const 100)) (i32.const -1))")
IMPORTS = component("(i32.const 0)", ['(import "wasi:keyvalue/store@0.2.0" (instance))'])

TEXTS = {
    "hello": HELLO,
    "cat": CAT,
    "terminal": TERMINAL,
    "exit": EXIT,
    "connects": CONNECTS,
    "creates": CREATES,
    "waits": WAITS,
    "spins": SPINS,
    "grows": GROWS,
    "traps": component("unreachable"),
}
BAD = {
    "truncated.wasm": assembled(HELLO.encode(), component=True)[:-20],
    "text.wat": b"(component (core module",
    "imports.wat": IMPORTS.encode(),
    "nested.wasm": components_in_components(10_000),
    "wide.wasm": wide_modules(),
    "version.wasm": b"\0asm\x0e\0\1\0",
}


@pytest.fixture(scope="module", autouse=True)
def _image(containerd: Containerd) -> None:
    files = {f"{name}.wat": images.File(text.encode()) for name, text in TEXTS.items()}
    files |= {f"bad/{name}": images.File(data) for name, data in BAD.items()}
    files["hello.wasm"] = images.File(assembled(HELLO.encode(), component=True))
    files["module.wasm"] = images.File(build("hello").read_bytes())
    files["idle.wasm"] = images.File(build("idle").read_bytes())
    containerd.load(images.build(IMAGE, files, entrypoint=["/hello.wasm"]).tar)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Options that demand an engine."""
    return "--annotation", f"dev.pywasm.engine={request.param}"


@pytest.fixture
def running(
    request: pytest.FixtureRequest, containerd: Containerd, engine: tuple[str, str]
) -> Iterator[str]:
    """A container with the program that a test names, or one that waits."""
    program = getattr(request, "param", "waits")
    name = containerd.run_detached(PYWASM, IMAGE, f"/{program}.wat", options=engine)
    yield name
    containerd.remove(name)


@pytest.mark.parametrize(
    "program", ["/hello.wasm", "/hello.wat", "/hello.wasm#wasi:cli/run@0.2.0/run"]
)
def test_run(containerd: Containerd, engine: tuple[str, str], program: str) -> None:
    for _ in ("compiled", "from the cache"):
        done = containerd.run(PYWASM, IMAGE, program, options=engine)
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


def test_ends(containerd: Containerd, engine: tuple[str, str]) -> None:
    assert containerd.run(PYWASM, IMAGE, "/exit.wat", options=engine).returncode == 42
    done = containerd.run(PYWASM, IMAGE, "/traps.wat", options=engine)
    assert (done.returncode, done.stdout) == (134, "")
    assert done.stderr.startswith("pywasm: wasm trap: unreachable\nwasm backtrace:\n")


def test_streams(containerd: Containerd, engine: tuple[str, str]) -> None:
    text = "".join(f"{number}\n" for number in range(150_000))
    done = containerd.run(PYWASM, IMAGE, "/cat.wat", options=engine, input=text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == text


def test_exec(containerd: Containerd, running: str) -> None:
    options = ["task", "exec", "--exec-id", "e", running]
    for program, said in (("/hello.wat", "hello\n"), ("/module.wasm", "hello from pywasm\n")):
        done = containerd.ctr(*options, program)
        assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert containerd.ctr(*options, "/exit.wat").returncode == 42
    assert containerd.ctr(*options, "/cat.wat", input="typed").stdout == "typed"


def test_exec_in_a_module_s_container(containerd: Containerd) -> None:
    name = containerd.run_detached(PYWASM, IMAGE, "/idle.wasm")
    try:
        done = containerd.ctr("task", "exec", "--exec-id", "e", name, "/hello.wat")
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    finally:
        containerd.remove(name)


def test_at_a_terminal(containerd: Containerd, engine: tuple[str, str]) -> None:
    name = containerd.new_name()
    options = [*containerd.run_options(PYWASM), "-t", "--rm", *engine]
    person = Person(containerd, *options, IMAGE, name, "/terminal.wat")
    try:
        person.see(b"at a terminal\n")
        person.type(b"one\r")
        person.see(b"one\none\n")
        person.type(b"\4")
        person.see_all()
        assert person.ctr.wait(20) == 0
    finally:
        person.leave()
        containerd.remove(name)


@pytest.mark.parametrize("running", ["waits", "spins"], indirect=True)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal(client: Client, containerd: Containerd, running: str, signum: int) -> None:
    client.kill(running, signum)
    assert client.wait(running) == 128 + signum


@pytest.mark.parametrize("running", ["spins"], indirect=True)
def test_pause_and_resume(containerd: Containerd, running: str) -> None:
    pid = pid_of(containerd, running)
    containerd.checked("task", "pause", running)
    before = cpu_time(pid)
    time.sleep(0.1)
    assert cpu_time(pid) == before
    containerd.checked("task", "resume", running)
    eventually(lambda: cpu_time(pid) > before)


@pytest.mark.parametrize("program", ["waits", "spins"])
def test_a_limit_of_time(containerd: Containerd, engine: tuple[str, str], program: str) -> None:
    options = (*engine, "--annotation", "dev.pywasm.time-limit=300ms")
    done = containerd.run(PYWASM, IMAGE, f"/{program}.wat", options=options)
    assert done.returncode == 137
    assert "exceeded its time limit" in done.stderr


def test_a_limit_of_memory(containerd: Containerd, engine: tuple[str, str]) -> None:
    """Of each memory; the program's begins with two pages, and wants a hundred more."""

    def limited(pages: int) -> Result:
        options = (*engine, "--annotation", f"dev.pywasm.memory-pages={pages}")
        return containerd.run(PYWASM, IMAGE, "/grows.wat", options=options)

    assert limited(102).returncode == 0
    assert limited(101).returncode == 1
    assert "memory" in one_line(limited(1))


def test_the_network_may_be_off(containerd: Containerd, engine: tuple[str, str]) -> None:
    for annotation, status in (("on", 0), ("off", 1)):
        options = (*engine, "--annotation", f"dev.pywasm.network={annotation}")
        done = containerd.run(PYWASM, IMAGE, "/connects.wat", options=options)
        assert done.returncode == status


def test_what_may_only_be_read(containerd: Containerd, engine: tuple[str, str]) -> None:
    for options, status in ((engine, 0), ((*engine, "--read-only"), READ_ONLY)):
        done = containerd.run(PYWASM, IMAGE, "/creates.wat", options=options)
        assert done.returncode == status


def test_a_pod(client: Client, containerd: Containerd) -> None:
    """A component beside a module: one shim."""
    options = ("--annotation", "io.kubernetes.cri.sandbox-id=pod-of-components")
    programs = ("/waits.wat", "/idle.wasm")
    names = [containerd.run_detached(PYWASM, IMAGE, each, options=options) for each in programs]
    try:
        assert len({parent_of(pid_of(containerd, name)) for name in names}) == 1
        for name in names:
            client.kill(name, signal.SIGTERM)
            assert client.wait(name) == 128 + signal.SIGTERM
    finally:
        for name in names:
            containerd.remove(name)


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("truncated.wasm", "invalid component: "),
        ("text.wat", "invalid wasm text: 1:"),
        ("imports.wat", "unknown import `wasi:keyvalue/store@0.2.0`"),
        ("nested.wasm", "nested deeper than 32 levels"),
        ("wide.wasm", "its types are too much to compare"),
        ("version.wasm", "version"),
    ],
)
def test_what_cannot_run_says_why(containerd: Containerd, name: str, culprit: str) -> None:
    for _ in range(2):
        reason = one_line(containerd.run(PYWASM, IMAGE, f"/bad/{name}"))
        assert f"/bad/{name}: " in reason
        assert culprit in reason
