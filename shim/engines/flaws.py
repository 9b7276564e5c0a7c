"""What an engine is known to compile wrongly, and the refusal of modules that use it.

The table is for everybody; `check` runs in the compiler, for what it reads is hostile.

A proposal of WebAssembly that an engine gets wrong is refused as a whole: which of its
instructions go wrong depends on what the register allocator makes of the code around them. Whether
a module uses one is asked of wasmtime's validator, with that proposal switched off. It is current,
fuzzed, and reads all of the binary (types, globals, locals, every instruction) in 8 ms for a
megabyte, where compiling takes 900; a walk in Python would be slower, and one more reader to trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import wasmtime  # here, because the compiler process has no file to import from

from shim.engines.base import Compiler, ModuleError
from shim.engines.wasmtime import PROPOSALS


class Flaw(NamedTuple):
    """Something wrong in the versions of an engine before `fixed`, its first major one without."""

    engine: str
    fixed: int
    proposal: str
    reference: str


# wasmer's packages for Python end with 1.1.0, which is wasmer 2.1.1 with cranelift 0.76 inside.
FLAWS: Final = (
    # A v128 is spilled to a slot for a scalar, over what is beside it. That can be a pointer of the
    # engine's own, so a module writes where it likes in its process. Cranelift 0.80. It has no CVE,
    # because SIMD was off by default in wasmtime then; in wasmer it was not.
    Flaw("wasmer", 3, "SIMD", "wasmtime#3645"),
    # `i8x16.swizzle` and `select` overwrite an operand that is still needed. Cranelift 0.85.1.
    Flaw("wasmer", 3, "SIMD", "CVE-2022-31104"),
)

UNSAFE: Final = {
    # One page of 4 KiB guards the stack, and a call leaves more than that untouched if it returns a
    # thousand values: so a module writes to what lies below, a table of its functions, say.
    "wasmer-singlepass": "a module can write beyond its stack",
}
"""What a node has to allow before any module runs under it."""

_SWITCHES: Final = {"SIMD": ("wasm_relaxed_simd", "wasm_simd")}
"""What of wasmtime's configuration stands for a proposal; the dependent ones first."""


def known(engine: Compiler) -> list[Flaw]:
    """Return what is wrong with an engine of this name and version."""
    return [
        flaw for flaw in FLAWS if flaw.engine == engine.name and _major(engine.version) < flaw.fixed
    ]


def condition(engine: Compiler, *, checked: bool) -> str:
    """Name, for the cache's key, what `check` let pass: "" for an engine without flaws."""
    flaws = known(engine)
    if not flaws:
        return ""
    return f" without {_proposals(flaws)}" if checked else " unchecked"


def check(engine: Compiler, wasm: bytes) -> None:
    """Raise ModuleError where the binary module uses what the engine is known to compile wrongly.

    Also where it is no valid module: an old engine may have another opinion on that.
    """
    flaws = known(engine)
    without = [name for flaw in flaws for name in _SWITCHES[flaw.proposal]]
    if not flaws or invalid(wasm, without) is None:
        return
    reason = invalid(wasm)
    if reason is not None:
        raise ModuleError(f"invalid wasm module: {reason}")
    references = ", ".join(flaw.reference for flaw in flaws)
    raise ModuleError(
        f"{engine.name} {engine.version} is not safe for a module that uses {_proposals(flaws)} "
        f"({references})"
    )


def invalid(wasm: bytes, without: Sequence[str] = ()) -> str | None:
    """Return why this is no valid module, as wasmtime has it but for some proposals."""
    config = wasmtime.Config()
    config.parallel_compilation = False
    for name in PROPOSALS:
        setattr(config, name, True)
    for name in without:
        setattr(config, name, False)
    try:
        wasmtime.Module.validate(wasmtime.Engine(config), wasm)
    except wasmtime.WasmtimeError as error:
        return str(error)
    return None


def _proposals(flaws: list[Flaw]) -> str:
    return " or ".join(dict.fromkeys(flaw.proposal for flaw in flaws))


def _major(version: str) -> int:
    """Return the first number of a version; of one that has none, 0: it has all the flaws."""
    number = version.partition(".")[0]
    return int(number) if number.isdecimal() else 0
