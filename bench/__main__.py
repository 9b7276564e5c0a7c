"""`scripts/bench`: what can be measured, and how it is asked for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import load
from bench.lab import NATIVE, WASM, other

Print = Callable[[dict[str, Any]], None]


def main() -> None:
    """Measure, print, and keep what was measured."""
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("--") and arguments[0] != "--help"):
        arguments.insert(0, "run")
    options = _parser().parse_args(arguments)
    if options.what == "charts":
        from bench import charts

        charts.draw_all(options.results, options.to)
        return

    load.adopt()
    result: dict[str, Any] = {}
    with load.observed(result):
        found, print_found = _measure(options)
    result |= found
    print_found(result)
    print()
    load.show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _measure(options: argparse.Namespace) -> tuple[dict[str, Any], Print]:
    # Each imports much that the others do not need.
    if options.what == "compute":
        from bench import compute

        return compute.measure(options.rounds, options.command), compute.print_found
    if options.what == "component":
        from bench import component

        return component.measure(options.turns, options.rounds), component.print_found
    if options.what == "wasi":
        from bench import wasi

        return wasi.measure(options.rounds), wasi.print_found
    if options.what == "pods":
        from bench import pods

        return pods.measure(options.pods, options.parallel), pods.print_found
    others = [other(shim) for shim in options.shim]
    if options.what == "lives":
        from bench import lives

        return lives.measure(options.lives, options.parallel, others), lives.print_found
    kinds = [WASM, *(kind for _, kind in others), NATIVE]
    if options.what == "memory":
        from bench import memory

        return memory.measure(kinds, options.pods), memory.print_found
    from bench import starts

    found = starts.measure(kinds, options.pairs, options.runs, options.parallel)
    return found, starts.print_found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench")
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")

    def command(
        name: str, help: str, parents: Sequence[argparse.ArgumentParser]
    ) -> Callable[..., Any]:
        return commands.add_parser(name, help=help, parents=parents).add_argument

    def parent(*names: str, **settings: Any) -> argparse.ArgumentParser:
        made = argparse.ArgumentParser(add_help=False)
        made.add_argument(*names, **settings)
        return made

    json = parent("--json", type=Path, metavar="FILE", help="keep what was measured in a file")
    parallel = parent("--parallel", type=int, default=8, help="at a time (8)")
    shim = parent(
        "--shim", action="append", default=[], help="another wasm shim, by its path or on PATH"
    )

    add = command("run", "start times and throughput: the default", [json, parallel, shim])
    add("--pairs", type=int, default=40, help="start times: of each (40)")
    add("--runs", type=int, default=60, help="throughput: of each in a round (60)")
    add = command("lives", "lives of containers without containerd", [json, parallel, shim])
    add("--lives", type=int, default=1000, help="of each (1000)")
    add = command("memory", "what idle pods weigh", [json, shim])
    add("--pods", type=int, default=20, help="of each (20)")
    add = command("pods", "many pods at once, through CRI", [json, parallel])
    add("--pods", type=int, default=200, help="of each (200)")
    add = command("wasi", "what WASI calls cost, beside native ones", [json])
    add("--rounds", type=int, default=11, help="samples of each (11)")
    add = command("component", "what components cost, beside modules", [json])
    add("--turns", type=int, default=30, help="starts of each (30)")
    add("--rounds", type=int, default=7, help="samples of each call (7)")
    add = command("compute", "how fast guests compute, beside native C", [json])
    add("--rounds", type=int, default=7, help="samples of each (7)")
    add(
        "--command",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="an engine's own command, as in wasmtime='/usr/bin/wasmtime run'",
    )
    add = command("charts", "draw what --json has kept", [])
    add("results", nargs="+", type=Path, metavar="FILE")
    add("--to", type=Path, required=True, metavar="DIRECTORY", help="where pictures go")
    return parser


if __name__ == "__main__":
    main()
