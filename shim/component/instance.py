"""The state of a component's instance (library; used in the guest).

CanonicalABI.md, "Component Instances".
"""

from __future__ import annotations

from typing import Protocol

from shim.component.table import Handle, Table


class Scope(Protocol):
    """A call that answers for what is borrowed: a task for what it has been lent, and who calls."""

    borrows: int
    """How many handles were lent to the callee."""

    def lend(self, handle: Handle) -> None:
        """Keep the caller's handle from being dropped until the call is over."""


class ComponentInstance:
    """An instance of a component: its table, and whether it may be entered and left."""

    __slots__ = ("may_enter", "may_leave", "parent", "table")

    def __init__(self, parent: ComponentInstance | None = None) -> None:
        self.parent = parent
        self.table = Table()
        self.may_enter = True
        self.may_leave = True
