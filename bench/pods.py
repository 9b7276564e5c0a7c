"""`scripts/bench pods`: many pods at once, through containerd's CRI plugin as the kubelet uses it.

Each has a sandbox, a network interface on the node's bridge, and one idle container. What the CNI
plugins take is in the times of both runtimes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from bench.lab import IMAGE, NATIVE, WASM, Kind, make_image
from bench.memory import weight
from bench.spread import Spread, between, spread
from tests.cri.kubelet import Container, Kubelet, Pod
from tests.cri.node import PAUSE, Node, pause_image
from tests.integration.containerd import eventually, parent_of

_KINDS = (WASM, NATIVE)
_HANDLERS = {WASM.title: "pywasm", NATIVE.title: "runc"}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Made(NamedTuple):
    pod: Pod
    container: Container
    seconds: float  # that it took


def measure(pods: int, at_once: int) -> dict[str, Any]:
    """Start, weigh and remove `pods` pods of each kind, `at_once` at a time."""
    result: dict[str, Any] = {"pods": pods, "at_once": at_once}
    with Node(os.environ.get("PYWASM_CONTAINERD") or None) as node:
        for image in (pause_image(), make_image("idle")):
            node.load(image.tar)
        kubelet = Kubelet(node)
        eventually(lambda: all(kubelet.has_image(name) for name in (PAUSE, IMAGE)))
        for kind in _KINDS:
            _one(kubelet, kind).pod.remove()  # warms up: zygote, artifact, page cache
            result[kind.title] = _measure(node, kubelet, kind, pods, at_once)
        kubelet.close()
    return {"pods": result}


def _one(kubelet: Kubelet, kind: Kind) -> _Made:
    begin = time.perf_counter()
    pod = kubelet.run_pod(_HANDLERS[kind.title])
    container = pod.run(IMAGE, kind.program("idle"))
    return _Made(pod, container, time.perf_counter() - begin)


def _remove(made: _Made) -> None:
    made.pod.stop()
    made.pod.remove()


def _measure(node: Node, kubelet: Kubelet, kind: Kind, pods: int, at_once: int) -> dict[str, Any]:
    with ThreadPoolExecutor(at_once) as pool:
        seconds, made = _timed(pool, lambda _: _one(kubelet, kind), range(pods))
        time.sleep(2)  # what a start leaves running for a moment is not what idle pods cost
        weights = _weigh(node, kind, made)
        seconds_to_remove, _ = _timed(pool, _remove, made)
    left = node.leftovers(20)
    assert left == [], left
    return {
        "started_per_second": pods / seconds,
        "removed_per_second": pods / seconds_to_remove,
        "start_ms": spread([1000 * one.seconds for one in made]),
        **weights,
    }


def _timed(
    pool: ThreadPoolExecutor, job: Callable[[_Item], _Result], items: Sequence[_Item]
) -> tuple[float, list[_Result]]:
    begin = time.perf_counter()
    results = list(pool.map(job, items))
    return time.perf_counter() - begin, results


def _weigh(node: Node, kind: Kind, made: Sequence[_Made]) -> dict[str, Spread | float]:
    sandboxes = [one.pod.pid for one in made]
    containers = [one.container.pid for one in made]
    shims = [parent_of(sandbox) for sandbox in sandboxes]
    processes = node.processes()
    assert set(processes) == {*sandboxes, *containers, *shims}, processes
    parts = {
        name: [weight(pid)["pss"] for pid in pids]
        for name, pids in (("shim", shims), ("sandbox", sandboxes), ("container", containers))
    }
    return {
        "pod_kib": spread([sum(pod) for pod in zip(*parts.values(), strict=True)]),
        **{f"{name}_kib": spread(weights) for name, weights in parts.items()},
        "zygote_kib": sum(weight(pid)["pss"] for pid in node.zygotes()) if kind is WASM else 0.0,
    }


def print_found(result: Mapping[str, Any]) -> None:
    """Print what `measure` found."""
    pods = result["pods"]
    ours, theirs = (pods[kind.title] for kind in _KINDS)
    print(f"{pods['pods']} pods of each with an idle container, {pods['at_once']} at a time")
    print(f"{'':10}{'started/s':>11}{'removed/s':>11}{'ms to start':>13}{'quartiles':>18}")
    for kind in _KINDS:
        row = pods[kind.title]
        ms = row["start_ms"]
        print(
            f"{kind.title:10}{row['started_per_second']:11.1f}{row['removed_per_second']:11.1f}"
            f"{ms['p50']:13.1f}{between(ms['p25'], ms['p75']):>18}"
        )
    print(
        f"{'PSS, KiB':10}{'pod':>11}{'shim':>11}{'sandbox':>11}{'container':>11}{'quartiles':>20}"
    )
    for kind in _KINDS:
        row = pods[kind.title]
        pod = row["pod_kib"]
        parts = (row[f"{part}_kib"]["p50"] for part in ("pod", "shim", "sandbox", "container"))
        print(
            f"{kind.title:10}"
            + "".join(f"{kib:11.0f}" for kib in parts)
            + f"{between(pod['p25'], pod['p75'], 0):>20}"
        )
    print(
        f"{WASM.title} / {NATIVE.title}: started per second "
        f"{ours['started_per_second'] / theirs['started_per_second']:.2f}, "
        f"PSS {ours['pod_kib']['p50'] / theirs['pod_kib']['p50']:.2f}"
    )
    print(f"besides, once per node: zygote {ours['zygote_kib']:.0f} KiB; nothing was left behind")
