"""Waiting for clocks and descriptors together (library; runs in the guest)."""

from __future__ import annotations

import select
import time
from typing import Final

_DAY: Final = 86_400_000  # ms; poll(2) takes an int of milliseconds, time.sleep somewhat more


def milliseconds(left: int) -> int:
    """Return nanoseconds as poll(2) takes a time: not less than none, and not more than a day."""
    # Rounded up, so as not to wake before the time and spin until it has come.
    return min(max(-(-left // 1_000_000), 0), _DAY)


def wait(masks: dict[int, int], deadline: int | None) -> dict[int, int]:
    """Wait for descriptors until `deadline`, on the monotonic clock; return what poll(2) found.

    `masks` and the result are events by descriptor.
    """
    poller = None
    if masks:
        poller = select.poll()
        for fd, mask in masks.items():
            poller.register(fd, mask)
    while True:
        left = None if deadline is None else deadline - time.monotonic_ns()
        if poller is None:  # sleeping is more precise than poll(2)
            if left is not None and left <= 0:
                return {}
            time.sleep(_DAY / 1e3 if left is None else min(left / 1e9, _DAY / 1e3))
        else:
            found = poller.poll(_DAY if left is None else milliseconds(left))
            if found or (left is not None and left <= 0):
                return dict(found)
