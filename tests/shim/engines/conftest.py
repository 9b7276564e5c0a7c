"""Run a module as a guest process does: compiled in one child, loaded and run in another."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import resource
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from shim import engines
from shim.engines.base import Engine, Grants, Module, ModuleError, Preopen
from tests.installed import ENGINES

_artifacts: dict[tuple[str, bytes], bytes] = {}


class Result(NamedTuple):
    """How a guest ended (the exit status, or minus the signal) and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes
    max_rss: int = 0  # KiB


def in_child(work: Callable[[], None], stdin: bytes = b"") -> Result:
    with contextlib.ExitStack() as files:
        given, out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        child = os.fork()
        if child == 0:
            try:
                for target, file in enumerate((given, out, err)):
                    os.dup2(file.fileno(), target)
                work()
                os._exit(0)
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}".encode())
                os._exit(99)
        _, status, usage = os.wait4(child, 0)
        for file in (out, err):
            file.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return Result(code, out.read(), err.read(), usage.ru_maxrss)


def artifact(engine: Engine, wasm: bytes) -> bytes:
    """Compile in a child, since that may start threads; raise what it raised."""
    key = engine.fingerprint(), hashlib.sha256(wasm).digest()
    if key not in _artifacts:

        def compile_() -> None:
            with open(1, "wb") as out:
                out.write(engine.compile(wasm))

        result = in_child(compile_)
        kind, _, message = result.stderr.decode().partition(": ")
        if kind == "ModuleError":
            raise ModuleError(message)
        assert result.status == 0, result.stderr
        _artifacts[key] = result.stdout
    return _artifacts[key]


class Runner:
    """Runs modules under one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def check(self, wasm: bytes, function: str = "_start") -> None:
        self.engine.load(artifact(self.engine, wasm)).check(function)

    def __call__(
        self,
        wasm: bytes | Path,
        *args: str | bytes,
        env: Sequence[bytes] = (),
        directory: Path | None = None,
        readonly: bool = False,
        stdin: bytes = b"",
        function: str = "_start",
        cwd: str = "/",
        memory: int | None = None,
        name: str = "",
        load: Callable[[], Module] | None = None,
        before: Callable[[], object] = lambda: None,
    ) -> Result:
        """Run to the end.

        `directory` is the one preopen, under `name` or its own; `memory` a limit on address space.
        `before` runs in the process of the guest.
        """
        code = artifact(self.engine, wasm.read_bytes() if isinstance(wasm, Path) else wasm)

        def run() -> NoReturn:
            if memory is not None:
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            before()
            preopens = []
            if directory is not None:
                fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
                preopens.append(Preopen(name or str(directory), fd, readonly))
            module = load() if load else self.engine.load(code)
            module.check(function)
            assert os.listdir("/proc/self/task") == [str(os.getpid())]
            start = None
            if cwd != "/":
                start = Preopen(cwd, os.open(cwd, os.O_PATH | os.O_DIRECTORY))
            grants = Grants([b"guest", *map(os.fsencode, args)], env, preopens, start)
            module.run(grants, function)

        return in_child(run, stdin)


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest) -> Runner:
    """A runner for each engine there is."""
    return Runner(engines.select(request.param))


@pytest.fixture(params=["wasmer.Wasmer", "wasmer_wheel.WasmerWheel", "wasmtime.Wasmtime"])
def anew(request: pytest.FixtureRequest) -> Callable[[], Runner]:
    """Makes a runner whose engine has the host functions of that moment, of each kind."""
    module, _, kind = request.param.partition(".")
    try:
        engine = getattr(importlib.import_module(f"shim.engines.{module}"), kind)
    except ImportError:
        pytest.skip(f"shim.engines.{module} has no library here")
    return lambda: Runner(engine())
