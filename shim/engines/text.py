"""WebAssembly text (library; runs in the compiler).

One assembler for all engines: wasmer's own is of 2021, and knows neither the syntax nor the
features of today.
"""

from __future__ import annotations

import re
from typing import Final

import wasmtime  # here, because the compiler process has no file to import from

from shim.engines.base import ModuleError, check_header

_MESSAGE: Final = re.compile(r"(?P<what>[^\n]*)\n\s*--> [^\n]*?:(?P<place>\d+:\d+)\n")


def assembled(wasm: bytes | memoryview, *, component: bool = False) -> bytes:
    """Return a module in binary form, whether it is text or binary already; or a `component`.

    Raises ModuleError for what is neither, with the line and column of a mistake in a text.
    """
    check_header(wasm, text=True, component=component)
    module = bytes(wasm)
    if module.startswith(b"\0asm"):
        return module
    try:
        binary = bytes(wasmtime.wat2wasm(module))
    except wasmtime.WasmtimeError as error:
        found = _MESSAGE.match(f"{error}\n")
        reason = f"{found['place']}: {found['what']}" if found else str(error)
        raise ModuleError(f"invalid wasm text: {reason}") from None
    check_header(binary, component=component)  # a text can also hold any bytes
    return binary
