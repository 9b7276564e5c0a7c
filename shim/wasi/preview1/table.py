"""The guest's numbers for its descriptors (library; runs in the guest).

A guest names descriptors by their place in this table and can name nothing else, so descriptors of
the host that happen to be open are out of its reach.
"""

from __future__ import annotations

import heapq

from shim.wasi.descriptors import Descriptor
from shim.wasi.preview1 import errno
from shim.wasi.preview1.errno import Refused


class Table:
    """Descriptors by the guest's numbers; a new one gets the lowest that is free, as in POSIX."""

    __slots__ = ("_free", "opened")

    def __init__(self) -> None:
        self.opened: dict[int, Descriptor] = {}
        self._free: list[
            int
        ] = []  # heap of the numbers given back, all below len(open) + len(free)

    def add(self, descriptor: Descriptor) -> int:
        """Enter a descriptor; return its number."""
        number = heapq.heappop(self._free) if self._free else len(self.opened)
        self.opened[number] = descriptor
        return number

    def get(self, number: int) -> Descriptor:
        """Return the descriptor, or raise EBADF."""
        try:
            return self.opened[number]
        except KeyError:
            raise Refused(errno.BADF) from None

    def need(self, number: int, right: int) -> Descriptor:
        """Return the descriptor if it has all of `right`, else raise as `Descriptor.need` does."""
        try:
            descriptor = self.opened[number]
        except KeyError:
            raise Refused(errno.BADF) from None
        if descriptor.base & right != right:
            raise descriptor.refusal(right)
        return descriptor

    def close(self, number: int) -> None:
        """Close a descriptor; its number may be given out again."""
        descriptor = self.get(number)
        del self.opened[number]
        heapq.heappush(self._free, number)
        descriptor.close()

    def renumber(self, source: int, target: int) -> None:
        """Move a descriptor over another one, which is closed."""
        moved, replaced = self.get(source), self.get(target)
        if source == target:
            return
        del self.opened[source]
        heapq.heappush(self._free, source)
        self.opened[target] = moved
        replaced.close()
