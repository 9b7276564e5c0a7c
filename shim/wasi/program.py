"""The state of the one program that this process runs (library; runs in the guest)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from typing import Final

from shim.wasi import descriptors, filetypes, rights
from shim.wasi.descriptors import Descriptor, Table
from shim.wasi.memory import Memory

_LISTENER: Final = b"socket"  # the name that a libc which takes it for a directory will see


class Program:
    """Arguments, environment, descriptors and memory of a guest: what every host function uses.

    Made empty before the fork, when the host functions are bound to it; filled after it.
    """

    __slots__ = ("args", "descriptors", "env", "memory", "network")

    def __init__(self) -> None:
        self.args: Sequence[bytes] = ()
        self.env: Sequence[bytes] = ()
        self.descriptors = Table()
        self.memory = Memory()
        self.network = True  # whether the guest may open sockets of its own

    def grant(
        self,
        args: Sequence[bytes],
        env: Sequence[bytes],
        preopens: Iterable[tuple[bytes, int, bool, bool]],
        *,
        listeners: Sequence[int] = (),
        network: bool = True,
        cwd: tuple[bytes, int, bool, bool] | None = None,
    ) -> None:
        """Hand over what was granted: strings and preopens (name, descriptor, read-only, confined).

        Descriptors 0, 1 and 2 of the process, which must be open, become the guest's. Listening
        sockets follow from 3, as sd_listen_fds(3) has it and LISTEN_FDS tells the guest; then
        preopens. Both are taken over. A preopen may be O_PATH.

        `cwd` is the working directory if it is not `/`, described and taken over like a preopen.
        It lies over the preopen `/` (see `resolution.start`).
        """
        self.args = args
        self.env = env
        self.network = network
        for fd in range(3):
            self.descriptors.add(descriptors.stdio(fd))
        for fd in listeners:
            listener = descriptors.inherited(fd)
            listener.preopen = _LISTENER
            self.descriptors.add(listener)
        if listeners and not any(pair.startswith(b"LISTEN_FDS=") for pair in env):
            self.env = [*env, b"LISTEN_FDS=%d" % len(listeners)]
        for preopen in preopens:
            directory = _directory(*preopen)
            if cwd is not None and directory.preopen == b"/":
                directory.cwd, cwd = _directory(*cwd), None
            self.descriptors.add(directory)
        if cwd is not None:  # without a `/` nothing is relative to it
            os.close(cwd[1])


def _directory(name: bytes, fd: int, readonly: bool, confined: bool) -> Descriptor:
    return Descriptor(
        _readable(fd),
        filetypes.DIRECTORY,
        rights.DIRECTORY,
        rights.ALL,
        readonly=readonly,
        confined=confined,
        preopen=name,
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
