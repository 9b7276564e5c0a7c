"""What wasmtime says of a trap, in the words of all engines (library)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wasmtime import Frame, Trap, TrapCode, WasmtimeError

from shim.linux.messages import one_line

# The words of the specification's own tests, which wasmer uses too.
_REASONS: Final = {
    TrapCode.STACK_OVERFLOW: "call stack exhausted",
    TrapCode.MEMORY_OUT_OF_BOUNDS: "out of bounds memory access",
    TrapCode.TABLE_OUT_OF_BOUNDS: "undefined element: out of bounds table access",
    TrapCode.INDIRECT_CALL_TO_NULL: "uninitialized element",
    TrapCode.BAD_SIGNATURE: "indirect call type mismatch",
    TrapCode.INTEGER_OVERFLOW: "integer overflow",
    TrapCode.INTEGER_DIVISION_BY_ZERO: "integer divide by zero",
    TrapCode.BAD_CONVERSION_TO_INTEGER: "invalid conversion to integer",
    TrapCode.UNREACHABLE: "unreachable",
}


def told(trap: Trap) -> tuple[str, Sequence[str]]:
    """Return the reason, and a line for each frame."""
    try:
        code = trap.trap_code
    except ValueError:  # newer than the package's list
        code = None
    reason = _REASONS.get(code) if code else None
    return reason or cause(trap), [_place(frame) for frame in trap.frames]


def cause(error: WasmtimeError | Trap) -> str:
    """Return an error's text without the backtrace in front of it, which is unlike ours."""
    return one_line(str(error).rpartition("Caused by:\n")[2].strip().removeprefix("wasm trap: "))


def _place(frame: Frame) -> str:
    module = frame.module_name or "<module>"
    offset = frame.module_offset & 0xFFFFFFFF  # all ones where it is not known
    return f"    at {frame.func_name or '<unnamed>'} ({module}[{frame.func_index}]:{offset:#x})"
