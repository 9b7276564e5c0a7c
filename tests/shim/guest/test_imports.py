"""A guest runs no Python but what it was born with: its image has what it likes at our paths."""

from __future__ import annotations

import encodings
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.installed import ENGINES
from tests.shim.launching import ROOT
from tests.shim.task_api import Container, Shim

UTF_16 = """(component
    (import "wasi:cli/environment@0.2.0" (instance $environment
        (export "get-arguments" (func (result (list string))))))
    (core module $Memory
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
    (core instance $memory (instantiate $Memory))
    (core func $arguments (canon lower (func $environment "get-arguments")
        string-encoding=utf16
        (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
    (core module $Main
        (import "host" "arguments" (func $arguments (param i32)))
        (func (export "run") (result i32) (call $arguments (i32.const 0)) (i32.const 0)))
    (core instance $main (instantiate $Main
        (with "host" (instance (export "arguments" (func $arguments))))))
    (func $run (result (result)) (canon lift (core func $main "run")))
    (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"""
NAME = """(component
    (import "wasi:sockets/ip-name-lookup@0.3.0" (instance $names
        (type $v4 (tuple u8 u8 u8 u8))
        (type $v6 (tuple u16 u16 u16 u16 u16 u16 u16 u16))
        (type $defined (variant (case "ipv4" $v4) (case "ipv6" $v6)))
        (export "ip-address" (type $address (eq $defined)))
        (type $failed (variant (case "access-denied") (case "invalid-argument")
            (case "name-unresolvable") (case "temporary-resolver-failure")
            (case "permanent-resolver-failure") (case "other" (option string))))
        (export "error-code" (type $error (eq $failed)))
        (export "resolve-addresses" (func async (param "name" string)
            (result (result (list $address) (error $error)))))))
    (core module $Memory
        (memory (export "memory") 1)
        (data (i32.const 0) "\\c3\\a4.invalid")
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
    (core instance $memory (instantiate $Memory))
    (core func $resolve (canon lower (func $names "resolve-addresses")
        (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
    (core module $Main
        (import "host" "resolve" (func $resolve (param i32 i32 i32)))
        (func (export "run") (result i32)
            (call $resolve (i32.const 0) (i32.const 10) (i32.const 64)) (i32.const 0)))
    (core instance $main (instantiate $Main
        (with "host" (instance (export "resolve" (func $resolve))))))
    (func $run (result (result)) (canon lift (core func $main "run")))
    (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"""
HOSTILE = b"import os\nos.write(1, b'imported')\n"


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path)
    yield started
    await started.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("program", [UTF_16, NAME], ids=["utf-16", "idna"])
async def test_no_codec_is_imported_from_the_image(shim: Shim, engine: str, program: str) -> None:
    (path,) = encodings.__path__
    library = shim.rootfs / path.lstrip("/")
    library.mkdir(parents=True)
    for name in ("utf_16_le", "idna"):
        (library / f"{name}.py").write_bytes(HOSTILE)
    (shim.rootfs / "app.wat").write_text(program)
    shim.bundle("c", "/app.wat", annotations={"dev.pywasm.engine": engine})
    ended = await (await Container.create(shim, "c")).run()
    assert (ended.status, ended.stdout, ended.stderr) == (0, "", "")


def test_nothing_is_imported_by_a_path() -> None:
    program = (
        f"import sys; sys.path.insert(0, {ROOT!r}); from shim.guest.program import be_apart; "
        "be_apart([0, 1, 2]); import colorsys"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'colorsys'"
