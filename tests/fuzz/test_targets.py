"""Every target takes its seeds, and a little of what a fuzzer would make of them."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TARGETS = (
    "artifact",
    "builtins",
    "component",
    "config",
    "dns",
    "engines",
    "task",
    "ttrpc",
    "values",
    "wasi",
)
SLOW = {"engines": 15}  # examples, of processes that compile; of the others it is 100


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_and_its_seeds(name: str) -> None:
    target = importlib.import_module(f"tests.fuzz.{name}")
    for seed in target.SEEDS:
        target.fuzz(seed)

    @settings(max_examples=SLOW.get(name, 100))
    @given(st.lists(st.sampled_from(target.SEEDS), min_size=1, max_size=3), st.data())
    def mutated(seeds: list[bytes], data: st.DataObject) -> None:
        made = bytearray(b"".join(seeds))
        for _ in range(data.draw(st.integers(0, 3))):
            start = data.draw(st.integers(0, len(made)))
            made[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        target.fuzz(bytes(made))

    mutated()
