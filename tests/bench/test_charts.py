from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import charts
from bench.compute import NATIVE_C
from bench.spread import compare

_MACHINE = {
    "machine": {"cpus": 2, "architecture": "x86_64", "kernel": "6.1.0", "python": "3.13.1"},
    "load": {"average_before": 0.1, "others": 0.03, "stolen": 0.0},
}


def _compared(unit: str, *ours: float) -> Any:
    other, runc = ([value * factor for value in ours] for factor in (1.5, 2))
    return compare({"pywasm": ours, "other-v1": other, "runc": runc}, unit, "runc")


def _memory() -> dict[str, Any]:
    parts = {"pod": (4096, 4608), "shim": (2048, 2304), "container": (2048, 2304)}
    return {part: _compared("KiB", *values) for part, values in parts.items()}


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    """What `--json` keeps, of three runs."""
    samples = {NATIVE_C: [100, 101, 102], "wasmer": [125, 126, 127], "wasmtime": [200, 202, 204]}
    kernels = {
        "nbody": compare(samples, "ms", NATIVE_C),
        "matrix": compare(samples, "ms", NATIVE_C),
    }
    documents = [
        {
            "starts": {"turns": 3, "seconds": _compared("ms", 40.25, 41.25, 43.25)},
            "throughput": {"at_once": 8, "rate": _compared("/s", 31, 32, 33)},
        },
        {"lives": {"at_once": 8, "rate": _compared("/s", 150, 160)}},
        {
            "memory": {"pods": 20, "pss": _memory(), "private": _memory()},
            "compute": {"rounds": 3, "versions": {"wasmer": "7.4.2"}, "kernels": kernels},
        },
    ]
    paths = [tmp_path / f"{number}.json" for number in range(len(documents))]
    for path, document in zip(paths, documents, strict=True):
        path.write_text(json.dumps(_MACHINE | document))
    return paths


def _texts(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_what_was_measured_is_drawn(results: list[Path], tmp_path: Path) -> None:
    charts.draw_all(results, tmp_path / "pictures")
    drawn = {path.stem: _texts(path) for path in (tmp_path / "pictures").iterdir()}
    assert set(drawn) == {"starts", "throughput", "lives", "memory", "compute"}
    assert {"pywasm", "other-v1", "runc", "41.2", "82.5"} <= set(drawn["starts"])
    assert {"32.0", "64.0"} <= set(drawn["throughput"])
    assert {"155.0", "310.0"} <= set(drawn["lives"])
    assert {"pywasm, PSS", "runc, private dirty", "2.1", "shim"} <= set(drawn["memory"])
    assert {"nbody", "matrix", "1.00", "0.80", "0.50", "wasmtime"} <= set(drawn["compute"])
    for texts in drawn.values():
        below = " ".join(texts)
        assert "2 CPUs" in below
        assert "3% used by others" in below


def test_only_a_picture(results: list[Path], tmp_path: Path) -> None:
    """A small one, for light and dark, that shows nothing of who made it or when."""
    charts.draw_all(results, tmp_path / "pictures")
    for path in (tmp_path / "pictures").iterdir():
        text = path.read_text()
        assert len(text) < 40 * 1024
        assert "prefers-color-scheme: dark" in text or "prefers-color-scheme:dark" in text
        for word in ("<!--", "<script", "<desc", "http://", "pygal.org"):
            assert word not in text.replace("http://www.w3.org/", "")


def test_the_same_results_make_the_same_bytes(results: list[Path], tmp_path: Path) -> None:
    pictures = []
    for seed in ("1", "2"):
        directory = tmp_path / f"pictures{seed}"
        command = [
            sys.executable,
            "-m",
            "bench",
            "charts",
            *map(str, results),
            "--to",
            str(directory),
        ]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
        pictures.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 5


def test_the_last_of_two_results_counts(results: list[Path], tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    again.write_text(json.dumps(_MACHINE | {"lives": {"at_once": 4, "rate": _compared("/s", 99)}}))
    charts.draw_all([*results, again], tmp_path / "pictures")
    assert "99.0" in _texts(tmp_path / "pictures" / "lives.svg")


def test_nothing_to_draw(tmp_path: Path) -> None:
    path = tmp_path / "wasi.json"
    path.write_text(json.dumps(_MACHINE | {"wasi": {}}))
    with pytest.raises(SystemExit, match="nothing of these"):
        charts.draw_all([path], tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()
