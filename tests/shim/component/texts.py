"""Components in text form, and what becomes of them."""

from __future__ import annotations

import wasmtime

from shim.component.binary.decoding import decode
from shim.component.validation.component import Valid, validate
from shim.engines.base import ModuleError


def assembled(text: str) -> bytes:
    """Return the binary of `(component TEXT)`. The assembler checks no more than the syntax."""
    return bytes(wasmtime.wat2wasm(f"(component {text})"))


def valid(text: str) -> Valid:
    """Return a component that has to be valid."""
    binary = assembled(text)
    return validate(decode(binary), binary)


def flaw(text: str) -> str:
    """Return what is wrong with a component."""
    try:
        valid(text)
    except ModuleError as error:
        return str(error)
    raise AssertionError("nothing is wrong with it")


MEMORY = """
    (core module $Memory
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 16)))
    (core instance $memory (instantiate $Memory))
    (alias core export $memory "memory" (core memory $m))
    (alias core export $memory "realloc" (core func $realloc))
"""
"""A memory `$m` and its `$realloc`."""
