"""Run the public WASI test suite through a shim's Task API: scripts/wasi-testsuite.

The suite is the repository WebAssembly/wasi-testsuite, branch prod/testsuite-base, whose programs
are compiled. Its doc/specification.md says what the `.json` beside a program means; both forms of
it are known here, and `dirs`, which the form before them had.

Each program is a container of one pod: its rootfs is a copy of the test's `root` with the program
in it, so `/` is the preopen that the suite asks for, and what a test leaves behind is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shim import engines
from shim.engines.base import ModuleError
from shim.ttrpc import RpcError
from tests.shim.task_api import POD, Container, Ended, LaunchError, Shim

TARGET = "wasm32-wasip1"
_AT_ONCE = 2 * (os.cpu_count() or 1)
_PATIENCE = 60.0


class UnsupportedError(Exception):
    """A test wants to be talked to in a way that this runner does not know."""


class Case(NamedTuple):
    """One program, and what is to be given to it and to be expected of it."""

    module: Path
    args: Sequence[str] = ()
    env: Sequence[str] = ()
    root: Path | None = None
    dirs: Sequence[str] = ()
    """Directories beside the module, preopened under these names."""
    status: int = 0
    stdout: str | None = None
    stderr: str | None = None


def name(module: Path) -> str:
    """Tell programs of different languages apart: `rust/fd_readdir`."""
    return "/".join((*module.parts[-4:-3], module.stem))


def find(directory: Path) -> list[Path]:
    """Return the programs of our target below a directory."""
    found = directory.resolve().rglob("*.wasm")
    return sorted(path for path in found if path.parent.name == TARGET)


def read(module: Path) -> Case:
    """Read the specification beside a program. Raises UnsupportedError."""
    path = module.with_suffix(".json")
    spec = json.loads(path.read_text()) if path.exists() else {}
    wanted: dict[str, Any] = {}
    if "operations" not in spec:
        spec["operations"] = [spec | {"type": "run"}, spec | {"type": "wait"}]
        wanted = {stream: spec.get(stream) for stream in ("stdout", "stderr")}
    for operation in spec["operations"]:
        kind = operation["type"]
        if kind == "run":
            env = operation.get("env") or {}
            wanted["args"] = operation.get("args") or []
            wanted["env"] = [f"{key}={value}" for key, value in env.items()]
            wanted["dirs"] = operation.get("dirs") or []
            if root := operation.get("root"):
                wanted["root"] = module.parent / root
        elif kind == "wait":
            wanted["status"] = operation.get("exit_code", 0)
        elif kind == "read":
            stream = operation.get("id", "stdout")
            wanted[stream] = (wanted.get(stream) or "") + operation.get("payload", "")
        else:
            raise UnsupportedError(f"operation {kind!r} is not supported")
    return Case(module, **wanted)


async def run(shim: Shim, id: str, case: Case, engine: str) -> Ended:
    """Run one program in a container. Raises RpcError, LaunchError."""
    annotations = dict(POD)
    if engine:
        annotations["dev.pywasm.engine"] = engine
    if case.root is None:
        annotations["dev.pywasm.rootfs"] = "off"
    if case.dirs:
        annotations["dev.pywasm.preopens"] = ",".join(f"{d}=/{d}" for d in case.dirs)
    program = f"/{case.module.name}"
    process = {"args": [program, *case.args], "env": list(case.env), "cwd": "/"}
    rootfs = shim.bundle(id, annotations=annotations, process=process) / "rootfs"
    if case.root is not None:
        _copy(case.root, rootfs)
    for directory in case.dirs:
        _copy(case.module.parent / directory, rootfs / directory)
    shutil.copy(case.module, rootfs)
    container = await Container.create(shim, id, rootfs=[])
    return await container.run(_PATIENCE)


def _copy(source: Path, target: Path) -> None:
    # An interrupted run of another runner may have left these.
    leftovers = shutil.ignore_patterns("*.cleanup")
    shutil.copytree(source, target, symlinks=True, ignore=leftovers, dirs_exist_ok=True)


def differences(case: Case, ended: Ended) -> list[str]:
    """Say what is not as expected."""
    found = []
    for what, expected, got in (
        ("exit code", case.status, ended.status),
        ("stdout", case.stdout, ended.stdout),
        ("stderr", case.stderr, ended.stderr),
    ):
        if expected is not None and expected != got:
            found.append(f"expected {what} {expected!r}, got {got!r}")
    return found


async def run_all(modules: Sequence[Path], engine: str) -> int:
    """Run programs, a few at a time; print each failure and return how many there are."""
    turns = asyncio.Semaphore(_AT_ONCE)
    with tempfile.TemporaryDirectory(prefix="wasi-testsuite-") as directory:
        shim = Shim(Path(directory))

        async def failed(number: int, module: Path) -> bool:
            stderr = ""
            async with turns:
                try:
                    case = read(module)
                    ended = await run(shim, f"test-{number}", case, engine)
                    problems, stderr = differences(case, ended), ended.stderr
                except (UnsupportedError, LaunchError) as error:
                    problems = [str(error)]
                except RpcError as error:
                    problems = [f"{error.code.name}: {error.message}"]
            if problems:
                words = [*problems, *stderr.splitlines()[:1]]
                print(f"{name(module)}: {'; '.join(words)}", flush=True)
            return bool(problems)

        try:
            return sum(await asyncio.gather(*(failed(*pair) for pair in enumerate(modules))))
        finally:
            await shim.close()


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 1 if a test failed, 2 if there was nothing to do."""
    parser = argparse.ArgumentParser(
        prog="wasi-testsuite",
        description="Run the programs of WebAssembly/wasi-testsuite in containers of a shim.",
    )
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="prod/testsuite-base, checked out"
    )
    parser.add_argument(
        "--engine", default="", help="wasmer or wasmtime (default: as the shim chooses)"
    )
    options = parser.parse_args(arguments)
    try:
        engines.select(options.engine)
    except ModuleError as error:
        print(f"wasi-testsuite: {error}", file=sys.stderr)
        return 2
    modules = find(options.directory)
    if not modules:
        print(
            f"wasi-testsuite: {options.directory}: no {TARGET} programs below it", file=sys.stderr
        )
        return 2
    failed = asyncio.run(run_all(modules, options.engine))
    print(f"{len(modules) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
