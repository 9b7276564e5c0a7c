"""Numbers as engines pass them in native code: in slots, at an address (library).

A slot is some bytes with a number at its beginning, or somewhere else; `struct` formats say where.
All slots are read and written through one window onto all memory: a view made anew for each call
would cost as much as the call.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from shim.engines.base import MAX_PARAMS, ModuleError

Formats = Mapping[str, str]
"""The format of a slot, by the name of its number's type."""

_ADDRESSES: Final = 1 << 48  # what a process has, on the machines that there are
MEMORY: Final = memoryview((ctypes.c_char * _ADDRESSES).from_address(0)).cast("B")
"""All memory of this process."""
WORDS: Final = MEMORY.cast("Q")
"""The same in words of eight bytes."""

_CALLS: Final = 3 if sys.version_info >= (3, 12) else 8
"""A callback, an entry and its `failed`; older interpreters count calls of C functions as well."""

HALF: Final = {"i32": 1 << 31, "i64": 1 << 63}
"""How many of the integers of a type are not negative."""


def layout(kinds: Sequence[str], formats: Formats) -> struct.Struct:
    """Return how slots of these types lie in memory. Raises ModuleError for other than numbers."""
    for kind in kinds:
        if kind not in formats:
            raise ModuleError(f"{kind} is no type of numbers")
    return struct.Struct("<" + "".join(formats[kind] for kind in kinds))


def host_entry(
    call: Callable[..., Any],
    params: Sequence[str],
    results: Sequence[str],
    formats: Formats,
    failed: Callable[[BaseException, int], int | None],
) -> Callable[[int, int], int | None]:
    """Return what an engine is to call for a host function.

    It is called with the addresses of the arguments and of the result. No exception may leave it:
    ctypes would print and then forget it. What it returns, where there is one, is what `failed`
    makes of it and of the address of the result. Raises ModuleError for what is no host function.
    """
    if len(params) > MAX_PARAMS or len(results) > 1:
        raise ModuleError("a host function has too many parameters or results")
    unpack = layout(params, formats).unpack_from
    pack = layout(results, formats).pack_into if results else None

    def entry(arguments: int, target: int) -> int | None:
        try:
            result = call(*unpack(MEMORY, arguments))
            if pack is not None:
                try:
                    pack(MEMORY, target, result)
                except struct.error:  # rarely
                    pack(MEMORY, target, *signed((result,), results))
        except BaseException as error:
            return failed(error, target)
        return None

    return entry


def guest_function(
    slots: ctypes.Array[ctypes.c_ubyte],
    params: Sequence[str],
    results: Sequence[str],
    formats: Formats,
    invoke: Callable[[], int | None],
    trap: ctypes.c_void_p,
    failure: Callable[[int | None], BaseException],
) -> Callable[..., Any]:
    """Return what calls a guest's function by `invoke`, with these slots.

    One set of slots serves calls within calls, too: `invoke` reads all arguments before it begins,
    and writes all results when it ends. It has failed where it returns something, or leaves
    something in `trap`. Raises ModuleError for a function of other than numbers.
    """
    pack, unpack = layout(params, formats).pack_into, layout(results, formats).unpack_from
    single = len(results) == 1
    view = memoryview(slots).cast("B")

    def call(*arguments: Any) -> Any:
        try:
            pack(view, 0, *arguments)
        except struct.error:  # rarely
            pack(view, 0, *signed(arguments, params))
        make_sure_of_room()
        failed = invoke()
        if failed is not None or trap.value is not None:
            raise failure(failed)
        found = unpack(view)
        return found[0] if single else found or None

    return call


def window(
    size: Callable[[], int], address: Callable[[], int], keep: object
) -> Callable[[], memoryview]:
    """Return what returns a view of all of a guest's memory, as long as it is then.

    The memory must not move when it grows, and is there for as long as the object to `keep`.
    """
    view = memoryview(bytearray())

    def fetched(_keep: object = keep) -> memoryview:
        nonlocal view
        length = size()
        if length != len(view):
            start = address()
            view = MEMORY[start : start + length]
        return view

    return fetched


def make_sure_of_room(calls: int = _CALLS) -> None:
    """Raise RecursionError where a host function that the guest calls could not do so.

    An exception that comes up before a callback has begun, or while it handles one, would be lost:
    the guest would go on.
    """
    if calls > 1:
        make_sure_of_room(calls - 1)


def signed(numbers: Sequence[Any], kinds: Sequence[str]) -> list[Any]:
    """Return the numbers with all integers as signed ones, which is all that is wrong with them."""
    signed = []
    for number, kind in zip(numbers, kinds, strict=True):
        half = HALF.get(kind)
        signed.append(number if half is None else (number + half) % (2 * half) - half)
    return signed
