"""Engines: what compiles and runs WebAssembly (library)."""

from __future__ import annotations

import atexit
import importlib
from collections.abc import Sequence
from functools import cache

from shim.engines.base import Engine, ModuleError


@cache
def engines() -> list[Engine]:
    """Return the engines that can be had here, the preferred one first. Importing them is slow.

    From here on the engines own SIGSEGV, SIGBUS, SIGILL and SIGFPE, which is what traps are made
    of: a handler installed later (faulthandler's, say) makes every trap a crash.
    """
    found: list[Engine] = []
    # Of wasmer the library, if there is one; its wheels are old, and for one interpreter only.
    for module, kind in (
        ("wasmer", "Wasmer"),
        ("wasmer_wheel", "WasmerWheel"),
        ("wasmtime", "Wasmtime"),
    ):
        if any(module.startswith(engine.name) for engine in found):
            continue
        try:
            found.append(getattr(importlib.import_module(f"shim.engines.{module}"), kind)())
        except ImportError:
            continue  # it is not installed here
    # Else wasmtime's objects outlive what they need to delete themselves, and complain.
    atexit.register(engines.cache_clear)
    return found


def settable() -> list[Engine]:
    """Return the engines that a node's settings may name: those, and with other compilers."""
    return [*engines(), *(other for engine in engines() for other in engine.others)]


def select(name: str = "", available: Sequence[Engine] | None = None) -> Engine:
    """Return the engine called `name`, or the first one, of these or all that may be set.

    Raises ModuleError if it cannot be had.
    """
    available = settable() if available is None else available
    for engine in available:
        if name in ("", engine.name):
            return engine
    names = ", ".join(engine.name for engine in available) or "none"
    raise ModuleError(f"no engine {name!r} here; there is: {names}")


def candidates(demanded: str = "", preferred: str = "") -> list[Engine]:
    """Return the engines that may be tried for a module, in this order.

    Only the one `demanded`, else all, the `preferred` one first. Raises ModuleError if the one
    demanded cannot be had.
    """
    if demanded:
        return [select(demanded, engines())]
    first = select(preferred)
    return [first, *(engine for engine in engines() if engine is not first)]


def preload() -> None:
    """Do before the first fork all that forks can share. Starts no thread."""
    for engine in settable():
        engine.fingerprint()
