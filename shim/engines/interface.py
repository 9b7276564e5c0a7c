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

_FUNCTION, _TABLE, _MEMORY, _GLOBAL, _TAG = range(5)  # kinds

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
_FUNCTION_TYPE: Final = 0x60
_T = TypeVar("_T")


class Import(NamedTuple):
    """An import, with its type if it is a function."""

    module: str
    name: str
    signature: Signature | None


class Export(NamedTuple):
    """An export, with its type if it is a function."""

    name: str
    signature: Signature | None


class Interface(NamedTuple):
    """The imports and exports of a module, in its order."""

    imports: list[Import]
    exports: list[Export]

    def check(self, provided: Provided, function: str) -> dict[str, Signature]:
        """Return the variants that it needs, as `link`; `function` is what is to be run.

        Raises ModuleError if that could not begin.
        """
        variants = link(self.imports, provided.signatures, provided.variants)
        found = [export.signature for export in self.exports if export.name == function]
        check_export(function, bool(found), found[0] if found else None)
        return variants


class _Reader:
    """Reads from a position on. IndexError at the module's end, KeyError for what is unknown."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position

    def number(self) -> int:
        value, self._position = number(self._data, self._position)
        return value

    def byte(self) -> int:
        self._position += 1
        return self._data[self._position - 1]

    def name(self) -> str:
        length = self.number()
        start, self._position = self._position, self._position + length
        return self._data[start : self._position].decode()

    def list(self, item: Callable[[], _T]) -> list[_T]:
        return [item() for _ in range(self.number())]

    def value_type(self) -> str:
        return _TYPES[self.byte()]

    def function_type(self) -> Signature:
        if self.byte() != _FUNCTION_TYPE:
            raise KeyError(_FUNCTION_TYPE)
        return Signature(tuple(self.list(self.value_type)), tuple(self.list(self.value_type)))

    def limits(self) -> None:
        flags = self.byte()
        self.number()
        if flags & 1:
            self.number()

    def imported(self) -> tuple[int, int]:
        """Read what follows an import's names; return the kind and, of a function, the type."""
        kind = self.byte()
        if kind == _FUNCTION:
            return kind, self.number()
        if kind == _TABLE:
            self.value_type()
            self.limits()
        elif kind == _MEMORY:
            self.limits()
        elif kind in (_GLOBAL, _TAG):
            self.byte()
            self.number()
        else:
            raise KeyError(kind)
        return kind, 0


def interface_of(wasm: bytes) -> Interface:
    """Return what a binary module imports and exports. Raises ModuleError where it cannot be read.

    Of one that is not valid this may be anything.
    """
    types: list[Signature] = []
    functions: list[Signature] = []
    imports: list[Import] = []
    exports: list[Export] = []
    try:
        for section in sections(wasm):
            read = _Reader(wasm, section.content)
            if section.number == _TYPES_SECTION:
                types = read.list(read.function_type)
            elif section.number == _IMPORTS_SECTION:
                for _ in range(read.number()):
                    module, name = read.name(), read.name()
                    kind, type_ = read.imported()
                    imports.append(
                        Import(module, name, types[type_] if kind == _FUNCTION else None)
                    )
                functions = [found.signature for found in imports if found.signature is not None]
            elif section.number == _FUNCTIONS_SECTION:
                functions += [types[index] for index in read.list(read.number)]
            elif section.number == _EXPORTS_SECTION:
                for _ in range(read.number()):
                    name, kind, index = read.name(), read.byte(), read.number()
                    signature = functions[index] if kind == _FUNCTION else None
                    exports.append(Export(name, signature))
    except (IndexError, KeyError, UnicodeDecodeError):
        raise ModuleError("invalid wasm module: its imports and exports cannot be read") from None
    return Interface(imports, exports)
