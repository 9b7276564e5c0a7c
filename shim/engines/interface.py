"""What a module imports and exports, read from its binary (library; runs in the compiler).

wasmer's C API could tell, but it panics at a type that it has no word for (a vector of SIMD), and a
panic across C is the end of the process. The contents of the sections (WebAssembly binary format,
5.5 and 5.3; numbers are LEB128, a name is its length and UTF-8), each after a count:

    1, types      | u8 0x60 | count | u8 type ... | count | u8 type ... |
    2, imports    | module | name | u8 kind | 0: type, 1: table, 2: memory, 3: global, 4: tag |
    3, functions  | type |
    7, exports    | name | u8 kind | index |

What a validator takes for valid and is not understood here is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from shim.engines.base import ModuleError
from shim.engines.binary import number, sections
from shim.engines.linking import Provided, Signature, check_export, link

FUNCTION, TABLE, MEMORY, GLOBAL, TAG = range(5)  # kinds

_TYPES_SECTION, _IMPORTS_SECTION, _FUNCTIONS_SECTION, _EXPORTS_SECTION = 1, 2, 3, 7

_TYPES: Final = {
    0x7F: "i32",
    0x7E: "i64",
    0x7D: "f32",
    0x7C: "f64",
    0x7B: "v128",
    0x70: "funcref",
    0x6F: "externref",
    0x69: "exnref",
}
_REFERENCES: Final = (0x63, 0x64)  # what may be null, and what may not; which of it follows
_FUNCTION_TYPE: Final = 0x60
_HAS_MAXIMUM, _HAS_PAGE_SIZE = 1, 8
_T = TypeVar("_T")


class Import(NamedTuple):
    """An import: its names, its kind and, of a function, which of the types it has."""

    module: str
    name: str
    kind: int
    type: int | None


class Interface(NamedTuple):
    """The imports and exports of a module, in its order.

    An export is its name and, of a function, which of the types it has: a module may have thousands
    of them, and few types.
    """

    imports: list[Import]
    exports: dict[str, int | None]
    types: list[Signature]

    def check(self, provided: Provided, function: str) -> dict[str, Signature]:
        """Return the variants that it needs, as `link`; `function` is what is to be run.

        Raises ModuleError if that could not begin.
        """
        wanted = [(found.module, found.name, self._type(found.type)) for found in self.imports]
        variants = link(wanted, provided.signatures, provided.variants)
        check_export(function, function in self.exports, self.exported(function))
        return variants

    def exported(self, name: str) -> Signature | None:
        """Return the type of an exported function; `None` for what is no such."""
        return self._type(self.exports.get(name))

    def _type(self, index: int | None) -> Signature | None:
        return None if index is None else self.types[index]


class Reader:
    """Reads from a position on. IndexError at the module's end, KeyError for what is unknown."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self.position = position

    def number(self) -> int:
        """Read a LEB128 number."""
        value, self.position = number(self._data, self.position)
        return value

    def byte(self) -> int:
        """Read a byte."""
        self.position += 1
        return self._data[self.position - 1]

    def name(self) -> str:
        """Read a name."""
        length = self.number()
        start, self.position = self.position, self.position + length
        return self._data[start : self.position].decode()

    def list(self, item: Callable[[], _T]) -> list[_T]:
        """Read a count, and as many items."""
        return [item() for _ in range(self.number())]

    def value_type(self) -> str:
        """Read the type of a value."""
        byte = self.byte()
        if byte in _REFERENCES:
            self.number()
            return "ref"
        return _TYPES[byte]

    def function_type(self) -> Signature:
        """Read the type of a function."""
        if self.byte() != _FUNCTION_TYPE:
            raise KeyError(_FUNCTION_TYPE)
        return Signature(tuple(self.list(self.value_type)), tuple(self.list(self.value_type)))

    def limits(self) -> None:
        """Read the limits of a table or memory."""
        flags = self.byte()
        self.number()
        for flag in (_HAS_MAXIMUM, _HAS_PAGE_SIZE):
            if flags & flag:
                self.number()

    def imported(self) -> tuple[int, int | None]:
        """Read what follows an import's names; return the kind and, of a function, the type."""
        kind = self.byte()
        if kind == FUNCTION:
            return kind, self.number()
        if kind == TABLE:
            self.value_type()
            self.limits()
        elif kind == MEMORY:
            self.limits()
        elif kind == GLOBAL:
            self.value_type()
            self.byte()
        elif kind == TAG:
            self.byte()
            self.number()
        else:
            raise KeyError(kind)
        return kind, None


def interface_of(wasm: bytes) -> Interface:
    """Return what a binary module imports and exports. Raises ModuleError where it cannot be read.

    Of one that is not valid this may be anything.
    """
    types: list[Signature] = []
    functions: list[int] = []
    imports: list[Import] = []
    exports: dict[str, int | None] = {}
    try:
        for section in sections(wasm):
            read = Reader(wasm, section.content)
            if section.number == _TYPES_SECTION:
                types = read.list(read.function_type)
            elif section.number == _IMPORTS_SECTION:
                for _ in range(read.number()):
                    imports.append(Import(read.name(), read.name(), *read.imported()))
                functions = [found.type for found in imports if found.type is not None]
            elif section.number == _FUNCTIONS_SECTION:
                functions += read.list(read.number)
            elif section.number == _EXPORTS_SECTION:
                for _ in range(read.number()):
                    name, kind, index = read.name(), read.byte(), read.number()
                    exports[name] = functions[index] if kind == FUNCTION else None
        if any(index >= len(types) for index in functions):
            raise IndexError
    except (IndexError, KeyError, UnicodeDecodeError):
        raise ModuleError("invalid wasm module: its imports and exports cannot be read") from None
    return Interface(imports, exports, types)
