"""The names of imports and exports in a component's binary (library; runs in the compiler).

Binary.md, "Import and Export Definitions". After the name, attributes:

    0x00 | 0x01 | name
    0x02 | name | count | 0x00: implements, 0x01: version suffix, 0x02: external id | text ...
"""

from __future__ import annotations

from shim.component.binary.definitions import Name
from shim.component.binary.reader import Flaw, Reader

_IMPLEMENTS, _VERSION_SUFFIX, _EXTERNAL_ID = range(3)


def extern_name(reader: Reader) -> Name:
    """Read a name with its attributes."""
    form = reader.byte()
    if form > 2:
        raise Flaw(f"{form:#04x} is no form of a name")
    text = reader.name()
    attributes: dict[int, str] = {}
    for _ in range(reader.count() if form == 2 else 0):
        kind = reader.byte()
        if kind > _EXTERNAL_ID:
            raise Flaw(f"{kind:#04x} is no attribute of a name")
        if kind in attributes:
            raise Flaw(f"{text!r} has an attribute twice")
        attributes[kind] = reader.name()
    return Name(text, attributes.get(_IMPLEMENTS), attributes.get(_VERSION_SUFFIX))
