"""A component as a program: linked, run, and what becomes of its result. Runs in: guest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from shim.component import plan
from shim.component.errors import Trap
from shim.component.linker import Linker, call
from shim.component.parts import plan_of
from shim.engines.base import (
    START,
    Engine,
    Grants,
    Module,
    ModuleError,
    backtrace,
    internal_error,
    trapped,
)
from shim.engines.base import Trap as CoreTrap
from shim.wasi.p2.io import finish
from shim.wasi.program import Program
from shim.wasi.registry import REGISTRY

_RUN: Final = "wasi:cli/run"
_FAILED: Final = 1


class Entry(tuple[str, ...]):
    """The names that lead to a function: of the interface, if it is of one, and its own."""

    __slots__ = ()

    def __str__(self) -> str:
        return "/".join(self)


class Component:
    """A component ready to be linked, once. See `Module`."""

    def __init__(self, kept: bytes, modules: Sequence[Module], engine: Engine) -> None:
        """`kept` is what `parts.packed` made. Raises ModuleError."""
        self._plan = plan_of(kept)
        self._modules = modules
        self._engine = engine

    def check(self, function: str = START) -> None:
        """See `Module.check`."""
        try:
            _entry(self._plan, function)
        except IndexError:
            raise ModuleError("the component's plan is unusable: a number leads nowhere") from None

    def run(self, grants: Grants, function: str = START) -> NoReturn:
        """See `Module.run`. A function that returns an error ends with 1."""
        self._engine.with_stack(lambda: self._run(grants, function))

    def _run(self, grants: Grants, function: str) -> NoReturn:
        message, result = "", None
        try:
            program = Program()
            grants.give(program)
            store = self._engine.store()
            linker = Linker(self._plan, self._modules, store, REGISTRY, program, program.reactor)
            exports: Any = linker.link()
            for name in _entry(self._plan, function):
                exports = exports[name]
            result = call(linker.runtime, exports)
        except CoreTrap as trap:
            message = backtrace(str(trap), trap.frames)
        except Trap as trap:
            message = backtrace(str(trap), ())
        except RecursionError:  # calls between instances, or of destructors
            message = backtrace("call stack exhausted", ())
        except BaseException as error:
            message = internal_error(error)
        finish()
        if message:
            trapped(message)
        os._exit(_FAILED if isinstance(result, tuple) and result[:1] == ("error",) else 0)


def _entry(what: plan.Plan, function: str) -> Entry:
    """Return where the function is that `function` means. Raises ModuleError where there is none.

    `START` is the newest `wasi:cli/run`: who exports two has one that only traps, and it is the
    older one.
    """
    if function == START:
        names = [name for name in what.exports if name.partition("@")[0] == _RUN]
        if not names:
            raise ModuleError(_no_run(what))
        entry = Entry((max(names, key=_version), "run"))
    elif "/" in function:
        interface, _, name = function.rpartition("/")
        entry = Entry((interface, name))
    else:
        entry = Entry((function,))
    exported: plan.Exported | None = plan.ExportedInstance(what.exports)
    for name in entry:
        inside = exported.exports if isinstance(exported, plan.ExportedInstance) else {}
        exported = inside.get(name)
    if exported is None:
        raise ModuleError(f"the component exports no function `{entry}`; {_exports(what)}")
    if not isinstance(exported, plan.ExportedFunction):
        raise ModuleError(f"export `{entry}` is not a function")
    if exported.lifted >= 0:
        kind = what.function_types[what.lifts[exported.lifted].type]
        if kind.names:
            raise ModuleError(f"export `{entry}` must not take parameters")
    return entry


def _version(name: str) -> list[tuple[int, str]]:
    """Return what versions are compared by: numbers of any length, without zeros in front."""
    numbers = name.partition("@")[2].partition("-")[0].split(".")
    return [(len(number), number) for number in numbers]


def _no_run(what: plan.Plan) -> str:
    said = f"the component does not export `{_RUN}`, so it is no command; {_exports(what)}"
    if any(isinstance(exported, plan.ExportedFunction) for exported in what.exports.values()):
        said += ". Append `#` and a function's name to run that"
    return said


def _exports(what: plan.Plan) -> str:
    names = ", ".join(f"`{name}`" for name in list(what.exports)[:8])
    more = len(what.exports) - 8
    return f"it exports {names or 'nothing'}" + (f" and {more} more" if more > 0 else "")
