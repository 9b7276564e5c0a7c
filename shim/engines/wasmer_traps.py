"""What wasmer says of a trap (library)."""

from __future__ import annotations

from collections.abc import Sequence

from shim.engines import libwasmer
from shim.engines.libwasmer import Vec


def told(trap: int) -> tuple[str, Sequence[str]]:
    """Return the reason of a wasm_trap_t, and a line for each frame; it is deleted."""
    reason, frames = Vec(), Vec()
    libwasmer.trap_message(trap, reason)
    libwasmer.trap_trace(trap, frames)
    text = reason.bytes().rstrip(b"\0").decode(errors="replace")
    lines = [_place(frame) for frame in frames.pointers()]
    libwasmer.byte_vec_delete(reason)
    libwasmer.frame_vec_delete(frames)
    libwasmer.trap_delete(trap)
    return text, lines


def _place(frame: int) -> str:
    function = libwasmer.frame_func_name(frame) or b"<unnamed>"
    module = libwasmer.frame_module_name(frame) or b"<module>"
    index, offset = libwasmer.frame_func_index(frame), libwasmer.frame_module_offset(frame)
    return f"    at {function.decode()} ({module.decode()}[{index}]:{offset & 0xFFFFFFFF:#x})"
