"""Run the component model's test suite through shim/component: scripts/component-testsuite.

The suite is `test/` of the repository WebAssembly/component-model. `wasm-tools json-from-wast`
makes of each of its `.wast` files a list of commands, and the binaries that they are about.

What a trap says is not compared: the suite has the words of one engine. `-v` prints both.

A component is linked as a guest links it, but here, in this process: a trap ends a call and no
more. What is known to fail, and why, is frozen in docs/component-testsuite.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

from shim import engines
from shim.component.binary.decoding import decode
from shim.component.binary.definitions import CoreModule
from shim.component.errors import Trap
from shim.component.host import Registry
from shim.component.linker import Linker
from shim.component.planning import plan_component
from shim.component.tasks import Callee, Runtime
from shim.component.types import (
    CHAR,
    F32,
    F64,
    STRING,
    U8,
    Enum,
    FixedList,
    Flags,
    List,
    Map,
    Option,
    Record,
    Result,
    Tuple,
    ValueType,
    Variant,
)
from shim.component.validation.component import Valid, validate
from shim.engines.base import Engine, Module, ModuleError, is_component
from shim.engines.base import Trap as CoreTrap

FROZEN: Final = Path(__file__).parents[1] / "docs" / "component-testsuite.md"
_PATIENCE: Final = 5  # seconds, of a command


class UnfitError(Exception):
    """What a command wants did not happen."""


class UnusableError(Exception):
    """There is nothing to run."""


class Known(NamedTuple):
    """A command that is known to fail: of a file, or one at a line of it."""

    file: str
    line: int


def frozen(path: Path = FROZEN) -> dict[Known, str]:
    """Return what is known to fail, and why: rows of `| file | lines | reason |`.

    Lines are numbers, and ranges of them.
    """
    found: dict[Known, str] = {}
    for row in re.findall(r"^\| `([^`]+)` \| ([\d, -]+) \| (.*) \|$", path.read_text(), re.M):
        file, lines, reason = row
        for each in lines.split(","):
            first, _, last = each.partition("-")
            for line in range(int(first), int(last or first) + 1):
                found[Known(file, line)] = reason
    return found


def wasm_tools() -> str | None:
    """Return where `wasm-tools` is."""
    return shutil.which(os.environ.get("WASM_TOOLS") or "wasm-tools")


def converted(tool: str, wast: Path, directory: Path) -> list[dict[str, Any]]:
    """Return the commands of a file, whose binaries go to `directory`. Raises UnusableError."""
    directory.mkdir()
    target = directory / "commands.json"
    done = subprocess.run(
        [tool, "json-from-wast", wast, "-o", target, "--wasm-dir", directory],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise UnusableError(f"wasm-tools: {lines[0].removeprefix('error: ')}")
    commands: list[dict[str, Any]] = json.loads(target.read_text())["commands"]
    return commands


class Linked(NamedTuple):
    """A component that can be called."""

    runtime: Runtime
    exports: Mapping[str, Any]


class Runner:
    """Runs the commands of one file after another."""

    def __init__(self, engine: Engine, *, verbose: bool = False) -> None:
        self._engine = engine
        self._verbose = verbose
        self._modules: dict[str, Module] = {}
        self._definitions: dict[str, bytes] = {}
        self._instances: dict[str, Linked] = {}

    def file(
        self, commands: Sequence[Mapping[str, Any]], directory: Path
    ) -> Iterator[tuple[int, str | None]]:
        """Run a file's commands. Yields for each its line, and what was wrong with it."""
        self._definitions = {}
        self._instances = {}
        for command in commands:
            told = None
            try:
                with _limited():
                    getattr(self, "_" + command["type"])(command, directory)
            except UnfitError as error:
                told = str(error)
            except (Trap, CoreTrap, ModuleError) as error:
                told = f"{type(error).__name__}: {error}"
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # wasmer's wheels panic
                told = f"internal: {type(error).__name__}: {error}"
            yield command["line"], told

    # Components.

    def _module_of(self, binary: bytes) -> Module:
        digest = hashlib.sha256(binary).hexdigest()
        if digest not in self._modules:
            self._modules[digest] = self._engine.load(self._engine.compile(binary))
        return self._modules[digest]

    def _check(self, binary: bytes) -> None:
        """Raise ModuleError unless it is valid."""
        if is_component(binary[:8]):
            for module in _modules_in(validate(decode(binary), binary)):
                self._module_of(binary[module.offset : module.offset + module.length])
        else:
            self._module_of(binary)

    def _linked(self, binary: bytes) -> Linked:
        self._check(binary)
        what = plan_component(binary, Registry())
        modules = [
            self._module_of(binary[module.offset : module.offset + module.length])
            for module in what.modules
        ]
        linker = Linker(what, modules, self._engine.store(), Registry(), None)
        exports: Any = linker.link()
        return Linked(linker.runtime, exports)

    # Commands.

    def _module_definition(self, command: Mapping[str, Any], directory: Path) -> None:
        binary = _binary(command, directory)
        self._check(binary)
        self._definitions[command.get("name", "")] = binary

    def _module(self, command: Mapping[str, Any], directory: Path) -> None:
        self._instances.pop("", None)
        self._instances[""] = linked = self._linked(_binary(command, directory))
        if "name" in command:
            self._instances[command["name"]] = linked

    def _module_instance(self, command: Mapping[str, Any], directory: Path) -> None:
        self._instances.pop("", None)
        linked = self._linked(self._definitions[command.get("module", "")])
        self._instances[""] = linked
        if "instance" in command:
            self._instances[command["instance"]] = linked

    def _action(self, command: Mapping[str, Any], directory: Path) -> None:
        self._invoke(command["action"])

    def _assert_return(self, command: Mapping[str, Any], directory: Path) -> None:
        kind, got = self._invoke(command["action"])
        expected = [value(kind, each) for each in command["expected"] if kind is not None]
        if len(expected) != len(command["expected"]) or [got] != (expected or [None]):
            raise UnfitError(f"expected {expected}, got {got!r}")

    def _assert_trap(self, command: Mapping[str, Any], directory: Path) -> None:
        try:
            if "action" in command:
                got: object = self._invoke(command["action"])[1]
            else:
                got = self._linked(_binary(command, directory))
        except (Trap, CoreTrap) as trap:
            if str(trap).startswith("unsupported"):
                raise
            self._differ(command, trap)
            return
        raise UnfitError(f"a trap was expected ({command['text']}), got {got!r}")

    _assert_uninstantiable = _assert_trap

    def _assert_invalid(self, command: Mapping[str, Any], directory: Path) -> None:
        try:
            self._check(_binary(command, directory))
        except ModuleError as error:
            if str(error).startswith("unsupported"):
                raise
            self._differ(command, error)
            return
        raise UnfitError(f"an error was expected ({command['text']})")

    _assert_malformed = _assert_invalid

    def _assert_unlinkable(self, command: Mapping[str, Any], directory: Path) -> None:
        try:
            self._linked(_binary(command, directory))
        except ModuleError as error:
            self._differ(command, error)
            return
        raise UnfitError(f"an error was expected ({command['text']})")

    def _differ(self, command: Mapping[str, Any], got: BaseException) -> None:
        if self._verbose and command["text"] not in str(got):
            print(f"    {command['line']}: {command['text']!r} is here {str(got)!r}")

    def _invoke(self, action: Mapping[str, Any]) -> tuple[ValueType | None, Any]:
        """Call an export; return the type of what it returns, and that."""
        if action["type"] != "invoke":
            raise UnfitError(f"the action {action['type']!r} is unknown")
        instance = self._instances.get(action.get("module", ""))
        if instance is None:
            raise UnfitError("there is no instance, for it could not be made")
        found: Any = instance.exports
        for name in action["field"].split("."):
            found = found[name]
        callee: Callee = found
        params = [kind for _, kind in callee.type.params]
        args = [value(kind, told) for kind, told in zip(params, action["args"], strict=True)]
        outcome: list[Any] = []
        callee.start(None, lambda: args, lambda result, _: outcome.append(_kept(result)))
        # What goes on behind the result has its turn during the next call.
        instance.runtime.run(lambda: bool(outcome))
        return callee.type.result, outcome[0]


def _modules_in(valid: Valid) -> Iterator[CoreModule]:
    """Yield the core modules of a component, and of those in it."""
    for placed in valid.definitions:
        if isinstance(placed.definition, CoreModule):
            yield placed.definition
    for inner in valid.inner:
        yield from _modules_in(inner)


def _binary(command: Mapping[str, Any], directory: Path) -> bytes:
    file: str = command["filename"]
    return (directory / file).read_bytes()


@contextmanager
def _limited() -> Iterator[None]:
    """Have what takes too long fail."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise UnfitError(f"not over after {_PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def value(kind: ValueType, told: Mapping[str, Any]) -> Any:
    """Return a value in the words of `shim.component.types`, of one in those of the converter."""
    return _value(kind, told.get("value"))


def _value(kind: ValueType, told: Any) -> Any:
    if kind in (F32, F64):
        return _float(kind, told)
    if kind in (CHAR, STRING) or isinstance(kind, Enum):
        return told
    if isinstance(kind, Flags):
        return frozenset(told)
    if isinstance(kind, Record):
        given = dict(told)
        return tuple(map(value, kind.types, [given[label] for label in kind.labels]))
    if isinstance(kind, Tuple):
        return tuple(map(value, kind.types, told))
    if isinstance(kind, (List, FixedList)) and not isinstance(kind, Map):
        items = [value(kind.element, each) for each in told]
        return bytes(items) if kind.element is U8 else items
    if isinstance(kind, Map):
        return [tuple(map(value, (kind.key, kind.value), pair)) for pair in told]
    if isinstance(kind, Option):
        some = told if told is None else value(kind.payload, told)
        return ("some", some) if told is not None and isinstance(kind.payload, Option) else some
    if isinstance(kind, Result):
        ((label, payload),) = told.items()
        case = kind.ok if label == "Ok" else kind.error
        known = {"Ok": "ok", "Err": "error"}[label]
        return known, None if case is None else value(case, payload)
    if isinstance(kind, Variant):
        of_case = kind.cases[kind.labels.index(told["case"])]
        return told["case"], None if of_case is None else value(of_case, told["payload"])
    return told if isinstance(told, bool) else int(told)


def _float(kind: ValueType, told: str) -> float:
    if told.startswith("nan"):
        return math.nan
    layout = ("<I", "<f") if kind is F32 else ("<Q", "<d")
    (found,) = struct.unpack(layout[1], struct.pack(layout[0], int(told)))
    return math.nan if math.isnan(found) else float(found)


def _kept(result: Any) -> Any:
    """Return the same with copies of what a guest may change."""
    if isinstance(result, memoryview):
        return bytes(result)
    if isinstance(result, (list, tuple)):
        return type(result)(map(_kept, result))
    return result


class Counts:
    """What became of the commands of a file, or of all."""

    def __init__(self) -> None:
        self.passed = self.failed = self.known = self.mended = 0

    def add(self, other: Counts) -> None:
        """Count those, too."""
        self.passed += other.passed
        self.failed += other.failed
        self.known += other.known
        self.mended += other.mended

    def __str__(self) -> str:
        said = f"{self.passed} passed, {self.failed} failed"
        if self.known:
            said += f", {self.known} known to fail"
        if self.mended:
            said += f", {self.mended} of the list pass now"
        return said


def run_file(
    runner: Runner, tool: str, wast: Path, name: str, known: Mapping[Known, str], directory: Path
) -> Counts:
    """Run a file; print what fails, and count."""
    counts = Counts()
    try:
        commands = converted(tool, wast, directory)
    except UnusableError as error:
        if Known(name, 0) in known:
            print(f"{name}: skipped: {known[Known(name, 0)]}")
            counts.known += 1
        else:
            print(f"{name}: {error}")
            counts.failed += 1
        return counts
    for line, problem in runner.file(commands, directory):
        place = Known(name, line)
        if problem is None:
            counts.passed += 1
            if place in known:
                counts.mended += 1
                print(f"{name}:{line}: passes now: take it off {FROZEN.name}")
        elif place in known:
            counts.known += 1
        else:
            counts.failed += 1
            print(f"{name}:{line}: {problem}")
    print(f"{name}: {counts}", flush=True)
    return counts


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 1 if a test failed, 2 if there was nothing to do."""
    parser = argparse.ArgumentParser(
        prog="component-testsuite",
        description="Run the .wast files of WebAssembly/component-model.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="a checkout, or a part of one")
    parser.add_argument(
        "--engine", default="", help="wasmer or wasmtime (default: as the shim chooses)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print other words of traps")
    options = parser.parse_args(arguments)
    tool = wasm_tools()
    files = sorted(options.directory.resolve().rglob("*.wast"))
    try:
        engine = engines.select(options.engine)
        if tool is None:
            raise UnusableError("no `wasm-tools`; `cargo install wasm-tools` makes one")
        if not files:
            raise UnusableError(f"{options.directory}: no .wast files below it")
    except (ModuleError, UnusableError) as error:
        print(f"component-testsuite: {error}", file=sys.stderr)
        return 2
    runner = Runner(engine, verbose=options.verbose)
    known = frozen()
    total = Counts()
    with tempfile.TemporaryDirectory(prefix="component-testsuite-") as scratch:
        for number, wast in enumerate(files):
            name = f"{wast.parent.name}/{wast.name}"
            total.add(run_file(runner, tool, wast, name, known, Path(scratch) / str(number)))
    print(total)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
