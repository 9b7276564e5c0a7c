"""Words of a spec that become part of a file's name or content (library)."""

from __future__ import annotations

import errno
import re
from typing import Final

from shim.linux.cgroups.files import refusal

_PAGE_SIZE: Final = re.compile(r"[1-9][0-9]*[KMGT]?B", re.ASCII)
_RANGE: Final = re.compile(r"([0-9]+)(?:-([0-9]+))?", re.ASCII)
_MOST_CPUS: Final = 1 << 16


def page_size(name: str) -> str:
    """A size of huge pages as the kernel's files have it, such as 2MB. Raises OSError (EINVAL)."""
    if not _PAGE_SIZE.fullmatch(name):
        raise refusal(errno.EINVAL, "hugepageLimits", f"{name!r}: not a page size such as 2MB")
    return name


def check_word(field: str, name: str) -> str:
    """A name that is one word to the kernel. Raises OSError (EINVAL)."""
    if name.split() != [name]:
        raise refusal(errno.EINVAL, field, f"{name!r}: not the name of a device")
    return name


def pids_limit(limit: int) -> str:
    """What pids.max shall hold: 0 is 1, because systemd has no limit of 0, nor has runc."""
    return "max" if limit < 0 else str(limit or 1)


def cpu_list(field: str, numbers: str) -> set[int]:
    """The numbers in a list such as 0-2,7. Raises OSError (EINVAL)."""
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in numbers.split(","))):
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= _MOST_CPUS:
            found.clear()
            break
        found.update(range(first, last + 1))
    if not found:
        raise refusal(errno.EINVAL, field, f"{numbers!r}: not a list such as 0-2,7")
    return found
