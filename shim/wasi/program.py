"""What the one program that this process runs was granted (library; runs in the guest)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence

from shim.wasi import descriptors, filetypes, rights
from shim.wasi.descriptors import Descriptor
from shim.wasi.errors import NotCapable
from shim.wasi.reactor import Reactor


class Program:
    """Arguments, environment and descriptors: what every host function uses.

    Made empty before the fork, when the host functions are bound to it; filled after it. A dialect
    that keeps more has a class of its own.
    """

    __slots__ = ("args", "cwd", "env", "listeners", "network", "preopens", "reactor", "stdio")

    def __init__(self) -> None:
        self.args: Sequence[bytes] = ()
        self.env: Sequence[bytes] = ()
        self.cwd: bytes | None = None  # the working directory's name, if it is not `/`
        self.stdio: Mapping[int, Descriptor] = {}  # 0, 1 and 2, as of the process
        self.listeners: Sequence[Descriptor] = ()
        self.preopens: Sequence[Descriptor] = ()
        self.network = True  # whether the guest may open sockets of its own
        self.reactor = Reactor()  # what its async functions wait for

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

        Descriptors 0, 1 and 2 of the process, which must be open, become the guest's. Listeners
        and preopens are taken over. A preopen may be O_PATH.

        `cwd` is the working directory if it is not `/`, described and taken over like a preopen.
        It lies over the preopen `/` (see `resolution.start`).
        """
        self.args = args
        self.env = env
        self.network = network
        self.stdio = {fd: descriptors.stdio(fd) for fd in range(3)}
        self.listeners = [descriptors.inherited(fd) for fd in listeners]
        self.preopens = [_directory(*preopen) for preopen in preopens]
        if cwd is None:
            return
        for directory in self.preopens:
            if directory.preopen == b"/":
                directory.cwd, self.cwd = _directory(*cwd), cwd[0]
                return
        os.close(cwd[1])  # without a `/` nothing is relative to it

    def need_network(self) -> None:
        """Raise `NotCapable` if the guest may use no network but the listeners it was given."""
        if not self.network:
            raise NotCapable


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
