"""Each bench measures the real thing, a little of it, and leaves nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import lives, memory, pods, starts
from bench.lab import NATIVE, WASM, other
from shim.linux.cgroups import hierarchies

KINDS = (WASM, NATIVE)


@pytest.fixture(autouse=True)
def one_containerd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYWASM_CONTAINERD", raising=False)


def test_starts() -> None:
    found = starts.measure(KINDS, turns=2, runs=2, at_once=2)
    for compared in (found["starts"]["seconds"], found["throughput"]["rate"]):
        assert list(compared["spread"]) == ["pywasm", "runc"]
        assert all(row["p50"] > 0 for row in compared["spread"].values())
        assert list(compared["ratio"]) == ["pywasm"]
    starts.print_found(found)


def test_memory() -> None:
    found = memory.measure(KINDS, pods=2)["memory"]
    for measure in ("pss", "private"):
        for kind in KINDS:
            pod, shim, container = (
                found[measure][part]["spread"][kind.title] for part in ("pod", "shim", "container")
            )
            assert pod["samples"] == 2
            assert pod["p50"] == pytest.approx(shim["p50"] + container["p50"])
    memory.print_found({"memory": found})


def test_pods() -> None:
    found = pods.measure(2, 2)
    for kind in KINDS:
        row = found["pods"][kind.title]
        assert row["started_per_second"] > 0
        assert row["pod_kib"]["samples"] == 2
        assert row["pod_kib"]["p50"] > row["sandbox_kib"]["p50"] > 0
    pods.print_found(found)


def test_lives_of_any_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
    shim = tmp_path / "containerd-shim-other-v1"
    shim.symlink_to(f"{sys.prefix}/bin/containerd-shim-pywasm-v1")
    found = lives.measure(5, 2, [other(str(shim))])
    for compared in (found["lives"]["rate"], found["lives"]["seconds"]):
        assert list(compared["spread"])[:2] == ["pywasm", "other-v1"]
        assert all(row["samples"] == 5 and row["p50"] > 0 for row in compared["spread"].values())
    lives.print_found(found)
    for tree in hierarchies():
        assert not list(Path(tree.mount).glob("pywasm-lives-*"))
