from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from oci.decoding import SpecError
from oci.linux import TimeOffset
from shim.linux import time_namespace

Alive = Callable[..., AbstractContextManager[int]]


def test_child_has_its_own_clocks(alive: Alive) -> None:
    offsets = {
        "monotonic": TimeOffset(secs=1_000_000),
        "boottime": TimeOffset(secs=2_000_000, nanosecs=7),
    }
    before = os.readlink("/proc/self/ns/time")
    now = time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)

    def entry() -> None:
        monotonic = time.clock_gettime(time.CLOCK_MONOTONIC)
        boottime = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert 0 <= monotonic - now[0] - 1_000_000 < 60
        assert 0 <= boottime - now[1] - 2_000_000 < 60

    with time_namespace.for_children(offsets), alive(entry) as pid:
        inside = os.readlink(f"/proc/{pid}/ns/time")
        assert inside != before
        with open(f"/proc/{pid}/timens_offsets") as file:
            shown = [line.split() for line in file]
    assert shown == [["monotonic", "1000000", "0"], ["boottime", "2000000", "7"]]
    # Ours is as it was, and so is that of the next child.
    assert os.readlink("/proc/self/ns/time") == before
    assert os.readlink("/proc/self/ns/time_for_children") == before
    assert time.clock_gettime(time.CLOCK_MONOTONIC) - now[0] < 60


def test_clock_that_there_is_not() -> None:
    with pytest.raises(SpecError) as e, time_namespace.for_children({"realtime": TimeOffset()}):
        pass
    assert str(e.value) == "linux.timeOffsets['realtime']: unknown clock"
    with (
        pytest.raises(SpecError, match="a second or more"),
        time_namespace.for_children({"monotonic": TimeOffset(nanosecs=10**9)}),
    ):
        pass


def test_clock_that_would_be_negative_leaves_nothing() -> None:
    before = os.readlink("/proc/self/ns/time_for_children")
    fds = os.listdir("/proc/self/fd")
    with (
        pytest.raises(OSError) as e,
        time_namespace.for_children({"boottime": TimeOffset(secs=-(10**9))}),
    ):
        pass
    assert e.value.filename == "linux.timeOffsets['boottime']"
    assert os.readlink("/proc/self/ns/time_for_children") == before
    assert os.listdir("/proc/self/fd") == fds
