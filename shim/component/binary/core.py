"""What core modules import and export, with all types (library; runs in the compiler).

WebAssembly binary format, 5.3 and 5.5. Read to the point where one instance can be checked against
what another one imports; that a module's code is valid is for the engine to say.

A reference to a type of the module's own is read as `(ref ...)`, whatever it refers to: the engine
compares those when it links.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from shim.component.binary.reader import Flaw, Reader
from shim.component.types.base import Core as CoreFunction

MAX_VALUES: Final = 1000
"""That a function takes, or returns. The engines have the same limit."""

_NUMBERS: Final = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128"}
_HEAP: Final = {
    0x70: "func", 0x6F: "extern", 0x6E: "any", 0x6D: "eq", 0x6C: "i31", 0x6B: "struct",
    0x6A: "array", 0x69: "exn", 0x68: "cont", 0x71: "none", 0x72: "noextern", 0x73: "nofunc",
    0x74: "noexn", 0x75: "nocont",
}  # fmt: skip
_PACKED: Final = {0x78, 0x77}
_REF, _REF_NULL = 0x64, 0x63
_FUNC, _STRUCT, _ARRAY, _SUB, _SUB_FINAL, _REC = 0x60, 0x5F, 0x5E, 0x50, 0x4F, 0x4E

_TYPES, _IMPORTS, _FUNCTIONS, _TABLES, _MEMORIES, _GLOBALS, _EXPORTS = range(1, 8)
_TAGS: Final = 13
_HEADER: Final = b"\0asm\1\0\0\0"
_SORTS: Final = ("core func", "core table", "core memory", "core global", "core tag")

__all__ = [
    "CoreExtern", "CoreFunction", "CoreFunctionIndex", "Global", "Limits", "Memory", "ModuleShape",
    "Table", "Tag", "TagIndex", "extern", "group", "module_shape", "sort_of", "value_type",
]  # fmt: skip


class Limits(NamedTuple):
    """How much there is at least, and may be at most."""

    minimum: int
    maximum: int | None
    shared: bool = False
    is_64: bool = False
    page: int = 16
    """Of a page of memory, the logarithm of its size."""


class Table(NamedTuple):
    """A table, by the type of its elements."""

    element: str
    limits: Limits


class Memory(NamedTuple):
    """A memory."""

    limits: Limits


class Global(NamedTuple):
    """A global."""

    type: str
    mutable: bool


class Tag(NamedTuple):
    """A tag, by what it carries."""

    type: CoreFunction


class CoreFunctionIndex(NamedTuple):
    """A function, by the index of its type."""

    type: int


class TagIndex(NamedTuple):
    """A tag, by the index of its type."""

    type: int


CoreExtern: TypeAlias = (
    "CoreFunction | CoreFunctionIndex | Table | Memory | Global | Tag | TagIndex"
)


class ModuleShape:
    """What a module imports, by both names in order, and exports."""

    __slots__ = ("exports", "imports")

    def __init__(
        self, imports: dict[tuple[str, str], CoreExtern], exports: dict[str, CoreExtern]
    ) -> None:
        self.imports = imports
        self.exports = exports

    def add_import(self, module: str, name: str, extern: CoreExtern) -> None:
        """Add an import. Raises Flaw where both names are taken."""
        if (module, name) in self.imports:
            raise Flaw(f"`{module}` `{name}` is imported twice")
        self.imports[module, name] = extern

    def add_export(self, name: str, extern: CoreExtern) -> None:
        """Add an export. Raises Flaw where the name is taken."""
        if name in self.exports:
            raise Flaw(f"`{name}` is exported twice")
        self.exports[name] = extern


def sort_of(extern: CoreExtern) -> str:
    """Return the name of the index space that it belongs to."""
    if isinstance(extern, (CoreFunction, CoreFunctionIndex)):
        return "core func"
    if isinstance(extern, (Tag, TagIndex)):
        return "core tag"
    return f"core {type(extern).__name__.lower()}"


def value_type(reader: Reader) -> str:
    """Read a value type."""
    byte = reader.byte()
    if byte in _NUMBERS:
        return _NUMBERS[byte]
    return _reference(reader, byte)


def _reference(reader: Reader, byte: int) -> str:
    if byte in _HEAP:
        return f"{_HEAP[byte]}ref"
    if byte not in (_REF, _REF_NULL):
        raise Flaw(f"{byte:#04x} is no core type")
    null = "null " if byte == _REF_NULL else ""
    heap = reader.signed(33)
    if heap >= 0:
        return "(ref ...)"
    if heap & 0x7F not in _HEAP:
        raise Flaw(f"{heap & 0x7F:#04x} is no core type")
    name = _HEAP[heap & 0x7F]
    return f"{name}ref" if null else f"(ref {name})"


def _function_type(reader: Reader) -> CoreFunction:
    """Read a function's type, after its first byte."""
    params = reader.vector(lambda: value_type(reader))
    results = reader.vector(lambda: value_type(reader))
    if max(len(params), len(results)) > MAX_VALUES:
        raise Flaw(f"a function of more than {MAX_VALUES:,} values")
    return CoreFunction(tuple(params), tuple(results))


def extern(reader: Reader) -> CoreExtern:
    """Read the type of an import."""
    kind = reader.byte()
    if kind == 0:
        return CoreFunctionIndex(reader.number())
    if kind == 1:
        return _table(reader)
    if kind == 2:
        return _memory(reader)
    if kind == 3:
        return _global(reader)
    if kind == 4:
        return _tag(reader)
    raise Flaw(f"{kind:#04x} is no kind of a core import")


def _table(reader: Reader) -> Table:
    return Table(_reference(reader, reader.byte()), _limits(reader))


def _memory(reader: Reader) -> Memory:
    limits = _limits(reader)
    most = 1 << ((64 if limits.is_64 else 32) - limits.page)
    if max(limits.minimum, limits.maximum or 0) > most:
        raise Flaw(f"a memory of more than {most} pages")
    return Memory(limits)


def _global(reader: Reader) -> Global:
    return Global(value_type(reader), reader.flag("the mutability of a global"))


def _tag(reader: Reader) -> TagIndex:
    reader.expect(0, "the attribute of a tag")
    return TagIndex(reader.number())


def _limits(reader: Reader) -> Limits:
    flags = reader.byte()
    if flags > 15:
        raise Flaw(f"{flags:#04x} are no limits")
    minimum = reader.number(64)
    maximum = reader.number(64) if flags & 1 else None
    page = reader.number() if flags & 8 else 16
    if page not in (0, 16):
        raise Flaw(f"pages of 2^{page} bytes")
    if maximum is not None and maximum < minimum:
        raise Flaw("at least more than at most")
    return Limits(minimum, maximum, bool(flags & 2), bool(flags & 4), page)


def module_shape(whole: Reader) -> ModuleShape:
    """Read what a module imports and exports. Raises Flaw."""
    if whole.data[whole.position : whole.end][:8] != _HEADER:
        raise Flaw("no core module of version 1")
    whole.skip(len(_HEADER))
    types: list[CoreFunction | None] = []
    spaces: dict[str, list[CoreExtern]] = {sort: [] for sort in _SORTS}
    shape = ModuleShape({}, {})
    while whole.position < whole.end:
        section = whole.byte()
        reader = whole.within(whole.number())
        if section == _TYPES:
            for _ in range(reader.count()):
                types += group(reader)
        elif section == _IMPORTS:
            for _ in range(reader.count()):
                module, name = reader.name(), reader.name()
                found = resolved(extern(reader), types)
                shape.add_import(module, name, found)
                spaces[sort_of(found)].append(found)
        elif section == _FUNCTIONS:
            for _ in range(reader.number()):  # uncounted: what is kept of each is in `types`
                found = resolved(CoreFunctionIndex(reader.number()), types)
                spaces["core func"].append(found)
        elif section == _TABLES:
            spaces["core table"] += reader.vector(lambda here=reader: _defined_table(here))  # type: ignore[misc]
        elif section == _MEMORIES:
            spaces["core memory"] += [_memory(reader) for _ in range(reader.count())]
        elif section == _GLOBALS:
            for _ in range(reader.count()):
                spaces["core global"].append(_global(reader))
                _skip_expression(reader)
        elif section == _TAGS:
            spaces["core tag"] += [resolved(_tag(reader), types) for _ in range(reader.count())]
        elif section == _EXPORTS:
            for _ in range(reader.count()):
                name, kind, index = reader.name(), reader.byte(), reader.number()
                if kind >= len(_SORTS) or index >= len(spaces[_SORTS[kind]]):
                    raise Flaw(f"the export {name!r} of a core module is of what there is not")
                shape.add_export(name, spaces[_SORTS[kind]][index])
    return shape


def resolved(found: CoreExtern, types: list[CoreFunction | None]) -> CoreExtern:
    """Return the same with a type for its index."""
    if not isinstance(found, (CoreFunctionIndex, TagIndex)):
        return found
    kind = types[found.type] if found.type < len(types) else None
    if kind is None:
        raise Flaw(f"core type {found.type} is no function's")
    return kind if isinstance(found, CoreFunctionIndex) else Tag(kind)


def group(reader: Reader) -> list[CoreFunction | None]:
    """Read one type, or several that refer to each other. None are those of the engine's heap."""
    if reader.peek() != _REC:
        return [_type(reader)]
    reader.byte()
    return reader.vector(lambda: _type(reader))


def _type(reader: Reader) -> CoreFunction | None:
    form = reader.byte()
    if form in (_SUB, _SUB_FINAL):
        reader.vector(reader.number)
        form = reader.byte()
    if form == _FUNC:
        return _function_type(reader)
    if form == _ARRAY:
        _field(reader)
    elif form == _STRUCT:
        reader.vector(lambda: _field(reader))
    else:
        raise Flaw(f"{form:#04x} is no form of a core type")
    return None


def _field(reader: Reader) -> None:
    if reader.peek() in _PACKED:
        reader.byte()
    else:
        value_type(reader)
    reader.flag("the mutability of a field")


def _defined_table(reader: Reader) -> Table:
    if reader.peek() != 0x40:
        return _table(reader)
    reader.byte()
    reader.expect(0, "a table with an initial value")
    table = _table(reader)
    _skip_expression(reader)
    return table


def _skip_expression(reader: Reader) -> None:
    """Skip a constant expression."""
    while True:
        operation = reader.byte()
        if operation == 0x0B:  # end
            return
        if operation == 0x41:  # i32.const
            reader.signed(32)
        elif operation == 0x42:  # i64.const
            reader.signed(64)
        elif operation == 0x43:  # f32.const
            reader.skip(4)
        elif operation == 0x44:  # f64.const
            reader.skip(8)
        elif operation in (0x23, 0xD2):  # global.get, ref.func
            reader.number()
        elif operation == 0xD0:  # ref.null
            reader.signed(33)
        elif operation == 0xFD:  # v128.const
            reader.expect(12, "a constant expression")
            reader.skip(16)
        elif operation == 0xFB:
            _skip_heap_operation(reader)
        elif operation not in (0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E):  # add, sub, mul
            raise Flaw(f"{operation:#04x} in a constant expression")


def _skip_heap_operation(reader: Reader) -> None:
    operation = reader.number()
    if operation in (0, 1, 6, 7):  # struct.new, .new_default, array.new, .new_default
        reader.number()
    elif operation == 8:  # array.new_fixed
        reader.number()
        reader.number()
    elif operation not in (26, 27, 28):  # any.convert_extern, extern.convert_any, ref.i31
        raise Flaw(f"0xfb {operation:#04x} in a constant expression")
