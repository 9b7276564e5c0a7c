"""The types of a plan, each once (library; runs in the compiler)."""

from __future__ import annotations

from typing import Final

from shim.component import plan
from shim.component.types import FunctionType, Resource, ValueType
from shim.component.validation.kinds import Kinds
from shim.component.validation.matching import Work

_NONE: Final = -1


class Naming:
    """The resources of an instance: which number each has in the plan."""

    __slots__ = ("numbers", "values")

    def __init__(self) -> None:
        self.numbers: dict[Resource, int] = {}
        self.values: dict[ValueType, int] = {}


class Table:
    """Gives numbers to types. Those without resources have the same in all instances."""

    def __init__(self, kinds: Kinds, work: Work) -> None:
        self.types: list[plan.Type] = []
        self.functions: list[plan.Function] = []
        self._kinds = kinds
        self._work = work
        self._plain: dict[ValueType, int] = {}
        self._type_numbers: dict[object, int] = {}
        self._function_numbers: dict[object, int] = {}

    def value(self, kind: ValueType, naming: Naming) -> int:
        """Return the number of a value type."""
        known = naming.values if self._kinds.has_resource(kind) else self._plain
        number = known.get(kind)
        if number is None:
            form = self._kinds.form(kind)
            self._work.take(1 + len(form.parts) + len(form.labels))
            parts = [self.maybe(part, naming) for part in form.parts]
            about = form.number if form.resource is None else naming.numbers[form.resource]
            key = form.kind, tuple(parts), form.labels, about
            number = self._type_numbers.setdefault(key, len(self.types))
            if number == len(self.types):
                self.types.append(plan.Type(form.kind, parts, list(form.labels), about))
            known[kind] = number
        return number

    def maybe(self, kind: ValueType | None, naming: Naming) -> int:
        """Return the number of a value type, or of none."""
        return _NONE if kind is None else self.value(kind, naming)

    def function(self, kind: FunctionType, naming: Naming) -> int:
        """Return the number of a function's type."""
        self._work.take(1 + len(kind.params))
        names = [name for name, _ in kind.params]
        params = [self.value(each, naming) for _, each in kind.params]
        result = self.maybe(kind.result, naming)
        key = tuple(names), tuple(params), result, kind.is_async
        number = self._function_numbers.setdefault(key, len(self.functions))
        if number == len(self.functions):
            self.functions.append(plan.Function(names, params, result, kind.is_async))
        return number
