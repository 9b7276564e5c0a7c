"""The compiler of components: what it makes is a plan (`shim.component`). Runs in: compiler.

Of the core modules it says where they are; engines compile them like any other module.
"""

from __future__ import annotations

import importlib
from typing import Final

from shim.component import plan
from shim.component.parts import packed
from shim.engines.text import assembled
from shim.wasi.registry import REGISTRY

NAME: Final = "component"
_PLANNING: Final = "shim.component.planning"


class Planner:
    """See `Compiler`."""

    name: Final = NAME
    version: Final = str(plan.FORMAT)

    def __init__(self) -> None:
        # Before any fork: it is made of all types that there are.
        self._fingerprint = f"{NAME} {self.version} {REGISTRY.fingerprint()}"

    def fingerprint(self) -> str:
        """See `Compiler.fingerprint`: a plan is for the interfaces that a host has."""
        return self._fingerprint

    def prepare(self) -> None:
        """Import what `compile` takes, which a compiler has no files to import from.

        A foreman does: in the zygote it would be there for all, and most never need it.
        """
        importlib.import_module(_PLANNING)

    def compile(self, wasm: bytes | memoryview) -> bytes:
        """See `Compiler.compile`."""
        planning = importlib.import_module(_PLANNING)
        return packed(planning.plan_component(assembled(wasm, component=True), REGISTRY))


PLANNER: Final = Planner()
