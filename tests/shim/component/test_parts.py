"""Where a component's core modules are: what a privileged guest reads."""

from __future__ import annotations

import struct

import pytest

from shim.component import plan
from shim.component.parts import HEADER, MOST, Part, packed, parts_of, plan_of
from shim.engines.base import ModuleError


def plan_with(*modules: plan.Module) -> plan.Plan:
    return plan.Plan(list(modules), [], [], [], [-1], [], [], [], [], {})


def test_there_and_back() -> None:
    what = plan_with(plan.Module(8, 100), plan.Module(200, 1 << 40))
    kept = packed(what)
    assert parts_of(kept) == [Part(8, 100), Part(200, 1 << 40)]
    assert plan_of(kept) == what
    assert parts_of(packed(plan_with())) == []


def test_as_many_as_there_may_be() -> None:
    kept = packed(plan_with(*[plan.Module(number, 8) for number in range(MOST)]))
    assert len(parts_of(kept[:HEADER])) == MOST
    with pytest.raises(ModuleError, match=f"has {MOST + 1} core modules"):
        packed(plan_with(*[plan.Module(number, 8) for number in range(MOST + 1)]))


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"\1",
        b"\1\0\0\0",
        struct.pack("<IQ", 1, 0),
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        bytes(20),
    ],
)
def test_what_is_none(kept: bytes) -> None:
    with pytest.raises(ModuleError):
        plan_of(kept)
