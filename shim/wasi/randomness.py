"""Random bytes, from the kernel's generator (library; runs in the guest)."""

from __future__ import annotations

import os
from typing import Final

_CHUNK: Final = 1 << 20


def fill(target: memoryview) -> None:
    """Fill a buffer of any size."""
    while target:
        data = os.getrandom(min(len(target), _CHUNK))
        target[: len(data)] = data
        target = target[len(data) :]
