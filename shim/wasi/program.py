"""The state of the one program that this process runs (library; runs in the guest)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence

from shim.wasi import descriptors, rights
from shim.wasi.descriptors import Descriptor, Table
from shim.wasi.memory import Memory


class Program:
    """Arguments, environment, descriptors and memory of a guest: what every host function uses.

    Made empty before the fork, when the host functions are bound to it; filled after it.
    """

    __slots__ = ("args", "descriptors", "env", "memory")

    def __init__(self) -> None:
        self.args: Sequence[bytes] = ()
        self.env: Sequence[bytes] = ()
        self.descriptors = Table()
        self.memory = Memory()

    def grant(
        self,
        args: Sequence[bytes],
        env: Sequence[bytes],
        preopens: Iterable[tuple[bytes, int, bool]],
    ) -> None:
        """Hand over what was granted: strings and preopened (name, descriptor, read-only).

        Descriptors 0, 1 and 2 of the process, which must be open, become the guest's; preopens
        follow from 3 and are taken over. A preopen may be O_PATH.
        """
        self.args = args
        self.env = env
        for fd in range(3):
            self.descriptors.add(descriptors.stdio(fd))
        for name, fd, readonly in preopens:
            self.descriptors.add(
                Descriptor(
                    _readable(fd),
                    descriptors.DIRECTORY,
                    rights.DIRECTORY,
                    rights.ALL,
                    readonly=readonly,
                    preopen=name,
                )
            )


def _readable(directory: int) -> int:
    """Return a descriptor of the same directory that can also be synced and have its times set."""
    if not fcntl.fcntl(directory, fcntl.F_GETFL) & os.O_PATH:
        return directory
    try:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return directory  # may be searched but not read: O_PATH it stays
    os.close(directory)
    return fd
