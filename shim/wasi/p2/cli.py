"""wasi:cli: how a program was started, its standard streams, its end (library; in the guest).

`wasi:cli/run` is what a component exports.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, NoReturn

from shim.component.host import Interface
from shim.wasi.descriptors import Descriptor
from shim.wasi.p2.io import STREAMS, InputStream, OutputStream, finish
from shim.wasi.program import Program

ENVIRONMENT: Final = Interface("wasi:cli/environment", "0.2")
EXIT: Final = Interface("wasi:cli/exit", "0.2")
STDIN: Final = Interface("wasi:cli/stdin", "0.2")
STDIN.use(STREAMS, "input-stream")
STDOUT: Final = Interface("wasi:cli/stdout", "0.2")
STDOUT.use(STREAMS, "output-stream")
STDERR: Final = Interface("wasi:cli/stderr", "0.2")
STDERR.use(STREAMS, "output-stream")
TERMINAL_INPUT: Final = Interface("wasi:cli/terminal-input", "0.2")
TERMINAL_OUTPUT: Final = Interface("wasi:cli/terminal-output", "0.2")
TERMINAL_STDIN: Final = Interface("wasi:cli/terminal-stdin", "0.2")
TERMINAL_STDOUT: Final = Interface("wasi:cli/terminal-stdout", "0.2")
TERMINAL_STDERR: Final = Interface("wasi:cli/terminal-stderr", "0.2")
INTERFACES: Final = (
    *(ENVIRONMENT, EXIT, STDIN, STDOUT, STDERR, TERMINAL_INPUT, TERMINAL_OUTPUT),
    *(TERMINAL_STDIN, TERMINAL_STDOUT, TERMINAL_STDERR),
)

# Of a terminal nothing can be asked yet: to have one is all.
TERMINAL_INPUT.resource("terminal-input", Descriptor.close)
TERMINAL_OUTPUT.resource("terminal-output", Descriptor.close)
TERMINAL_STDIN.use(TERMINAL_INPUT, "terminal-input")
TERMINAL_STDOUT.use(TERMINAL_OUTPUT, "terminal-output")
TERMINAL_STDERR.use(TERMINAL_OUTPUT, "terminal-output")


def _text(data: bytes) -> str:
    """Return a string; what is no UTF-8 in it cannot be told, so it is replaced."""
    return data.decode(errors="replace")


@ENVIRONMENT.function("get-environment", "func() -> list<tuple<string, string>>")
def environment(program: Program) -> list[tuple[str, str]]:
    """Return the variables."""
    pairs = (_text(variable).partition("=") for variable in program.env)
    return [(name, value) for name, _, value in pairs]


@ENVIRONMENT.function("get-arguments", "func() -> list<string>")
def arguments(program: Program) -> list[str]:
    """Return the arguments, the program's name first."""
    return [_text(argument) for argument in program.args]


@ENVIRONMENT.function("initial-cwd", "func() -> option<string>")
def initial_cwd(program: Program) -> str | None:
    """Return the working directory, if it is not `/`."""
    return None if program.cwd is None else _text(program.cwd)


@EXIT.function("exit", "func(status: result)")
def exit_(program: Program, status: tuple[str, Any]) -> NoReturn:
    """End: the process runs this program and nothing else, so there is nothing to unwind."""
    exit_with_code(program, 0 if status[0] == "ok" else 1)


@EXIT.function("exit-with-code", "func(status-code: u8)")
def exit_with_code(program: Program, code: int) -> NoReturn:
    """End with an exit status."""
    finish()
    os._exit(code)


@STDIN.function("get-stdin", "func() -> input-stream")
def stdin(program: Program) -> InputStream:
    """Return standard input."""
    return InputStream(program.stdio[0].share())


@STDOUT.function("get-stdout", "func() -> output-stream")
def stdout(program: Program) -> OutputStream:
    """Return standard output."""
    return OutputStream(program.stdio[1].share())


@STDERR.function("get-stderr", "func() -> output-stream")
def stderr(program: Program) -> OutputStream:
    """Return standard error."""
    return OutputStream(program.stdio[2].share())


def terminal(number: int) -> Callable[[Program], Descriptor | None]:
    """Return the function that returns a standard stream if it is a terminal."""

    def found(program: Program) -> Descriptor | None:
        stream = program.stdio[number]
        return stream.share() if os.isatty(stream.fd) else None

    return found


TERMINAL_STDIN.function("get-terminal-stdin", "func() -> option<terminal-input>")(terminal(0))
TERMINAL_STDOUT.function("get-terminal-stdout", "func() -> option<terminal-output>")(terminal(1))
TERMINAL_STDERR.function("get-terminal-stderr", "func() -> option<terminal-output>")(terminal(2))
