"""`scripts/bench`: start times, throughput, lives, memory, pods, beside runc's; WASI calls."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench import wasi
from bench.lab import NATIVE, WASM, Kind, containerd_with, make_image, run_command, timed
from tests.integration.containerd import Containerd, eventually, pss

KINDS = (WASM, NATIVE)


def measure_starts(daemon: Containerd, pairs: int) -> dict[str, Any]:
    """Alternate `ctr run --rm` of both, so that whatever the machine does meets both alike."""
    seconds: dict[str, list[float]] = {kind.title: [] for kind in KINDS}
    for number in range(pairs + 2):
        for kind in KINDS if number % 2 else reversed(KINDS):
            taken, output = timed(daemon, kind, "hello")
            assert output == "hello from pywasm\n"
            if number >= 2:  # the first two warm up: zygote, artifact, page cache
                seconds[kind.title].append(taken)
    result: dict[str, Any] = {"pairs": pairs}
    for title, values in seconds.items():
        values.sort()
        result[title] = {
            "p50_ms": 1000 * statistics.median(values),
            "p95_ms": 1000 * values[min(len(values) - 1, int(0.95 * len(values)))],
        }
    result["p50_ratio"] = result[WASM.title]["p50_ms"] / result[NATIVE.title]["p50_ms"]
    return result


def measure_throughput(daemon: Containerd, runs: int, at_once: int) -> dict[str, Any]:
    """`runs` containers of each kind, `at_once` at a time."""
    result: dict[str, Any] = {"runs": runs, "at_once": at_once}
    rates: dict[str, list[float]] = {kind.title: [] for kind in KINDS}
    # Both ways round, so that neither has the quieter machine.
    for kind in (*KINDS, *reversed(KINDS)):
        with ThreadPoolExecutor(at_once) as pool:
            start = time.perf_counter()
            outputs = list(pool.map(lambda _, kind=kind: timed(daemon, kind, "hello"), range(runs)))
            rates[kind.title].append(runs / (time.perf_counter() - start))
        assert all(output == "hello from pywasm\n" for _, output in outputs)
        daemon.leftovers()  # waits for the last shims to be gone
    for title, values in rates.items():
        result[title] = {"per_second": statistics.mean(values)}
    result["ratio"] = result[WASM.title]["per_second"] / result[NATIVE.title]["per_second"]
    return result


def measure_memory(daemon: Containerd, pods: int) -> dict[str, Any]:
    """PSS of `pods` idle pods, each one shim and one container, all of them up at once."""
    result: dict[str, Any] = {"pods": pods}
    timed(daemon, WASM, "hello")  # the zygote and the artifact exist before anything is counted
    for kind in KINDS:
        result[kind.title] = _idle_pods(daemon, kind, pods)
    result["ratio"] = result[WASM.title]["per_pod_kib"] / result[NATIVE.title]["per_pod_kib"]
    return result


def _idle_pods(daemon: Containerd, kind: Kind, pods: int) -> dict[str, float]:
    names = []
    try:
        for _ in range(pods):
            command = run_command(daemon, kind, "idle", "--detach", "--null-io")
            subprocess.run(command, env=daemon.env, check=True, timeout=60)
            names.append(command[-2])
        eventually(lambda: len(daemon.processes()) >= 2 * pods)
        time.sleep(2)  # what a start leaves running for a moment is not what idle pods cost
        processes = daemon.processes()
        tasks = daemon.checked("task", "list").splitlines()[1:]
        inits = {int(line.split()[1]) for line in tasks}
        shims = set(processes) - inits
        zygotes = daemon.zygotes() if kind is WASM else []
        return {
            "processes_per_pod": len(processes) / pods,
            "per_pod_kib": pss(processes) / pods / 1024,
            "shim_kib": pss(sorted(shims)) / pods / 1024,
            "container_kib": pss(sorted(inits)) / pods / 1024,
            "zygote_kib": pss(zygotes) / 1024,
        }
    finally:
        for name in names:
            daemon.remove(name)
        daemon.leftovers()


def print_starts(result: Mapping[str, Any]) -> None:
    """Print what `measure_starts` found."""
    print(f"ctr run --rm hello, {result['pairs']} pairs in turns")
    print(f"{'':10}{'p50':>10}{'p95':>10}")
    for kind in KINDS:
        row = result[kind.title]
        print(f"{kind.title:10}{row['p50_ms']:7.1f} ms{row['p95_ms']:7.1f} ms")
    print(f"p50 ratio {result['p50_ratio']:.2f}")


def print_throughput(result: Mapping[str, Any]) -> None:
    """Print what `measure_throughput` found."""
    print(f"ctr run --rm hello, {result['runs']} runs of each, {result['at_once']} at a time")
    for kind in KINDS:
        print(f"{kind.title:10}{result[kind.title]['per_second']:7.1f} per second")
    print(f"throughput ratio {result['ratio']:.2f}")


def print_memory(result: Mapping[str, Any]) -> None:
    """Print what `measure_memory` found."""
    print(f"{result['pods']} idle pods of each, PSS per pod in KiB")
    print(f"{'':10}{'pod':>8}{'shim':>8}{'container':>11}")
    for kind in KINDS:
        row = result[kind.title]
        print(
            f"{kind.title:10}{row['per_pod_kib']:8.0f}{row['shim_kib']:8.0f}"
            f"{row['container_kib']:11.0f}"
        )
    print(f"ratio {result['ratio']:.2f}; besides, once per node: zygote", end=" ")
    print(f"{result[WASM.title]['zygote_kib']:.0f} KiB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument(
        "what", nargs="?", choices=("run", "lives", "memory", "pods", "wasi"), default="run"
    )
    parser.add_argument("--pairs", type=int, default=40, help="start times: pairs (40)")
    parser.add_argument("--runs", type=int, default=60, help="throughput: runs of each (60)")
    parser.add_argument("--parallel", type=int, default=8, help="at a time (8)")
    parser.add_argument(
        "--pods", type=int, help="memory, pods: idle pods of each (20 by ctr, 200 by CRI)"
    )
    parser.add_argument("--lives", type=int, default=1000, help="lives: of each (1000)")
    parser.add_argument("--shim", action="append", default=[], help="lives: another wasm shim")
    parser.add_argument("--rounds", type=int, default=11, help="wasi: samples of each (11)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args(arguments)

    result: dict[str, Any] = {"cpus": os.cpu_count()}
    if options.what == "wasi":
        result["wasi"] = wasi.measure(options.rounds)
        print(json.dumps(result, indent=2)) if options.json else wasi.show(result["wasi"])
        return
    if options.what == "lives":
        from bench import lives

        result["lives"] = lives.measure(options.lives, options.parallel, options.shim)
        print(json.dumps(result, indent=2)) if options.json else lives.show(result["lives"])
        return
    if options.what == "pods":
        from bench import pods

        result["pods"] = pods.measure(options.pods or 200, options.parallel)
        print(json.dumps(result, indent=2)) if options.json else pods.show(result["pods"])
        return
    with containerd_with(make_image("hello", "idle")) as daemon:
        if options.what == "memory":
            result["memory"] = measure_memory(daemon, options.pods or 20)
        else:
            result["starts"] = measure_starts(daemon, options.pairs)
            result["throughput"] = measure_throughput(daemon, options.runs, options.parallel)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    if "memory" in result:
        print_memory(result["memory"])
    else:
        print_starts(result["starts"])
        print()
        print_throughput(result["throughput"])


if __name__ == "__main__":
    main()
