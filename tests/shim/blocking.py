"""Calls that could block a shim's event loop, made to raise there: for tests.

Nothing is timed: what could wait is refused, even if this time it would not have had to. Where that
is known beforehand, only what would: for a child that has not ended, a pipe with nothing to read.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from oci.linux import Resources
from shim.linux.cgroups import Cgroup
from shim.linux.systemd.manager import Systemd
from tests.shim.launching import ROOT

_SHIM = f"{ROOT}/shim/"
_LOOP = asyncio.events.__file__
_READS, _WRITES = select.POLLIN, select.POLLOUT
_really_poll, _really_waitid = select.poll, os.waitid


class WouldBlockError(Exception):
    """A call that could block a loop."""


def interpreter(directory: Path) -> tuple[str, Path]:
    """Make an interpreter for zygotes whose shims raise, and name the file where they report it.

    Each report is the call, and the stack that it came from.
    """
    report = directory / "blocking"
    prelude = (
        f"import sys; sys.path.insert(0, {ROOT!r}); from tests.shim.blocking import forbid; "
        f"forbid({str(report)!r}); exec(sys.argv.pop(1))"
    )
    program = directory / "python"
    # As the launcher calls it: -I -c PROGRAM ARGUMENT...
    command = f"exec {shlex.quote(sys.executable)} -I -c {shlex.quote(prelude)}"
    program.write_text(f'#!/bin/sh\nshift 2\n{command} "$@"\n')
    program.chmod(0o755)
    return str(program), report


def forbid(report: str) -> None:
    """Make what could block raise `WouldBlockError`, in this process and in its forks.

    Where a loop runs in the thread, and the call comes from the shim's code.
    """

    def guard(owner: Any, name: str, could_block: Callable[..., bool]) -> None:
        really = getattr(owner, name)

        @functools.wraps(really)
        def call(*args: Any, **named: Any) -> Any:
            if _in_a_shims_loop() and could_block(*args, **named):
                what = f"{owner.__name__}.{name}{args}"
                with open(report, "a") as file:
                    file.write(f"{what}\n{''.join(traceback.format_stack())}\n")
                raise WouldBlockError(what)
            return really(*args, **named)

        setattr(owner, name, call)

    for owner, name in (
        (os, "wait"),
        (os, "system"),
        (time, "sleep"),
        (signal, "pause"),
        (signal, "sigwait"),
        (signal, "sigwaitinfo"),
        (subprocess.Popen, "wait"),
        (subprocess.Popen, "communicate"),
    ):
        guard(owner, name, _always)
    guard(os, "waitid", _waits_for_child)
    for name in ("waitpid", "wait4"):
        guard(os, name, lambda pid, options: _waits_for_child(os.P_PID, pid, options))
    guard(fcntl, "flock", lambda _, how: not how & (fcntl.LOCK_NB | fcntl.LOCK_UN))
    guard(fcntl, "lockf", lambda _, how, *_range: not how & (fcntl.LOCK_NB | fcntl.LOCK_UN))
    guard(select, "select", lambda _r, _w, _x, timeout=None: timeout != 0)
    guard(_Poll, "poll", lambda _, timeout=None: timeout != 0)
    setattr(select, "poll", _Poll)  # noqa: B010 - in mypy's eyes it is a type
    guard(os, "open", _opens)
    # What says so of itself.
    guard(Systemd, "__init__", _always)
    guard(Cgroup, "freeze", _always)
    guard(Cgroup, "delete", lambda _, patience=1: patience > 0)
    guard(Cgroup, "limit", _takes_memory)
    for name, event in (("read", _READS), ("readv", _READS), ("write", _WRITES)):
        guard(os, name, functools.partial(_waits_for, event))
    guard(socket.socket, "connect", lambda self, _: self.gettimeout() != 0)
    for names, event in (
        (("accept", "recv", "recv_into", "recvfrom", "recvmsg", "recvmsg_into"), _READS),
        (("send", "sendall", "sendmsg", "sendto"), _WRITES),
    ):
        for name in names:
            guard(socket.socket, name, functools.partial(_speaks, event))


def _in_a_shims_loop() -> bool:
    if asyncio._get_running_loop() is None:  # nor in a fork, until it has one of its own
        return False
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != _LOOP:
        if frame.f_code.co_filename.startswith(_SHIM):
            return True
        frame = frame.f_back
    return False


def _always(*_: Any, **__: Any) -> bool:
    return True


def _takes_memory(self: Cgroup, resources: Resources, **_: Any) -> bool:
    """Whether a limit is lowered for somebody who may have to give memory back."""
    wanted = resources.memory.limit
    directory = self.directory("" if self.unified else "memory")
    if wanted is None or directory is None or not self.pids():
        return False
    file = "memory.max" if self.unified else "memory.limit_in_bytes"
    limit = Path(directory, file).read_text().strip()
    return limit == "max" or 0 <= wanted < int(limit)


def _waits_for_child(kind: Any, whom: int, options: int) -> bool:
    if options & os.WNOHANG:
        return False
    try:
        return _really_waitid(kind, whom, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def _opens(path: Any, flags: int, _mode: int = 0, *, dir_fd: int | None = None) -> bool:
    """Whether an open may wait for somebody at the other end of a FIFO: it is not held here."""
    if flags & (os.O_NONBLOCK | os.O_PATH) or flags & os.O_ACCMODE == os.O_RDWR:
        return False
    try:
        if not stat.S_ISFIFO(os.stat(path, dir_fd=dir_fd).st_mode):
            return False
    except OSError:
        return False
    _, ours, fd = str(path).rpartition("/proc/self/fd/")
    if not ours:
        return True
    if os.readlink(path).startswith("pipe:"):  # which has no name, and so nobody who could come
        return False
    held, wanted = fcntl.fcntl(int(fd), fcntl.F_GETFL) & os.O_ACCMODE, flags & os.O_ACCMODE
    return held != os.O_RDWR and held == wanted


def _waits_for(event: int, fd: int, *_: Any) -> bool:
    kind = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or os.isatty(fd)):
        return False
    return os.get_blocking(fd) and not _is_ready(fd, event)


def _speaks(event: int, self: socket.socket, *args: Any) -> bool:
    if self.gettimeout() == 0 or any(arg == socket.MSG_DONTWAIT for arg in args):
        return False
    return not _is_ready(self.fileno(), event)


def _is_ready(fd: int, event: int) -> bool:
    poll = _really_poll()
    poll.register(fd, event)
    return bool(poll.poll(0))


class _Poll:
    """What `select.poll` makes, with a method that can be replaced."""

    def __init__(self) -> None:
        poll = _really_poll()
        self.register, self.modify, self.unregister = poll.register, poll.modify, poll.unregister
        self._poll = poll.poll

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        return self._poll(timeout)
