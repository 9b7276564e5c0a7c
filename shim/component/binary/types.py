"""Types in a component's binary (library; runs in the compiler).

Binary.md, "Type Definitions". An index is a signed number that is not negative; what is negative
says what kind of a type it is, in one byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shim.component.binary import core
from shim.component.binary.definitions import (
    ComponentType,
    CoreTypeDefinition,
    Definition,
    ExportDeclaration,
    Extern,
    FunctionType,
    Import,
    InstanceType,
    ModuleExport,
    ModuleImport,
    ModuleType,
    OuterAlias,
    Placed,
    Reference,
    ResourceType,
    TypeDefinition,
    ValueType,
)
from shim.component.binary.names import extern_name
from shim.component.binary.reader import Flaw, Reader, Unsupported
from shim.component.binary.sorts import alias

_PRIMITIVES: Final = {
    0x7F: "bool", 0x7E: "s8", 0x7D: "u8", 0x7C: "s16", 0x7B: "u16", 0x7A: "s32", 0x79: "u32",
    0x78: "s64", 0x77: "u64", 0x76: "f32", 0x75: "f64", 0x74: "char", 0x73: "string",
    0x64: "error-context",
}  # fmt: skip
_EXTERNS: Final = {1: "func", 4: "component", 5: "instance"}


def type_definition(reader: Reader) -> TypeDefinition:
    """Read a type."""
    byte = reader.byte()
    if byte in _PRIMITIVES:
        return TypeDefinition(ValueType(_PRIMITIVES[byte]))
    if byte in _COMPOUND:
        return TypeDefinition(_COMPOUND[byte](reader))
    if byte in (0x40, 0x43):
        return TypeDefinition(_function(reader, is_async=byte == 0x43))
    if byte == 0x3F:
        representation = core.value_type(reader)
        return TypeDefinition(ResourceType(representation, reader.optional(reader.number)))
    if byte == 0x41:
        return TypeDefinition(ComponentType(_declarations(reader, _component_declaration)))
    if byte == 0x42:
        return TypeDefinition(InstanceType(_declarations(reader, _instance_declaration)))
    raise Flaw(f"{byte:#04x} is no kind of a type")


def reference(reader: Reader) -> Reference:
    """Read a value type."""
    index = reader.signed(33)
    if index >= 0:
        return index
    if index < -64 or index & 0x7F not in _PRIMITIVES:
        raise Flaw(f"{index} is no value type")
    return _PRIMITIVES[index & 0x7F]


def _maybe(reader: Reader) -> Reference | None:
    return reader.optional(lambda: reference(reader))


def result(reader: Reader) -> Reference | None:
    """Read what a function returns."""
    form = reader.byte()
    if form == 0:
        return reference(reader)
    if form != 1 or reader.byte() != 0:
        raise Flaw("a list of results that is neither one nor none")
    return None


def _function(reader: Reader, is_async: bool) -> FunctionType:
    params = reader.vector(lambda: (reader.name(), reference(reader)))
    names = [name for name, _ in params]
    return FunctionType(names, [kind for _, kind in params], result(reader), is_async)


def _record(reader: Reader) -> ValueType:
    fields = reader.vector(lambda: (reader.name(), reference(reader)))
    return ValueType("record", [kind for _, kind in fields], [label for label, _ in fields])


def _variant(reader: Reader) -> ValueType:
    def case() -> tuple[str, Reference | None]:
        found = reader.name(), _maybe(reader)
        reader.expect(0, "the end of a case")
        return found

    cases = reader.vector(case)
    return ValueType("variant", [kind for _, kind in cases], [label for label, _ in cases])


def _labels(kind: str) -> Callable[[Reader], ValueType]:
    return lambda reader: ValueType(kind, labels=reader.vector(reader.name))


def _handle(kind: str) -> Callable[[Reader], ValueType]:
    return lambda reader: ValueType(kind, number=reader.number())


def _of_one(kind: str) -> Callable[[Reader], ValueType]:
    return lambda reader: ValueType(kind, [reference(reader)])


_COMPOUND: Final[dict[int, Callable[[Reader], ValueType]]] = {
    0x72: _record,
    0x71: _variant,
    0x70: _of_one("list"),
    0x67: lambda reader: ValueType("list", [reference(reader)], number=_length(reader)),
    0x6F: lambda reader: ValueType("tuple", [*reader.vector(lambda: reference(reader))]),
    0x6E: _labels("flags"),
    0x6D: _labels("enum"),
    0x6B: _of_one("option"),
    0x6A: lambda reader: ValueType("result", [_maybe(reader), _maybe(reader)]),
    0x69: _handle("own"),
    0x68: _handle("borrow"),
    0x66: lambda reader: ValueType("stream", [_maybe(reader)]),
    0x65: lambda reader: ValueType("future", [_maybe(reader)]),
    0x63: lambda reader: ValueType("map", [reference(reader), reference(reader)]),
}


def _length(reader: Reader) -> int:
    length = reader.number()
    if length == 0:
        raise Flaw("a list of fixed length has no elements")
    return length


def extern(reader: Reader) -> Extern:
    """Read the type of an import or export."""
    kind = reader.byte()
    if kind == 0:
        reader.expect(0x11, "the only core sort that is imported, a module")
        return Extern("core module", reader.number())
    if kind == 3:
        return Extern("type", -1 if reader.flag("the bound of a type") else reader.number())
    if kind == 2:
        raise Unsupported("values cannot be imported or exported")
    if kind not in _EXTERNS:
        raise Flaw(f"{kind:#04x} is no kind of an import or export")
    return Extern(_EXTERNS[kind], reader.number())


def _declarations(reader: Reader, one: Callable[[Reader], tuple[str, Definition]]) -> list[Placed]:
    def placed() -> Placed:
        offset = reader.position
        what, found = one(reader)
        return Placed(what, offset, found)

    reader.deeper()
    found = reader.vector(placed)
    reader.shallower()
    return found


def _component_declaration(reader: Reader) -> tuple[str, Definition]:
    if reader.peek() != 3:
        return _instance_declaration(reader)
    reader.byte()
    return "import", Import(extern_name(reader), extern(reader))


def _instance_declaration(reader: Reader) -> tuple[str, Definition]:
    kind = reader.byte()
    if kind == 0:
        return "core type", core_type(reader)
    if kind == 1:
        return "type", type_definition(reader)
    if kind == 2:
        return "alias", alias(reader)
    if kind == 4:
        return "export", ExportDeclaration(extern_name(reader), extern(reader))
    raise Flaw(f"{kind:#04x} is no kind of a declaration")


def core_type(reader: Reader) -> CoreTypeDefinition:
    """Read a core type: of a function or a module."""
    if reader.peek() == 0x50:
        reader.byte()
        reader.deeper()
        declarations = reader.vector(lambda: _module_declaration(reader))
        reader.shallower()
        return CoreTypeDefinition(ModuleType(declarations))
    if reader.peek() == 0x00:
        reader.byte()
        if reader.peek() != 0x50:
            raise Flaw("0x00 before what is no subtype")
    return CoreTypeDefinition(core.group(reader))


def _module_declaration(
    reader: Reader,
) -> ModuleImport | ModuleExport | CoreTypeDefinition | OuterAlias:
    kind = reader.byte()
    if kind == 0:
        return ModuleImport(reader.name(), reader.name(), core.extern(reader))
    if kind == 1:
        found = core_type(reader)
        if isinstance(found.type, ModuleType):
            raise Flaw("a module's type in a module's type")
        return found
    if kind == 2:
        reader.expect(0x10, "the only sort of an alias in a module's type, a type")
        reader.expect(0x01, "the only kind of an alias in a module's type, outer")
        return OuterAlias("core type", reader.number(), reader.number())
    if kind == 3:
        return ModuleExport(reader.name(), core.extern(reader))
    raise Flaw(f"{kind:#04x} is no kind of a declaration")
