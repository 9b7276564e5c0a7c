"""Decodes a component, section by section (library; runs in the compiler).

Binary.md, "Component Definitions". After the header, until the end:

    | u8 section | length | content ... |

A section is a vector of definitions, but for a core module and a component, which are one each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shim.component.binary.canon import canonical
from shim.component.binary.definitions import (
    Component,
    CoreExports,
    CoreInstantiation,
    CoreModule,
    Definition,
    Export,
    Exports,
    Import,
    Instantiation,
    Name,
    Placed,
    Target,
)
from shim.component.binary.names import extern_name
from shim.component.binary.reader import Allowance, Flaw, Reader, Unsupported
from shim.component.binary.sorts import alias, core_sort, sort
from shim.component.binary.types import core_type, extern, type_definition

HEADER: Final = b"\0asm\x0d\0\1\0"
_CUSTOM, _CORE_MODULE, _COMPONENT = 0, 1, 4


def decode(binary: bytes) -> Component:
    """Return a component's definitions. Raises ModuleError."""
    return _component(Reader(binary, 0, len(binary), Allowance()))


def _component(reader: Reader) -> Component:
    found: list[Placed] = []
    start = reader.position
    try:
        reader.deeper()
        if reader.data[start : reader.end][: len(HEADER)] != HEADER:
            raise Flaw("no component of the version that is known (0x0d)")
        reader.skip(len(HEADER))
    except Flaw as flaw:
        raise flaw.located("header", start) from None
    while reader.position < reader.end:
        _section(reader, found)
    return Component(found)


def _section(reader: Reader, found: list[Placed]) -> None:
    """Append what is defined in the next section."""
    what, offset = "section", reader.position
    try:
        number = reader.byte()
        section = reader.within(reader.number())
        if number == _CUSTOM:
            section.name()
            return
        if number == _CORE_MODULE:
            start = section.position
            module = CoreModule(start, section.end - start)
            found.append(Placed("core module", start, module))
            section.allowance.take(1)
            return
        if number == _COMPONENT:
            section.allowance.take(1)
            found.append(Placed("component", section.position, _component(section)))
            return
        if number in _GATED:
            raise Unsupported(_GATED[number])
        if number not in _SECTIONS:
            raise Flaw(f"{number:#04x} is no section")
        what, item = _SECTIONS[number]
        for _ in range(section.count()):
            offset = section.position
            found.append(Placed(what, offset, item(section)))
        offset = section.position
        if offset != section.end:
            raise Flaw("a section is longer than its content")
    except Flaw as flaw:
        raise flaw.located(what, offset) from None


def _core_instance(reader: Reader) -> Definition:
    form = reader.byte()
    if form == 0:

        def argument() -> tuple[str, int]:
            name = reader.name()
            reader.expect(0x12, "the only sort of an argument, an instance")
            return name, reader.number()

        return CoreInstantiation(reader.number(), reader.vector(argument))
    if form == 1:
        return CoreExports(
            reader.vector(lambda: (reader.name(), core_sort(reader), reader.number()))
        )
    raise Flaw(f"{form:#04x} is no form of a core instance")


def _instance(reader: Reader) -> Definition:
    form = reader.byte()
    if form == 0:
        component = reader.number()
        return Instantiation(component, reader.vector(lambda: _target(reader, Name(reader.name()))))
    if form == 1:
        return Exports(reader.vector(lambda: _target(reader, extern_name(reader))))
    raise Flaw(f"{form:#04x} is no form of an instance")


def _import(reader: Reader) -> Definition:
    return Import(extern_name(reader), extern(reader))


def _export(reader: Reader) -> Definition:
    target = _target(reader, extern_name(reader))
    return Export(target, reader.optional(lambda: extern(reader)))


def _target(reader: Reader, name: Name) -> Target:
    return Target(name, sort(reader), reader.number())


_GATED: Final = {9: "a start function of a component", 12: "values"}
_SECTIONS: Final[dict[int, tuple[str, Callable[[Reader], Definition]]]] = {
    2: ("core instance", _core_instance),
    3: ("core type", core_type),
    5: ("instance", _instance),
    6: ("alias", alias),
    7: ("type", type_definition),
    8: ("canon", canonical),
    10: ("import", _import),
    11: ("export", _export),
}
