"""That a guest cannot tell the engines apart: the same module, the same grants, the same end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim import engines
from shim.wasi import preview1
from shim.wasi.preview1.program import Program
from tests.installed import ENGINES

from .conftest import Result, Runner

ROFS = 69
SIGNATURES = {
    name: f"(param {' '.join(bound.params)}) {'(result i32)' if bound.results else ''}"
    for name, bound in preview1.bind(Program()).items()
}


def guest(body: str, *calls: str, more: str = "", memory: str = "20") -> bytes:
    """Return a module in text, whose `_start` does `body` with the functions in `calls`."""
    imports = "".join(
        f'(import "wasi_snapshot_preview1" "{name}" (func ${name} {SIGNATURES[name]}))'
        for name in {*calls, "proc_exit"}
    )
    return f"""(module {imports} (memory (export "memory") {memory})
        (data (i32.const 1024) "file new sub link abc") {more}
        (func (export "_start") {body}))""".encode()


def asking(call: str, *arguments: str | int) -> bytes:
    """Return a module that ends with the error number of a call; i32 arguments may be numbers."""
    given = " ".join(f"(i32.const {a})" if isinstance(a, int) else a for a in arguments)
    return guest(f"(call $proc_exit (call ${call} {given}))", call)


def printing(body: str, size: int, *calls: str) -> bytes:
    """Return a module that does `body` and writes the first `size` bytes of its memory out."""
    writing = f"""(i64.store (i32.const 60000) (i64.const {size << 32}))
        (drop (call $fd_write (i32.const 1) (i32.const 60000) (i32.const 1) (i32.const 60008)))"""
    return guest(body + writing, "fd_write", *calls)


def every(run: Callable[[Runner], Result]) -> Result:
    """Run under all engines, and return what they agree on."""
    results = {name: run(Runner(engines.select(name)))._replace(max_rss=0) for name in ENGINES}
    assert len(set(results.values())) == 1, results
    return results[ENGINES[0]]


@pytest.mark.parametrize("status", [0, 1, 126, 134, 255, 257, -1])
def test_exit_status(status: int) -> None:
    wasm = guest(f"(call $proc_exit (i32.const {status}))")
    assert every(lambda run: run(wasm)) == (status & 0xFF, b"", b"", 0)


@pytest.mark.parametrize(
    ("reason", "body", "more"),
    [
        ("unreachable", "unreachable", ""),
        ("integer divide by zero", "(drop (i32.div_s (i32.const 1) (i32.const 0)))", ""),
        ("integer divide by zero", "(drop (i64.rem_u (i64.const 1) (i64.const 0)))", ""),
        ("integer overflow", "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))", ""),
        ("integer overflow", "(drop (i32.trunc_f32_s (f32.const 1e30)))", ""),
        ("invalid conversion to integer", "(drop (i32.trunc_f32_s (f32.const nan)))", ""),
        ("out of bounds memory access", "(drop (i32.load (i32.const -1)))", ""),
        ("out of bounds memory access", "(i64.store (i32.const 1310719) (i64.const 1))", ""),
        (
            "out of bounds memory access",
            "(memory.fill (i32.const -1) (i32.const 1) (i32.const 9))",
            "",
        ),
        ("uninitialized element", "(call_indirect (i32.const 0))", "(table 2 funcref)"),
        (
            "indirect call type mismatch",
            "(call_indirect (param i32) (i32.const 1) (i32.const 0))",
            "(table 2 funcref) (elem (i32.const 0) $f) (func $f)",
        ),
        (
            "undefined element: out of bounds table access",
            "(call_indirect (i32.const 9))",
            "(table 2 funcref)",
        ),
        ("unreachable", "nop", "(start $f) (func $f unreachable)"),
        ("out of bounds memory access", "nop", '(data (i32.const 1310720) "x")'),
    ],
)
def test_traps(reason: str, body: str, more: str) -> None:
    result = every(lambda run: run(guest(body, more=more)))
    assert result.status == 134
    assert result.stderr.startswith(b"pywasm: wasm trap: " + reason.encode() + b"\n")


def test_stack_overflow() -> None:
    wasm = guest("(call $f)", more="(func $f (call $f))")

    def lines(run: Runner) -> Result:  # what frames there are is the engine's affair
        result = run(wasm)
        return result._replace(stderr=result.stderr.splitlines(keepends=True)[0])

    result = every(lines)
    assert result[:3] == (134, b"", b"pywasm: wasm trap: call stack exhausted\n")


def test_an_exception_that_nobody_catches() -> None:
    wasm = guest("(throw $t)", more="(tag $t)")
    result = Runner(engines.select("wasmtime"))(wasm)
    assert result.status == 134
    assert result.stderr.startswith(b"pywasm: wasm trap: thrown Wasm exception\n")


def test_a_memory_that_there_is_no_room_for() -> None:
    def first_words(run: Runner) -> Result:
        result = run(guest("nop", memory="65536"), memory=1 << 30)
        assert result.stderr.count(b"\n") == 1
        return result._replace(stderr=result.stderr.rpartition(b"instantiated: ")[0])

    result = every(first_words)
    assert result[:3] == (134, b"", b"pywasm: the module cannot be ")


@pytest.mark.parametrize("ending", ["", "(call $proc_exit (i32.const 2))", "unreachable"])
def test_last_words_without_a_newline(ending: str) -> None:
    body = """(i64.store (i32.const 0) (i64.const 0x3_0000_0412))
        (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))"""
    result = every(lambda run: run(guest(body + ending, "fd_write")))
    assert result.stdout == b"abc"


@pytest.mark.parametrize("size", [0, 1, 256, 257, 1 << 20])
def test_random_of_any_size(size: int) -> None:
    assert every(lambda run: run(asking("random_get", 8, size))).status == 0


def pipe(name: Path) -> int:
    reader, writer = os.pipe()
    os.write(writer, b"hello")
    os.close(writer)
    return reader


def fifo(name: Path) -> int:
    os.mkfifo(name)
    fd = os.open(name, os.O_RDWR)
    os.unlink(name)
    os.write(fd, b"hello")
    return fd


@pytest.mark.parametrize("make", [pipe, fifo])
def test_a_stream_as_stdin(make: Callable[[Path], int], tmp_path: Path) -> None:
    def run_with(wasm: bytes) -> Result:
        def run(run: Runner) -> Result:
            return run(wasm, before=lambda: os.dup2(make(tmp_path / "fifo"), 0))

        return every(run)

    body = """(i64.store (i32.const 0) (i64.const 0x64_0000_0010))
        (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))"""
    result = run_with(printing(body, 24, "fd_read"))
    assert result.stdout[8:] == b"\5\0\0\0\0\0\0\0hello\0\0\0"
    assert run_with(asking("fd_seek", 0, "(i64.const 0)", 0, 0)).status == 70  # ESPIPE
    assert run_with(asking("fd_write", 0, 0, 0, 0)).status == 8  # EBADF
    body = "(call $proc_exit (i32.load8_u (i32.const 0)))"
    kind = guest("(drop (call $fd_fdstat_get (i32.const 0) (i32.const 0)))" + body, "fd_fdstat_get")
    assert run_with(kind).status == 0  # unknown


ENVIRONMENTS: list[list[bytes]] = [
    [],
    [b"A=1", b"EMPTY=", b"TWO=a=b", b"A=2", "Ü=ö".encode()],
    [b"NO_SIGN", b"=NO_NAME", b"", b"X=\xff\xfe"],
]


@pytest.mark.parametrize("env", ENVIRONMENTS)
@pytest.mark.parametrize("args", [[], ["a", "", "ü \n"], [b"\xff\xfe"]])
def test_bytes_of_arguments_and_environment(env: list[bytes], args: list[str | bytes]) -> None:
    for kind in ("args", "environ"):
        body = f"""(drop (call ${kind}_sizes_get (i32.const 0) (i32.const 4)))
            (drop (call ${kind}_get (i32.const 8) (i32.const 100)))"""
        wasm = printing(body, 200, f"{kind}_sizes_get", f"{kind}_get")
        strings = [b"guest", *map(os.fsencode, args)] if kind == "args" else env
        result = every(lambda run, wasm=wasm: run(wasm, *args, env=env))  # type: ignore[misc]
        assert result.stdout[0] == len(strings)
        assert result.stdout[100:].startswith(b"".join(text + b"\0" for text in strings))


RW = "(i64.const 0x42)"  # FD_READ, FD_WRITE
NONE = "(i64.const 0)"
FILE, NEW, SUB = (1024, 4), (1029, 3), (1033, 3)

CHANGES: dict[str, tuple[str | int, ...]] = {
    "open for writing": ("path_open", 3, 1, *FILE, 0, RW, NONE, 0, 200),
    "create": ("path_open", 3, 1, *NEW, 1, RW, NONE, 0, 200),
    "truncate": ("path_open", 3, 1, *FILE, 8, RW, NONE, 0, 200),
    "mkdir": ("path_create_directory", 3, *NEW),
    "unlink": ("path_unlink_file", 3, *FILE),
    "rmdir": ("path_remove_directory", 3, *SUB),
    "rename": ("path_rename", 3, *FILE, 3, *NEW),
    "link": ("path_link", 3, 0, *FILE, 3, *NEW),
    "symlink": ("path_symlink", *FILE, 3, *NEW),
    "times": ("path_filestat_set_times", 3, 1, *FILE, NONE, NONE, 5),
}
READS: dict[str, tuple[str | int, ...]] = {
    "open for reading": ("path_open", 3, 1, *FILE, 0, "(i64.const 2)", NONE, 0, 200),
    "open a directory": ("path_open", 3, 1, *SUB, 2, NONE, NONE, 0, 200),
    "stat": ("path_filestat_get", 3, 1, *FILE, 200),
    "list": ("fd_readdir", 3, 200, 100, NONE, 400),
}


@pytest.fixture(params=["by the kernel", "by us"])
def read_only(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a read-only directory."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "sub").mkdir()
    if request.param == "by us":
        yield tmp_path
        return
    subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path], check=True)
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_read_only_directories(read_only: Path) -> None:
    def ends_with(call: tuple[str | int, ...]) -> int:
        name, *arguments = call
        wasm = asking(str(name), *arguments)
        return every(lambda run: run(wasm, directory=read_only, readonly=True)).status

    assert {what: ends_with(call) for what, call in CHANGES.items()} == dict.fromkeys(CHANGES, ROFS)
    assert {what: ends_with(call) for what, call in READS.items()} == dict.fromkeys(READS, 0)
    assert sorted(os.listdir(read_only)) == ["file", "sub"]


@pytest.mark.parametrize("what", CHANGES)
def test_a_directory_that_may_be_changed(what: str, tmp_path: Path) -> None:
    name, *arguments = CHANGES[what]

    def run(run: Runner) -> Result:
        directory = tmp_path / str(os.urandom(4).hex())
        (directory / "sub").mkdir(parents=True)
        (directory / "file").touch()
        return run(asking(str(name), *arguments), directory=directory)

    assert every(run).status == 0


def test_a_directory_under_another_name(tmp_path: Path) -> None:
    """It is the descriptor that counts, whatever the guest's name for it leads to out here."""
    (tmp_path / "file").touch()
    wasm = asking("path_filestat_get", 3, 1, *FILE, 200)
    result = every(lambda run: run(wasm, directory=tmp_path, name="/nowhere"))
    assert result.status == 0


def test_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wasm = asking("path_filestat_get", 3, 1, *FILE, 200)
    with_cwd = every(lambda run: run(wasm, directory=Path("/"), cwd=str(tmp_path)))
    assert with_cwd.status == 0
    assert every(lambda run: run(wasm, directory=Path("/"))).status == 44  # ENOENT


MISTAKES: dict[str, tuple[int, tuple[str | int, ...]]] = {
    "bad iovec": (21, ("fd_write", 1, -4, 1, 8)),
    "bad result": (21, ("fd_write", 1, 0, 1, -1)),
    "bad buffer": (21, ("random_get", 8, -1)),
    "bad clock": (28, ("clock_time_get", 9, NONE, 0)),
    "odd rights": (44, ("path_open", 3, 1, *NEW, 0, "(i64.const -1)", NONE, 0, 200)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_an_answer(mistake: str, tmp_path: Path) -> None:
    number, (name, *arguments) = MISTAKES[mistake]
    wasm = asking(str(name), *arguments)
    assert every(lambda run: run(wasm, directory=tmp_path)).status == number


@pytest.mark.parametrize("fd", [0, 1, 2, 3])
def test_rights_and_kinds(fd: int, tmp_path: Path) -> None:
    body = f"(drop (call $fd_fdstat_get (i32.const {fd}) (i32.const 0)))"
    wasm = printing(body, 24, "fd_fdstat_get")
    every(lambda run: run(wasm, directory=tmp_path))


def test_memory_that_grew_is_seen() -> None:
    """The view that we have of it is of the time before."""
    body = """(drop (memory.grow (i32.const 3)))
        (i64.store (i32.const 200000) (i64.const 0x3_0000_0412))
        (drop (call $fd_write (i32.const 1) (i32.const 200000) (i32.const 1) (i32.const 240000)))
        (call $proc_exit (i32.load (i32.const 240000)))"""
    result = every(lambda run: run(guest(body, "fd_write", memory="1 8")))
    assert result[:2] == (3, b"abc")


@pytest.mark.parametrize("memory", ["0", "0 0"])
def test_an_empty_memory(memory: str) -> None:
    wasm = asking("fd_write", 1, 0, 1, 8).replace(b'"memory") 20)', f'"memory") {memory})'.encode())
    wasm = wasm.replace(b'(data (i32.const 1024) "file new sub link abc")', b"")
    assert every(lambda run: run(wasm)).status == 21


def test_a_memory_of_64_bits_is_out_of_reach() -> None:
    """It may move, and our view would then be of whatever comes to lie there."""
    wasm = b"""(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (memory (export "memory") i64 1)
        (func (export "_start") (call $exit (call $random (i32.const 0) (i32.const 1)))))"""
    assert Runner(engines.select("wasmtime"))(wasm).status == 21


def test_a_directory_that_the_guest_may_not_enter(tmp_path: Path) -> None:
    """It is of no use, but no harm either."""
    tmp_path.chmod(0o711)
    (tmp_path / "private").mkdir(0o700)

    def become_nobody() -> None:
        os.chdir(tmp_path)
        os.setresuid(65534, 65534, 65534)

    wasm = asking("path_filestat_get", 3, 1, *FILE, 200)
    result = every(
        lambda run: run(wasm, directory=Path("private"), name="/", before=become_nobody),
    )
    assert result.status == 2  # EACCES
