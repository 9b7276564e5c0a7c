"""Whether clients can name what they need (library; runs in the compiler).

Explainer.md, "External Visibility of Types": whatever an import or export is made of, resources and
types with labels have been imported or exported before. Imports may not need exports.
"""

from __future__ import annotations

from collections.abc import Iterable

from shim.component.validation.entities import (
    NAMED,
    Entity,
    Function,
    Instance,
    ResourceType,
    Type,
    Value,
)
from shim.component.validation.kinds import Kinds
from shim.component.validation.matching import Work


class Visibility:
    """The types that have a name outside of a component, and those made of only such."""

    def __init__(self, kinds: Kinds, work: Work) -> None:
        self._kinds = kinds
        self._work = work
        self._imported: set[Type] = set()
        self._exported: set[Type] = set()  # those imported, too

    def admit(self, entity: Entity, is_export: bool) -> bool:
        """Return whether something can be imported or exported; if so, its types have names."""
        self._work.take(1)
        visible = self._exported if is_export else self._imported
        kind = entity.type
        if entity.sort == "type":
            if not self._can_be_named(kind, visible):
                return False
            self._exported.add(kind)
            if not is_export:
                self._imported.add(kind)
            return True
        if isinstance(kind, Instance):
            return all(self.admit(each, is_export) for each in kind.exports.values())
        return self._all_visible(kind.parts, visible) if isinstance(kind, Function) else True

    def _can_be_named(self, kind: Type, visible: set[Type]) -> bool:
        self._work.take(1)
        if isinstance(kind, (Value, Function)):
            return self._all_visible(kind.parts, visible)
        if isinstance(kind, Instance):
            return all(self._can_be_named(each.type, visible) for each in kind.exports.values())
        return True

    def _all_visible(self, parts: Iterable[Value | ResourceType], visible: set[Type]) -> bool:
        return all(self._is_visible(part, visible) for part in parts)

    def _is_visible(self, kind: Value | ResourceType, visible: set[Type]) -> bool:
        if kind in visible:
            return True
        if isinstance(kind, ResourceType) or self._kinds.form(kind.kind).kind in NAMED:
            return False
        if not self._all_visible(kind.parts, visible):
            return False
        visible.add(kind)  # not to look twice
        return True
