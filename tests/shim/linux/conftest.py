"""A child that asserts: what happens in namespaces and to credentials must not happen to pytest."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from shim.linux.clone import clone, wait


def run(entry: Callable[[], None], flags: int = 0, *, cgroup: int | None = None) -> int:
    child = clone(entry, flags, cgroup=cgroup)
    try:
        return wait(child.pidfd)
    finally:
        os.close(child.pidfd)


@pytest.fixture
def in_child() -> Callable[..., None]:
    """Run a function in a child, in new namespaces; its failure (a traceback on stderr) is ours."""

    def check(entry: Callable[[], None], flags: int = 0) -> None:
        assert run(entry, flags) == 0

    return check


@pytest.fixture
def status_of() -> Callable[..., int]:
    """Run a function in a child; its exit status."""
    return run


COMPILE = {
    "wasmer": """
import sys, wasmer, wasmer_compiler_cranelift as cranelift
store = wasmer.Store(wasmer.engine.JIT(cranelift.Compiler))
sys.stdout.buffer.write(wasmer.Module(store, wasmer.wat2wasm(sys.argv[1])).serialize())
""",
    "wasmtime": """
import sys, wasmtime
sys.stdout.buffer.write(wasmtime.Module(wasmtime.Engine(), sys.argv[1]).serialize())
""",
}


@functools.cache
def compile_elsewhere(engine: str, wat: str) -> bytes:
    command = [sys.executable, "-c", COMPILE[engine], wat]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(scope="session")
def compiled() -> Callable[[str, str], bytes]:
    """Compile a module in a process of its own.

    Both engines start threads to compile, here as anywhere; and a child that then compiles waits
    for threads that it does not have.
    """
    return compile_elsewhere
