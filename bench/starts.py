"""`scripts/bench`: how long `ctr run --rm` of a hello takes, and how many end in a second."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.lab import NATIVE, Kind, containerd_with, make_image, timed
from bench.spread import compare, show
from tests.integration.containerd import Containerd

# Or nothing: before containerd 1.6.22 a client may close its end without having read.
_SAYS = ("hello from pywasm\n", "")
_ROUNDS = 6  # of the throughput


def measure(kinds: Sequence[Kind], turns: int, runs: int, at_once: int) -> dict[str, Any]:
    """Start containers of these kinds one by one and `at_once`, under one containerd."""
    with containerd_with(make_image("hello")) as daemon:
        return {
            "starts": _measure_starts(daemon, kinds, turns),
            "throughput": _measure_throughput(daemon, kinds, runs, at_once),
        }


def _measure_starts(daemon: Containerd, kinds: Sequence[Kind], turns: int) -> dict[str, Any]:
    """Take turns, so that whatever the machine does meets all alike."""
    ms: dict[str, list[float]] = {kind.title: [] for kind in kinds}
    for number in range(turns + 2):
        for kind in kinds if number % 2 else reversed(kinds):
            seconds, output = timed(daemon, kind, "hello")
            assert output in _SAYS
            if number >= 2:  # the first two warm up: zygote, artifact, page cache
                ms[kind.title].append(1000 * seconds)
    return {"turns": turns, "seconds": compare(ms, "ms", NATIVE.title)}


def _measure_throughput(
    daemon: Containerd, kinds: Sequence[Kind], runs: int, at_once: int
) -> dict[str, Any]:
    rates: dict[str, list[float]] = {kind.title: [] for kind in kinds}
    for number in range(_ROUNDS):
        for kind in kinds if number % 2 else reversed(kinds):
            with ThreadPoolExecutor(at_once) as pool:
                begin = time.perf_counter()
                outputs = list(
                    pool.map(lambda _, kind=kind: timed(daemon, kind, "hello"), range(runs))
                )
                rates[kind.title].append(runs / (time.perf_counter() - begin))
            assert all(output in _SAYS for _, output in outputs)
            daemon.leftovers()  # waits for the last shims to be gone
    return {
        "runs": runs,
        "rounds": _ROUNDS,
        "at_once": at_once,
        "rate": compare(rates, "/s", NATIVE.title),
    }


def print_found(result: Mapping[str, Any]) -> None:
    """Print what `measure` found."""
    starts, throughput = result["starts"], result["throughput"]
    print(f"ctr run --rm hello, {starts['turns']} of each in turns")
    show(starts["seconds"])
    print(
        f"\nctr run --rm hello, {throughput['at_once']} at a time, "
        f"{throughput['rounds']} rounds of {throughput['runs']} in turns"
    )
    show(throughput["rate"])
