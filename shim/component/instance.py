"""The state of a component's instance (library; used in the guest).

CanonicalABI.md, "Component Instances".
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from shim.component.table import Handle, Table

if TYPE_CHECKING:
    from shim.component.tasks import Task


class Scope(Protocol):
    """A call that answers for what is borrowed: a task for what it was lent, and who calls it."""

    borrows: int
    """How many handles were lent to the callee."""

    def lend(self, handle: Handle) -> None:
        """Keep the caller's handle from being dropped until the call is over."""


class ComponentInstance:
    """An instance of a component: its table, and whether it may be entered and left.

    `exclusive` is the task whose callbacks or synchronous function run; `entering` are those that
    wait for that to end, or for the guest to want more; `kept` are those whose turn had come then.
    """

    __slots__ = (
        "ancestors", "backpressure", "entering", "exclusive", "kept", "may_enter", "may_leave",
        "table", "threads",
    )  # fmt: skip

    def __init__(self, parent: ComponentInstance | None = None) -> None:
        self.ancestors: tuple[ComponentInstance, ...] = (
            (self,) if parent is None else (self, *parent.ancestors)
        )
        """Itself, and those that it is nested in."""
        self.table = Table()
        self.threads = Table()
        """Those that have asked for their number."""
        self.may_enter = True
        self.may_leave = True
        self.backpressure = 0
        self.exclusive: Task | None = None
        self.entering: deque[Task] = deque()
        self.kept: list[Task] = []

    def is_within(self, other: ComponentInstance) -> bool:
        """Tell whether it is the other one, or nested in it."""
        return other in self.ancestors

    def between(self, caller: ComponentInstance | None) -> list[ComponentInstance]:
        """Return those that a call from `caller` to here enters."""
        if caller is None:
            return list(self.ancestors)
        return [each for each in self.ancestors if each not in caller.ancestors]
