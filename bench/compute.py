"""`scripts/bench compute`: how fast guests compute under each engine, beside native C.

The programs are `bench/kernels/*.c`, each compiled to wasm and natively with the same flags, and
run in a container: under this shim, or under runc. They time themselves, so that no start is in
the numbers. An engine's own command, where one is named, runs the same modules outside of any
container: what it is faster by is what the shim costs.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.lab import NATIVE, WASM, Kind, containerd_with, make_image, timed
from bench.spread import compare, plus_minus
from shim import engines
from tests.guests.build import build, names
from tests.integration.containerd import Containerd

KERNELS: Final = Path(__file__).parent / "kernels"
NATIVE_C: Final = "native C"

Run = Callable[[str], str]
"""Runs the kernel of a name, and returns what it has printed."""


def measure(rounds: int, commands: Sequence[str], kernels: Sequence[str] = ()) -> dict[str, Any]:
    """Run all kernels (or these) in turns; `commands` are NAME=COMMAND, which is given a file.

    Raises:
        SystemExit: there is no engine NAME here.
        RuntimeError: a program did not compute the same everywhere.

    """
    kernels = kernels or names(KERNELS)
    versions = {engine.name: engine.version for engine in engines.engines()}
    with containerd_with(make_image(*kernels, sources=KERNELS)) as daemon:
        runs = {NATIVE_C: _contained(daemon, NATIVE)}
        for name in versions:
            runs[name] = _contained(daemon, WASM, "--annotation", f"dev.pywasm.engine={name}")
        for command in commands:
            name, _, words = command.partition("=")
            if name not in versions or not words:
                raise SystemExit(f"bench: {command}: not NAME=COMMAND of {', '.join(versions)}")
            runs[own(name)] = _command(shlex.split(words))
        found = {
            kernel: compare(_turns(runs, kernel, rounds), "ms", NATIVE_C) for kernel in kernels
        }
    return {
        "compute": {
            "rounds": rounds,
            "versions": versions,
            "kernels": found,
            "of_command": {
                name: {kernel: _speed(row, name, own(name)) for kernel, row in found.items()}
                for name in versions
                if own(name) in runs
            },
        }
    }


def own(engine: str) -> str:
    """Return what is said for an engine's own command."""
    return f"{engine}'s command"


def _contained(daemon: Containerd, kind: Kind, *options: str) -> Run:
    return lambda kernel: timed(daemon, kind, kernel, *options)[1]


def _command(words: Sequence[str]) -> Run:
    def run(kernel: str) -> str:
        file = str(build(kernel, sources=KERNELS))
        done = subprocess.run([*words, file], check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    return run


def _turns(runs: dict[str, Run], kernel: str, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds that each took; once before, artifacts and page cache are warmed."""
    ms: dict[str, list[float]] = {who: [] for who in runs}
    for number in range(rounds + 1):
        results = {}
        for who in runs if number % 2 else reversed(runs):
            ns, results[who] = runs[who](kernel).split()
            if number:
                ms[who].append(int(ns) / 1e6)
        if len(set(results.values())) > 1:
            raise RuntimeError(f"{kernel}: {results}")
    return ms


def _speed(row: Mapping[str, Any], who: str, other: str) -> float:
    """Return how fast one is, relative to the other."""
    spread = row["spread"]
    return float(spread[other]["p50"] / spread[who]["p50"])


def print_found(result: Mapping[str, Any]) -> None:
    """Print what `measure` found."""
    compute = result["compute"]
    kernels = compute["kernels"]
    titles = list(next(iter(kernels.values()))["spread"])
    versions = ", ".join(f"{name} {version}" for name, version in compute["versions"].items())
    print(
        f"{compute['rounds']} runs of each in turns ({versions}): medians in ms, ± half of what "
        "lies between\nthe quartiles; in brackets: speed relative to native C"
    )
    print(f"{'':14}" + "".join(f"{title:>20}{'':8}" for title in titles))
    for kernel, row in kernels.items():
        line = f"{kernel:14}"
        for title in titles:
            spread = row["spread"][title]
            line += f"{spread['p50']:14.0f} {plus_minus(spread):>5}"
            line += (
                f"{'':8}" if title == NATIVE_C else f"{f'[{_speed(row, title, NATIVE_C):.2f}]':>8}"
            )
        print(line)
    for title in titles[1:]:
        speeds = [_speed(row, title, NATIVE_C) for row in kernels.values()]
        print(f"{title} / {NATIVE_C}: {_overall(speeds)}")
    for name, speeds in compute["of_command"].items():
        print(f"{name} / its own command: {_overall(list(speeds.values()))}")


def _overall(speeds: Sequence[float]) -> str:
    mean = statistics.geometric_mean(speeds)
    return f"{mean:.2f} of the speed (geometric mean; {min(speeds):.2f} to {max(speeds):.2f})"
