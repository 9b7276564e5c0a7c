"""The memory of this process that is not a file's, by its mappings (library)."""

from __future__ import annotations

from collections.abc import Iterator

from shim.linux.files import read_small

HEAP = b"[heap]"
"""What /proc calls the memory below the break (proc_pid_maps(5)); the rest has no name."""


def private(*names: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of what is private and writable and has one of these names."""
    for line in read_small("/proc/self/maps").splitlines():
        span, access, *_, name = [*line.split(None, 5), b""][:6]
        if access == b"rw-p" and name.strip() in names:
            begin, _, end = span.partition(b"-")
            yield int(begin, 16), int(end, 16)
