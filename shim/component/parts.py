"""Where a component's core modules are in it (library).

What is kept of a component begins with that, so that a guest, before it has given up what it may
do, needs to understand no more of it than numbers:

    | u32 count | count times: u64 offset, u64 length | plan |

in bytes, little-endian; the plan is as `plan.encode` makes it.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from shim.component import plan
from shim.engines.base import ModuleError

MOST: Final = 256
"""Core modules of a component. Each is compiled, and loaded, by itself."""

_COUNT: Final = struct.Struct("<I")
_PART: Final = struct.Struct("<QQ")
HEADER: Final = _COUNT.size + MOST * _PART.size
"""Bytes that `parts_of` looks at, at most."""


class Part(NamedTuple):
    """Where a core module is in a component, in bytes."""

    offset: int
    length: int


def packed(what: plan.Plan) -> bytes:
    """Return what is kept of a component. Raises ModuleError where it has too many modules."""
    count = len(what.modules)
    if count > MOST:
        raise ModuleError(f"the component has {count} core modules, and {MOST} are allowed")
    parts = [_PART.pack(module.offset, module.length) for module in what.modules]
    return b"".join([_COUNT.pack(count), *parts, plan.encode(what)])


def parts_of(kept: bytes) -> list[Part]:
    """Return the modules. Raises ModuleError where that is not what was kept."""
    try:
        (count,) = _COUNT.unpack_from(kept)
        if count > MOST:
            raise ModuleError("the component's plan has too many modules")
        return [
            Part(*_PART.unpack_from(kept, _COUNT.size + index * _PART.size))
            for index in range(count)
        ]
    except struct.error:
        raise ModuleError("the component's plan is cut off") from None


def plan_of(kept: bytes) -> plan.Plan:
    """Return the plan. Raises ModuleError where there is none."""
    start = _COUNT.size + len(parts_of(kept)) * _PART.size
    try:
        return plan.decode(kept[start:])
    except plan.DecodeError as error:
        raise ModuleError(f"the component's plan is unusable: {error}") from None
