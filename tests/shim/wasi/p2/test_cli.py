from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

import pytest

from shim.wasi.descriptors import inherited
from shim.wasi.p2 import INTERFACES
from shim.wasi.p2.io import OutputStream
from shim.wasi.program import Program
from tests.shim.wasi.drivers import call

from .conftest import Calls


def status(entry: Callable[[], object]) -> int:
    """Return the exit status of a child in which something was called."""
    child = os.fork()
    if child == 0:
        try:
            entry()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    ("name", "argument", "code"),
    [
        ("exit", ("ok", None), 0),
        ("exit", ("error", None), 1),
        ("exit-with-code", 0, 0),
        ("exit-with-code", 255, 255),
    ],
)
def test_the_end(calls: Calls, name: str, argument: object, code: int) -> None:
    assert status(lambda: calls("cli/exit", name, argument)) == code


def test_nothing_written_is_lost(calls: Calls) -> None:
    (reader, writer), (written, tell) = os.pipe(), os.pipe()
    fcntl.fcntl(writer, 1031, 4096)  # F_SETPIPE_SZ
    child = os.fork()
    if child == 0:
        try:
            output = OutputStream(inherited(writer))
            size = calls("io/streams", "[method]output-stream.check-write", output)
            zeros = memoryview(bytes(size))
            calls("io/streams", "[method]output-stream.write", output, zeros)
            assert output.pending
            os.close(tell)
            calls("cli/exit", "exit", ("ok", None))
        finally:
            os._exit(99)
    os.close(writer)
    os.close(tell)
    os.read(written, 1)  # nobody reads before
    arrived = 0
    while data := os.read(reader, 1 << 16):
        arrived += len(data)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert arrived > 4096


def test_standard_streams_and_terminals() -> None:
    def entry() -> None:
        reading, writing = os.pipe()
        terminal, device = os.openpty()
        os.dup2(reading, 0)
        os.dup2(device, 1)
        os.dup2(writing, 2)
        program = Program()
        program.grant([], [], [])
        for _ in range(2):  # each time as if for the first
            errors = call(program, "cli/stderr", "get-stderr")
            call(
                program,
                *("io/streams", "[method]output-stream.blocking-write-and-flush"),
                *(errors, memoryview(b"heard")),
            )
            errors.close()
            source = call(program, "cli/stdin", "get-stdin")
            read = "[method]input-stream.blocking-read"
            assert call(program, "io/streams", read, source, 99) == b"heard"
            source.close()
        assert call(program, "cli/terminal-stdin", "get-terminal-stdin") is None
        assert call(program, "cli/terminal-stderr", "get-terminal-stderr") is None
        found = call(program, "cli/terminal-stdout", "get-terminal-stdout")
        found.close()
        assert os.isatty(1)
        output = call(program, "cli/stdout", "get-stdout")
        call(program, "io/streams", "[method]output-stream.check-write", output)
        call(program, "io/streams", "[method]output-stream.write", output, memoryview(b"seen"))
        assert os.read(terminal, 99) == b"seen"
        os._exit(0)

    assert status(entry) == 0


def test_a_working_directory(tmp_path: os.PathLike[str], program: Program) -> None:
    assert call(program, "cli/environment", "initial-cwd") is None

    def entry() -> None:
        flags = os.O_PATH | os.O_DIRECTORY
        root, cwd = os.open(tmp_path, flags), os.open(tmp_path, flags)
        program.grant([], [], [(b"/", root, False, True)], cwd=(b"/app", cwd, False, True))
        assert call(program, "cli/environment", "initial-cwd") == "/app"
        os._exit(0)

    assert status(entry) == 0


def test_names_of_interfaces_are_there_once() -> None:
    names = [(interface.name, interface.version) for interface in INTERFACES]
    assert len(names) == len(set(names)) == 27
