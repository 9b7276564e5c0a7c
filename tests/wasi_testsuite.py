"""Run the public WASI test suite through a shim's Task API: scripts/wasi-testsuite.

The suite is the repository WebAssembly/wasi-testsuite, branch prod/testsuite-base, whose programs
are compiled. Its doc/specification.md says what the `.json` beside a program means; both forms of
it are known here, and `dirs`, which the form before them had.

Each program is a container of one pod. Its rootfs has the program, and a copy of the test's `root`,
which is its preopen `/` as the suite asks for; so what a test leaves behind is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.empty_pb2 import Empty

from proto import task_v2_pb2 as api
from shim import engines
from shim.engines.base import ModuleError
from shim.ttrpc import RpcError
from tests.shim.task_api import POD, Container, Ended, LaunchError, Shim, call

TARGETS = ("wasm32-wasip1", "wasm32-wasip3")
_AT_ONCE = 2 * (os.cpu_count() or 1)
_PATIENCE = 60.0


class UnsupportedError(Exception):
    """A test wants something that is not there, or to be talked to in an unknown way."""


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
    talk: Sequence[Mapping[str, str]] = ()
    """What is done, in this order, while it runs."""


def name(module: Path) -> str:
    """Tell programs of different languages apart: `rust/fd_readdir`."""
    return "/".join((*module.parts[-4:-3], module.stem))


def find(directory: Path) -> list[Path]:
    """Return the programs of our targets below a directory."""
    found = directory.resolve().rglob("*.wasm")
    return sorted(path for path in found if path.parent.name in TARGETS)


def read(module: Path) -> Case:
    """Read the specification beside a program. Raises UnsupportedError."""
    path = module.with_suffix(".json")
    spec = json.loads(path.read_text()) if path.exists() else {}
    if "http" in spec.get("proposals", ()):
        raise UnsupportedError("it takes `wasi:http`")
    wanted: dict[str, Any] = {"talk": []}
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
            wanted["talk"].append({"type": kind, "stream": stream, "payload": wanted[stream]})
        elif kind in ("write", "connect", "send", "recv"):
            wanted["talk"].append(operation)
        else:
            raise UnsupportedError(f"operation {kind!r} is not supported")
    return Case(module, **wanted)


async def run(shim: Shim, id: str, case: Case, engine: str) -> Ended:
    """Run one program in a container. Raises RpcError, LaunchError."""
    annotations = dict(POD)
    if engine:
        annotations["dev.pywasm.engine"] = engine
    annotations["dev.pywasm.rootfs"] = "off"
    preopens = [f"{directory}=/{directory}" for directory in case.dirs]
    if case.root is not None:
        preopens.append("/=/root")
    if preopens:
        annotations["dev.pywasm.preopens"] = ",".join(preopens)
    program = case.module.name
    process = {"args": [program, *case.args], "env": list(case.env), "cwd": "/"}
    rootfs = shim.bundle(id, annotations=annotations, process=process) / "rootfs"
    if case.root is not None:
        _copy(case.root, rootfs / "root")
    for directory in case.dirs:
        _copy(case.module.parent / directory, rootfs / directory)
    shutil.copy(case.module, rootfs)
    stdin = shim.directory / id / "stdin"
    os.mkfifo(stdin)
    container = await Container.create(shim, id, rootfs=[], stdin=str(stdin))
    writer = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    await container.start()
    try:
        await asyncio.wait_for(_talk(container, case.talk, writer), _PATIENCE)
    finally:
        os.close(writer)
        await call(container.client, "CloseIO", api.CloseIORequest(id=id, stdin=True), Empty)
    return await container.ended(_PATIENCE)


async def _talk(container: Container, talk: Sequence[Mapping[str, str]], stdin: int) -> None:
    """Do what a test wants to be done while its program runs. AssertionError if that goes wrong."""
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    for operation in talk:
        payload = operation.get("payload", "").encode()
        if operation["type"] == "write":
            os.write(stdin, payload)
        elif operation["type"] == "read":
            stream = container.stderr if operation["stream"] == "stderr" else container.stdout
            got = await stream.beginning(len(payload))
            assert got == payload, f"expected {payload!r}, got {got!r}"
        elif operation["type"] == "connect":
            host, _, port = (await container.stdout.line()).rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
        elif operation["type"] == "send":
            writer.write(payload)
        elif operation["type"] == "recv":
            answer = await reader.readexactly(len(payload))
            assert answer == payload, f"expected {payload!r}, got {answer!r}"


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


async def run_all(modules: Sequence[Path], engine: str) -> tuple[int, int]:
    """Run programs, a few at a time; print each that fails or is skipped, and return how many."""
    turns = asyncio.Semaphore(_AT_ONCE)
    with tempfile.TemporaryDirectory(prefix="wasi-testsuite-") as directory:
        shim = Shim(Path(directory))

        async def failed(number: int, module: Path) -> bool | None:
            stderr = ""
            async with turns:
                try:
                    case = read(module)
                    ended = await run(shim, f"test-{number}", case, engine)
                    problems, stderr = differences(case, ended), ended.stderr
                except UnsupportedError as error:
                    print(f"{name(module)}: skipped: {error}", flush=True)
                    return None
                except (LaunchError, AssertionError, TimeoutError) as error:
                    problems = [str(error) or type(error).__name__]
                except RpcError as error:
                    problems = [f"{error.code.name}: {error.message}"]
            if problems:
                words = [*problems, *filter(None, stderr.splitlines()[:6])]
                print(f"{name(module)}: {'; '.join(words)}", flush=True)
            return bool(problems)

        try:
            results = await asyncio.gather(*(failed(*pair) for pair in enumerate(modules)))
            return results.count(True), results.count(None)
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
            f"wasi-testsuite: {options.directory}: no {' or '.join(TARGETS)} programs below it",
            file=sys.stderr,
        )
        return 2
    failed, skipped = asyncio.run(run_all(modules, options.engine))
    passed = len(modules) - failed - skipped
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
