"""A program of preview 1: its numbered descriptors and its memory (library; runs in the guest)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from shim.wasi.preview1.memory import Memory
from shim.wasi.preview1.table import Table
from shim.wasi.program import Program as Granted

_LISTENER: Final = b"socket"  # the name that a libc which takes it for a directory will see


class Program(Granted):
    """What every host function of preview 1 uses."""

    __slots__ = ("descriptors", "memory")

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = Table()
        self.memory = Memory()

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
        """Hand over what was granted, and number it.

        The standard streams are 0, 1 and 2. Listening sockets follow from 3, as sd_listen_fds(3)
        has it and LISTEN_FDS tells the guest; then preopens.
        """
        if listeners and not any(pair.startswith(b"LISTEN_FDS=") for pair in env):
            env = [*env, b"LISTEN_FDS=%d" % len(listeners)]
        super().grant(args, env, preopens, listeners=listeners, network=network, cwd=cwd)
        for listener in self.listeners:
            listener.preopen = _LISTENER
        for descriptor in (*self.stdio.values(), *self.listeners, *self.preopens):
            self.descriptors.add(descriptor)
