"""Equal pages of many processes, made one by the kernel: KSM (library; runs in the shim)."""

from __future__ import annotations

import mmap
from typing import Final

from shim.linux import mappings
from shim.linux.libc import memory_advise

_MADV_MERGEABLE: Final = getattr(mmap, "MADV_MERGEABLE", 12)


def allow() -> None:
    """Let the kernel merge the memory that this process and its forks have now (madvise(2)).

    That is the interpreter's, with all that forks put there, a guest's arguments and environment
    among it. A module's linear memory comes later and is not: whether a page was merged shows in
    the time that writing to it takes, and a page of that could hold a guess at what another has.
    Raises OSError (EINVAL: the kernel has no KSM).
    """
    for begin, end in mappings.private(b""):
        memory_advise(begin, end - begin, _MADV_MERGEABLE, "MADV_MERGEABLE")
