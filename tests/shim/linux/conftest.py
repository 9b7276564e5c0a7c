"""A child that asserts: what happens in namespaces and to credentials must not happen to pytest."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from shim.linux.clone import CLONE_NEWNS, clone, wait
from shim.linux.mounts import MS_PRIVATE, MS_REC, mount


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


@contextmanager
def living(entry: Callable[[], None], flags: int = 0) -> Iterator[int]:
    """Run a function in a child that then waits to be looked at from outside; its PID."""
    read, write = os.pipe()

    def wait_after() -> None:
        entry()
        os.write(write, b"x")
        os.close(write)
        while True:
            signal.pause()

    child = clone(wait_after, flags)
    os.close(write)
    try:
        assert os.read(read, 1) == b"x", "the child failed"
        yield child.pid
    finally:
        os.close(read)
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        wait(child.pidfd)
        os.close(child.pidfd)


@pytest.fixture
def alive() -> Callable[..., AbstractContextManager[int]]:
    """Run a function in a child, and look at the child as the kernel shows it: /proc/PID."""
    return living


@pytest.fixture
def in_mounts(in_child: Callable[..., None], tmp_path: Path) -> Callable[..., None]:
    """Run a function in a child with mounts of its own, and see that none of them is ours."""

    def check(entry: Callable[[], None], flags: int = 0) -> None:
        def isolated() -> None:
            mount(None, "/", None, MS_REC | MS_PRIVATE)
            entry()

        in_child(isolated, CLONE_NEWNS | flags)
        with open("/proc/self/mountinfo") as file:
            assert [line for line in file if str(tmp_path) in line] == []

    return check


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[Path]:
    """An image's root, beside a directory that nothing may be mounted on or created in."""
    (tmp_path / "outside").mkdir()
    root = tmp_path / "rootfs"
    root.mkdir()
    yield root
    assert os.listdir(tmp_path / "outside") == []


COMPILE = {
    "wasmer": """
import sys, wasmer, wasmer_compiler_cranelift as cranelift
store = wasmer.Store(wasmer.engine.JIT(cranelift.Compiler))
sys.stdout.buffer.write(wasmer.Module(store, wasmer.wat2wasm(sys.argv[1])).serialize())
""",
    "shim.engines.libwasmer": """
import ctypes, sys, wasmtime
from shim.engines import libwasmer
from shim.engines.wasmer import Host
binary = bytes(wasmtime.wat2wasm(sys.argv[1]))
code, native = ctypes.create_string_buffer(binary, len(binary)), libwasmer.Vec()
vector = libwasmer.Vec(len(binary), ctypes.addressof(code))
module = libwasmer.made(libwasmer.module_new(Host().store, vector))
libwasmer.module_serialize(module, native)
sys.stdout.buffer.write(native.bytes())
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
