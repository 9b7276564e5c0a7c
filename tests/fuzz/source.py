"""What a fuzz target makes of its input."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Numbers, choices and strings out of the bytes that a fuzzer varies; zeros where they end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is more."""
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int = 1) -> int:
        """An unsigned number of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def choice(self, items: Sequence[T]) -> T:
        """One of at most 256 things."""
        return items[self.number() % len(items)]

    def string(self, most: int = 255) -> bytes:
        """A length of one byte, and as many bytes."""
        return self.take(self.number() % (most + 1))


def scratch() -> str:
    """Make a directory, which goes when this process ends in order, or else with scripts/fuzz."""
    directory = tempfile.mkdtemp(prefix="fuzz-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
