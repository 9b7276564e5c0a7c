"""From a component to a plan of how to link it (library; runs in the compiler)."""

from __future__ import annotations

from shim.component.binary.decoding import decode
from shim.component.binary.reader import Flaw
from shim.component.host import Registry
from shim.component.plan import Exported, ExportedFunction, ExportedInstance, ExportedOther, Plan
from shim.component.planning.hosting import Unfit
from shim.component.planning.planner import Planner
from shim.component.validation.component import validate
from shim.engines.base import ModuleError


def plan_component(binary: bytes, registry: Registry) -> Plan:
    """Return how a component is linked with what the registry has.

    Raises ModuleError for one that is not valid, needs what is not there, or does what is not done
    here; the message is one line.
    """
    valid = validate(decode(binary), binary)
    try:
        return Planner(valid, registry).planned()
    except Unfit as unfit:
        raise ModuleError(str(unfit)) from None
    except Flaw as flaw:
        raise flaw.unlocated() from None


def exports_of(plan: Plan) -> list[str]:
    """Return what can be called, as `name` or `interface/function`, and what else is exported."""
    found: list[str] = []
    for name, exported in plan.exports.items():
        found += _listed(name, exported)
    return found


def _listed(name: str, exported: Exported) -> list[str]:
    if isinstance(exported, ExportedFunction):
        return [name]
    if isinstance(exported, ExportedOther):
        return [f"{name} (a {exported.kind})"]
    assert isinstance(exported, ExportedInstance)
    found: list[str] = []
    for each, inner in exported.exports.items():
        found += _listed(f"{name}/{each}", inner)
    return found
