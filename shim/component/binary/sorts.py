"""Sorts, indices and aliases in a component's binary (library; runs in the compiler).

Binary.md, "Instance Definitions" and "Alias Definitions".
"""

from __future__ import annotations

from typing import Final

from shim.component.binary.definitions import CoreExportAlias, ExportAlias, OuterAlias
from shim.component.binary.reader import Flaw, Reader, Unsupported

_CORE: Final = {
    0x00: "core func",
    0x01: "core table",
    0x02: "core memory",
    0x03: "core global",
    0x04: "core tag",
    0x10: "core type",
    0x11: "core module",
    0x12: "core instance",
}
_SORTS: Final = {1: "func", 3: "type", 4: "component", 5: "instance"}


def core_sort(reader: Reader) -> str:
    """Read a core sort."""
    byte = reader.byte()
    if byte not in _CORE:
        raise Flaw(f"{byte:#04x} is no core sort")
    return _CORE[byte]


def sort(reader: Reader) -> str:
    """Read a sort."""
    byte = reader.byte()
    if byte == 0:
        return core_sort(reader)
    if byte == 2:
        raise Unsupported("values cannot be used")
    if byte not in _SORTS:
        raise Flaw(f"{byte:#04x} is no sort")
    return _SORTS[byte]


def alias(reader: Reader) -> ExportAlias | CoreExportAlias | OuterAlias:
    """Read an alias."""
    kind = sort(reader)
    form = reader.byte()
    if form == 0:
        return ExportAlias(kind, reader.number(), reader.name())
    if form == 1:
        return CoreExportAlias(kind, reader.number(), reader.name())
    if form == 2:
        return OuterAlias(kind, reader.number(), reader.number())
    raise Flaw(f"{form:#04x} is no kind of an alias")
