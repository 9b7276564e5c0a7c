"""Canonical definitions in a component's binary (library; runs in the compiler).

Binary.md, "Canonical Definitions". What follows a built-in's number is written as in the table:
`t` a type's index, `r` a result, `o` options, `a` a flag for `async`, `c` one for `cancellable`,
`m` a memory, `i` a context's slot, `f` a core function's type, `b` a core table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shim.component.binary import core
from shim.component.binary.definitions import BuiltIn, Lift, Lower, Option
from shim.component.binary.reader import Flaw, Reader, Unsupported
from shim.component.binary.types import result

_BUILT_INS: Final = {
    0x02: ("resource.new", "t"),
    0x03: ("resource.drop", "t"),
    0x04: ("resource.rep", "t"),
    0x05: ("task.cancel", ""),
    0x06: ("subtask.cancel", "a"),
    0x09: ("task.return", "ro"),
    0x0A: ("context.get", "i"),
    0x0B: ("context.set", "i"),
    0x0C: ("thread.yield", "c"),
    0x0D: ("subtask.drop", ""),
    0x0E: ("stream.new", "t"),
    0x0F: ("stream.read", "to"),
    0x10: ("stream.write", "to"),
    0x11: ("stream.cancel-read", "ta"),
    0x12: ("stream.cancel-write", "ta"),
    0x13: ("stream.drop-readable", "t"),
    0x14: ("stream.drop-writable", "t"),
    0x15: ("future.new", "t"),
    0x16: ("future.read", "to"),
    0x17: ("future.write", "to"),
    0x18: ("future.cancel-read", "ta"),
    0x19: ("future.cancel-write", "ta"),
    0x1A: ("future.drop-readable", "t"),
    0x1B: ("future.drop-writable", "t"),
    0x1C: ("error-context.new", "o"),
    0x1D: ("error-context.debug-message", "o"),
    0x1E: ("error-context.drop", ""),
    0x1F: ("waitable-set.new", ""),
    0x20: ("waitable-set.wait", "cm"),
    0x21: ("waitable-set.poll", "cm"),
    0x22: ("waitable-set.drop", ""),
    0x23: ("waitable.join", ""),
    0x24: ("backpressure.inc", ""),
    0x25: ("backpressure.dec", ""),
    0x26: ("thread.index", ""),
    0x27: ("thread.new-indirect", "fb"),
    0x28: ("thread.resume-later", ""),
    0x29: ("thread.suspend", "c"),
    0x2A: ("thread.suspend-then-resume", "c"),
    0x2B: ("thread.yield-then-resume", "c"),
    0x2C: ("thread.suspend-then-promote", "c"),
    0x2D: ("thread.yield-then-promote", "c"),
}
_SPAWNED: Final = {
    0x40: "thread.spawn-ref",
    0x41: "thread.spawn-indirect",
    0x42: "thread.available-parallelism",
}
_OPTIONS: Final = {
    0x00: "string-encoding=utf8",
    0x01: "string-encoding=utf16",
    0x02: "string-encoding=latin1+utf16",
    0x06: "async",
}
_OPTIONS_WITH_INDEX: Final = {
    0x03: "memory",
    0x04: "realloc",
    0x05: "post-return",
    0x07: "callback",
}
_OPTIONS_OF_HEAP: Final = {0x08: "core-type", 0x09: "gc"}


def canonical(reader: Reader) -> Lift | Lower | BuiltIn:
    """Read a canonical definition."""
    kind = reader.byte()
    if kind == 0:
        reader.expect(0, "what is lifted, a function")
        return Lift(reader.number(), _options(reader), reader.number())
    if kind == 1:
        reader.expect(0, "what is lowered, a function")
        return Lower(reader.number(), _options(reader))
    if kind in _SPAWNED:
        raise Unsupported(f"`{_SPAWNED[kind]}`: components have one thread here")
    if kind not in _BUILT_INS:
        raise Flaw(f"{kind:#04x} is no canonical definition")
    name, operands = _BUILT_INS[kind]
    return BuiltIn(name, **{_FIELDS[each]: _OPERANDS[each](reader) for each in operands})


def _slot(reader: Reader) -> int:
    kind = core.value_type(reader)
    if kind != "i32":
        raise Unsupported(f"a context of {kind}: only i32 is kept")
    return reader.number()


def _options(reader: Reader) -> list[Option]:
    return reader.vector(lambda: _option(reader))


def _option(reader: Reader) -> Option:
    kind = reader.byte()
    if kind in _OPTIONS:
        return Option(_OPTIONS[kind])
    if kind in _OPTIONS_WITH_INDEX:
        return Option(_OPTIONS_WITH_INDEX[kind], reader.number())
    if kind in _OPTIONS_OF_HEAP:
        raise Unsupported(f"the canonical option `{_OPTIONS_OF_HEAP[kind]}`")
    raise Flaw(f"{kind:#04x} is no canonical option")


_OPERANDS: Final[dict[str, Callable[[Reader], Any]]] = {
    "t": Reader.number,
    "r": result,
    "o": _options,
    "m": lambda reader: [Option("memory", reader.number())],
    "i": _slot,
    "a": lambda reader: reader.flag("`async`"),
    "c": lambda reader: reader.flag("`cancellable`"),
    "f": Reader.number,
    "b": Reader.number,
}
_FIELDS: Final = {
    "t": "type",
    "r": "type",
    "o": "options",
    "m": "options",
    "i": "number",
    "a": "flag",
    "c": "flag",
    "f": "type",
    "b": "table",
}
