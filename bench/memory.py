"""`scripts/bench memory`: what idle pods cost, each one shim and one container, by `ctr`."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bench.lab import NATIVE, WASM, Kind, containerd_with, make_image, run_command, timed
from bench.spread import between, compare
from tests.integration.containerd import Containerd, eventually, parent_of

_PARTS = ("pod", "shim", "container")
_MEASURES = {"pss": "PSS", "private": "private dirty"}


def measure(kinds: Sequence[Kind], pods: int) -> dict[str, Any]:
    """Weigh `pods` idle pods of each kind, all of a kind up at once, in KiB."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {
        name: {part: {} for part in _PARTS} for name in _MEASURES
    }
    result: dict[str, Any] = {"pods": pods}
    with containerd_with(make_image("hello", "idle")) as daemon:
        for kind in kinds:
            timed(daemon, kind, "hello")  # the artifact exists before anything is counted
            for pod in _idle_pods(daemon, kind, pods, result):
                for name, (shim, container) in pod.items():
                    for part, kib in zip(_PARTS, (shim + container, shim, container), strict=True):
                        found[name][part].setdefault(kind.title, []).append(kib)
    for name, parts in found.items():
        result[name] = {part: compare(kib, "KiB", NATIVE.title) for part, kib in parts.items()}
    return {"memory": result}


def _idle_pods(
    daemon: Containerd, kind: Kind, pods: int, result: dict[str, Any]
) -> list[dict[str, tuple[float, float]]]:
    """Return what shim and container of each pod weigh, by measure."""
    names = []
    try:
        for _ in range(pods):
            command = run_command(daemon, kind, "idle", "--detach", "--null-io")
            subprocess.run(command, env=daemon.env, check=True, timeout=60)
            names.append(command[-2])
        eventually(lambda: len(daemon.processes()) >= 2 * pods)
        time.sleep(2)  # what a start leaves running for a moment is not what idle pods cost
        tasks = daemon.checked("task", "list").splitlines()[1:]
        found = []
        for pid in (int(line.split()[1]) for line in tasks):
            shim, container = weight(parent_of(pid)), weight(pid)
            found.append({name: (shim[name], container[name]) for name in _MEASURES})
        if kind is WASM:
            result["zygote"] = sum(weight(pid)["pss"] for pid in daemon.zygotes())
        return found
    finally:
        for name in names:
            daemon.remove(name)
        daemon.leftovers()


def weight(pid: int) -> dict[str, float]:
    """Return what a process weighs in KiB by each measure (proc(5), smaps_rollup).

    PSS is its share of what it has mapped; private dirty is what it alone has, and has written to.
    """
    names = {"Pss:": "pss", "Private_Dirty:": "private"}
    with open(f"/proc/{pid}/smaps_rollup") as file:
        words = [line.split() for line in file]
    return {names[line[0]]: float(line[1]) for line in words if line[0] in names}


def print_found(result: Mapping[str, Any]) -> None:
    """Print what `measure` found."""
    memory = result["memory"]
    print(f"{memory['pods']} idle pods of each, medians in KiB")
    for name, title in _MEASURES.items():
        parts = memory[name]
        print(f"{title:24}{'pod':>10}{'quartiles':>20}" + "".join(f"{p:>11}" for p in _PARTS[1:]))
        for kind, pod in parts["pod"]["spread"].items():
            print(
                f"{kind:24}{pod['p50']:10.0f}{between(pod['p25'], pod['p75'], 0):>20}"
                + "".join(f"{parts[part]['spread'][kind]['p50']:11.0f}" for part in _PARTS[1:])
            )
        for kind, ratio in parts["pod"]["ratio"].items():
            print(f"{kind} / {parts['pod']['to']}: {ratio['medians']:.2f}")
    print(f"besides, once per node: zygote {memory['zygote']:.0f} KiB")
