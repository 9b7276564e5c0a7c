"""The installed launcher's interpreter, which starts with modules of ours."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

INTERPRETER = Path(sys.prefix) / "launcher" / "bin" / "python"
COMMAND = Path(sys.prefix) / "launcher" / "containerd-shim-pywasm-v1"


def run(program: str, *arguments: bytes) -> subprocess.CompletedProcess[bytes]:
    # A file, as the launcher is: for `-c`, Python 3.13 wants more of the standard library.
    with tempfile.NamedTemporaryFile(suffix=".py") as file:
        file.write(program.encode())
        file.flush()
        command = [os.fsencode(INTERPRETER), b"-ISEXutf8", os.fsencode(file.name), *arguments]
        return subprocess.run(command, capture_output=True, check=False, timeout=30)


def test_the_installed_command_uses_it() -> None:
    assert COMMAND.read_text().startswith(f"#!{INTERPRETER} -ISEXutf8\n")


def test_starts_without_the_standard_librarys_codecs() -> None:
    modules = run("import sys; print(*sys.modules)").stdout.split()
    assert b"encodings" in modules
    if sys.version_info < (3, 11):  # later ones have these frozen in, at no cost
        assert not {b"codecs", b"abc", b"encodings.aliases"} & set(modules)


@pytest.mark.parametrize("text", ["plain", "naïve ☃ 🐍"])
def test_text_comes_out_as_utf_8(text: str) -> None:
    assert run(f"print({text!r})").stdout.decode() == f"{text}\n"


def test_arguments_are_passed_through_byte_for_byte() -> None:
    program = "import sys, posix; posix.write(1, sys.argv[1].encode('utf-8', 'surrogateescape'))"
    assert run(program, b"\xff\xfe/\xc3\xa9").stdout == b"\xff\xfe/\xc3\xa9"


def test_an_exception_can_still_be_told() -> None:
    done = run("def f():\n  raise ValueError('why, ☃')\nf()")
    assert done.returncode == 1
    assert b"ValueError: why, \xe2\x98\x83" in done.stderr


def test_what_it_needs_to_start_a_zygote_is_there() -> None:
    done = run("import _socket, fcntl, posix; print(posix.posix_spawn, fcntl.flock)")
    assert done.returncode == 0, done.stderr
