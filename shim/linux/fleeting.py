"""Memory for what a process must not keep: no fork inherits it, and it can be wiped (library).

What was on the heap can stay there long after it is freed, and every later fork has a copy.
"""

from __future__ import annotations

import mmap
from typing import Final

_MADV_WIPEONFORK: Final = 18


def buffer(size: int) -> memoryview:
    """Return `size` bytes of zeros, in pages of their own, which are zeros in forks, too.

    Raises OSError.
    """
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(_MADV_WIPEONFORK)
    return memoryview(pages)


def wipe(view: memoryview) -> None:
    """Overwrite it with zeros."""
    view[:] = bytes(len(view))
