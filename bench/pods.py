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
from tests.cri.kubelet import Container, Kubelet, Pod
from tests.cri.node import PAUSE, Node, pause_image
from tests.integration.containerd import eventually, pss

_KINDS = (WASM, NATIVE)
_HANDLERS = {WASM.title: "pywasm", NATIVE.title: "runc"}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Made(NamedTuple):
    pod: Pod
    container: Container


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
    return result


def _one(kubelet: Kubelet, kind: Kind) -> _Made:
    pod = kubelet.run_pod(_HANDLERS[kind.title])
    return _Made(pod, pod.run(IMAGE, kind.program("idle")))


def _remove(made: _Made) -> None:
    made.pod.stop()
    made.pod.remove()


def _measure(node: Node, kubelet: Kubelet, kind: Kind, pods: int, at_once: int) -> dict[str, Any]:
    with ThreadPoolExecutor(at_once) as pool:
        seconds, made = _timed(pool, lambda _: _one(kubelet, kind), range(pods))
        time.sleep(2)  # what a start leaves running for a moment is not what idle pods cost
        weight = _weigh(node, kind, made)
        seconds_to_remove, _ = _timed(pool, _remove, made)
    left = node.leftovers(20)
    assert left == [], left
    return {
        "started_per_second": pods / seconds,
        "removed_per_second": pods / seconds_to_remove,
        **weight,
    }


def _timed(
    pool: ThreadPoolExecutor, job: Callable[[_Item], _Result], items: Sequence[_Item]
) -> tuple[float, list[_Result]]:
    begin = time.perf_counter()
    results = list(pool.map(job, items))
    return time.perf_counter() - begin, results


def _weigh(node: Node, kind: Kind, made: Sequence[_Made]) -> dict[str, float]:
    sandboxes = [one.pod.pid for one in made]
    containers = [one.container.pid for one in made]
    processes = node.processes()
    shims = sorted(set(processes) - {*sandboxes, *containers})
    assert len(shims) == len(made), processes
    weights = {
        name: pss(pids) / len(made) / 1024
        for name, pids in (("shim", shims), ("sandbox", sandboxes), ("container", containers))
    }
    return {
        "per_pod_kib": sum(weights.values()),
        **{f"{name}_kib": weight for name, weight in weights.items()},
        "zygote_kib": pss(node.zygotes() if kind is WASM else []) / 1024,
    }


def show(result: Mapping[str, Any]) -> None:
    """Print what `measure` found."""
    print(
        f"{result['pods']} pods of each with an idle container, "
        f"{result['at_once']} at a time; PSS per pod in KiB"
    )
    columns = "started/s", "removed/s", "pod", "shim", "sandbox", "container"
    print(f"{'':10}" + "".join(f"{name:>11}" for name in columns))
    for kind in _KINDS:
        row = result[kind.title]
        print(
            f"{kind.title:10}{row['started_per_second']:11.1f}{row['removed_per_second']:11.1f}"
            f"{row['per_pod_kib']:11.0f}{row['shim_kib']:11.0f}{row['sandbox_kib']:11.0f}"
            f"{row['container_kib']:11.0f}"
        )
    print(f"besides, once per node: zygote {result[WASM.title]['zygote_kib']:.0f} KiB")
    print("nothing was left behind")
