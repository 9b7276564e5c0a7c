"""What is done to the heap before the first fork, so that forks share as much of it as they can.

Runs in: zygote.

CPython counts references in the objects, so a fork copies the pages of most objects that it only
looks at. Since 3.12 an object can be immortal (PEP 683, made for processes that fork): its count is
not written any more, and it is never freed. Here every object of the zygote becomes one, since all
were to live as long as it and its forks. The interpreter has no call for that: the count is set
where it is, if it can be seen to be there.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from types import CodeType
from typing import Any

from shim.zygote import layout

_LEAST = 1 << 30
"""No count of an object that is not immortal."""


class UnknownInterpreterError(Exception):
    """The interpreter does not keep its reference counts where they are looked for."""


def settle() -> None:
    """Make what is there a part of all forks to come: to be called once, before the first.

    Raises UnknownInterpreterError if objects cannot be made immortal; all goes on without.
    """
    gc.collect()
    try:
        if sys.version_info >= (3, 12):
            immortalize()
    finally:
        gc.freeze()  # collections in a child then leave the shared pages alone
    if sys.version_info >= (3, 12):
        gc.collect()  # what was freed, and kept to be used again, is given back
        layout.close_gaps()
        layout.use_huge_pages()


def immortalize() -> int:
    """Make every object immortal that the collector can reach; returns how many there are.

    Raises UnknownInterpreterError.
    """
    count = _immortal_count()
    found = _reachable()
    for address in found:
        ctypes.c_uint32.from_address(address).value = count
    return len(found)


def _immortal_count() -> int:
    """The lower half of an immortal object's count, which is the first word of an object."""
    count, probe = _count(None), object()
    before, told = _count(probe), sys.getrefcount(probe)
    others = [probe, probe]
    grown = (_count(probe) - before, sys.getrefcount(probe) - told)
    if sys.byteorder == "little" and count >= _LEAST and grown == (2, 2):
        ctypes.c_uint32.from_address(id(probe)).value = count
        others.append(probe)
        others.clear()
        if _count(probe) == count:
            return count
    raise UnknownInterpreterError(f"reference counts are not where they should be: {sys.version}")


def _count(thing: object) -> int:
    return ctypes.c_uint32.from_address(id(thing)).value


def _reachable() -> dict[int, Any]:
    """All objects but those made here, by address.

    Some are made by asking for them. As long as the result is there, no address changes hands.
    """
    found: dict[int, Any] = {}
    new = gc.get_objects()
    while new:
        news = {id(thing): thing for thing in new if id(thing) not in found}
        found |= news
        new = gc.get_referents(*news.values())
        # What can be in no cycle is not told to the collector.
        for thing in news.values():
            kind = type(thing)  # and not `isinstance`, which a proxy can fool
            if issubclass(kind, dict):
                new += dict.keys(thing)
            elif kind is CodeType:
                new += _parts(thing)
            elif issubclass(kind, type):
                new += (_namespace(thing), thing.__name__, thing.__qualname__)
    return found


def _parts(code: CodeType) -> list[Any]:
    names = (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
    return [*(getattr(code, part) for part in _PARTS), *names]


_PARTS = (
    *("co_consts", "co_names", "co_filename", "co_name", "co_qualname"),
    *("co_linetable", "co_exceptiontable"),
)
_namespace = type.__dict__["__dict__"].__get__
