"""The types of functions, as wasmtime has them (library).

What a type is is asked by comparing it: where its C API would have to name one for which it has no
word, of SIMD or of garbage collection, it ends the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wasmtime import FuncType, ValType
from wasmtime import _ffi as ffi

from shim.engines.linking import Signature

_NUMBERS: Final = ("i32", "i64", "f32", "f64")


class Types:
    """What makes them, and tells them from one another.

    Both take 10 to 100 microseconds, so what can be kept is kept, for as long as an engine.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[tuple[str, ...], ...], FuncType] = {}
        known = {word: getattr(ValType, word) for word in (*_NUMBERS, "funcref", "externref")}
        self._words = {word: make() for word, make in known.items()}
        self._words["v128"] = ValType._from_ptr(ffi.wasmtime_wasm_valtype_v128(), None)

    def function(self, params: Sequence[str], results: Sequence[str]) -> FuncType:
        """Return the type of a function of numbers."""
        key = tuple(params), tuple(results)
        if key not in self._made:
            self._made[key] = FuncType(*([self._words[word] for word in words] for words in key))
        return self._made[key]

    def signature(self, kind: FuncType) -> Signature:
        """Return a type in the names of wasm's types; of those without a word, `ref`."""
        return Signature(tuple(map(self._word, kind.params)), tuple(map(self._word, kind.results)))

    def _word(self, kind: ValType) -> str:
        for word, known in self._words.items():
            if ffi.wasmtime_wasm_valtype_equal(kind.ptr(), known.ptr()):
                return word
        return "ref"
