"""wasi:cli 0.3 (library; runs in the guest). `wasi:cli/run` is what a component exports."""

from __future__ import annotations

import errno as linux
from typing import Final

from shim.component.host import Interface
from shim.component.streams import Shared
from shim.wasi.descriptors import Descriptor
from shim.wasi.p2 import cli as p2
from shim.wasi.p3.bytes import Reading, Writing
from shim.wasi.program import Program

ENVIRONMENT: Final = Interface("wasi:cli/environment", "0.3")
EXIT: Final = Interface("wasi:cli/exit", "0.3")
TYPES: Final = Interface("wasi:cli/types", "0.3")
TYPES.type("error-code", "enum { io, illegal-byte-sequence, pipe }")
_RESULT: Final = TYPES.parse("result<_, error-code>")
STDIN: Final = Interface("wasi:cli/stdin", "0.3")
STDOUT: Final = Interface("wasi:cli/stdout", "0.3")
STDERR: Final = Interface("wasi:cli/stderr", "0.3")
TERMINAL_INPUT: Final = Interface("wasi:cli/terminal-input", "0.3")
TERMINAL_OUTPUT: Final = Interface("wasi:cli/terminal-output", "0.3")
TERMINAL_STDIN: Final = Interface("wasi:cli/terminal-stdin", "0.3")
TERMINAL_STDOUT: Final = Interface("wasi:cli/terminal-stdout", "0.3")
TERMINAL_STDERR: Final = Interface("wasi:cli/terminal-stderr", "0.3")
INTERFACES: Final = (
    *(ENVIRONMENT, EXIT, TYPES, STDIN, STDOUT, STDERR, TERMINAL_INPUT, TERMINAL_OUTPUT),
    *(TERMINAL_STDIN, TERMINAL_STDOUT, TERMINAL_STDERR),
)

ENVIRONMENT.function("get-environment", "func() -> list<tuple<string, string>>")(p2.environment)
ENVIRONMENT.function("get-arguments", "func() -> list<string>")(p2.arguments)
ENVIRONMENT.function("get-initial-cwd", "func() -> option<string>")(p2.initial_cwd)
EXIT.function("exit", "func(status: result)")(p2.exit_)
EXIT.function("exit-with-code", "func(status-code: u8)")(p2.exit_with_code)


def _error(error: Exception) -> str:
    return "pipe" if isinstance(error, OSError) and error.errno == linux.EPIPE else "io"


STDIN.use(TYPES, "error-code")


@STDIN.function("read-via-stream", "func() -> tuple<stream<u8>, future<result<_, error-code>>>")
def read_via_stream(program: Program) -> tuple[Shared, Shared]:
    """Return standard input, and how it ended."""
    reading = Reading(program.reactor, program.stdio[0].share(), _RESULT, _error)
    return reading.shared, reading.outcome.future


def _write(program: Program, number: int, data: Shared) -> Shared:
    writing = Writing(program.reactor, program.stdio[number].share(), _RESULT, _error)
    writing.drain(data)
    return writing.outcome.future


STDOUT.use(TYPES, "error-code")
STDERR.use(TYPES, "error-code")
_WRITE: Final = "func(data: stream<u8>) -> future<result<_, error-code>>"


@STDOUT.function("write-via-stream", _WRITE)
def write_to_stdout(program: Program, data: Shared) -> Shared:
    """Write a stream to standard output; return how that went."""
    return _write(program, 1, data)


@STDERR.function("write-via-stream", _WRITE)
def write_to_stderr(program: Program, data: Shared) -> Shared:
    """Write a stream to standard error; return how that went."""
    return _write(program, 2, data)


TERMINAL_INPUT.resource("terminal-input", Descriptor.close)
TERMINAL_OUTPUT.resource("terminal-output", Descriptor.close)
TERMINAL_STDIN.use(TERMINAL_INPUT, "terminal-input")
TERMINAL_STDOUT.use(TERMINAL_OUTPUT, "terminal-output")
TERMINAL_STDERR.use(TERMINAL_OUTPUT, "terminal-output")
TERMINAL_STDIN.function("get-terminal-stdin", "func() -> option<terminal-input>")(p2.terminal(0))
TERMINAL_STDOUT.function("get-terminal-stdout", "func() -> option<terminal-output>")(p2.terminal(1))
TERMINAL_STDERR.function("get-terminal-stderr", "func() -> option<terminal-output>")(p2.terminal(2))
