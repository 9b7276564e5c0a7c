"""The types of functions, as wasmtime has them (library).

What a type is is asked by comparing it: where its C API would have to name one for which it has no
word, of SIMD or of garbage collection, it ends the process.
"""

from __future__ import annotations

from collections.abc import Sequence

import wasmtime
from wasmtime import FuncType, ValType
from wasmtime import _ffi as ffi

from shim.engines.linking import Signature


def functype(params: Sequence[str], results: Sequence[str]) -> FuncType:
    """Return the type of a function of numbers."""
    named = {kind: getattr(ValType, kind)() for kind in {*params, *results}}
    return FuncType([named[kind] for kind in params], [named[kind] for kind in results])


def functype_signature(kind: FuncType) -> Signature:
    """Return a type in the names of wasm's types; of those without a word, `ref`."""
    words = [
        *((word, getattr(ValType, word)()) for word in ("i32", "i64", "f32", "f64")),
        ("v128", ValType._from_ptr(ffi.wasmtime_wasm_valtype_v128(), None)),
        *((word, getattr(ValType, word)()) for word in ("funcref", "externref")),
    ]

    def name(kind: wasmtime.ValType) -> str:
        for word, known in words:
            if ffi.wasmtime_wasm_valtype_equal(kind.ptr(), known.ptr()):
                return word
        return "ref"

    return Signature(tuple(map(name, kind.params)), tuple(map(name, kind.results)))
