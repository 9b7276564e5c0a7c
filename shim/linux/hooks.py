"""The spec's hooks: programs that run at the points of a container's life. Runs in: shim and guest.

The shim runs those of the runtime's namespaces, the guest those of the container's. A hook gets the
container's state on stdin, exactly the environment that it names, and the bundle as its working
directory where there is one. (runtime-spec, config.md "POSIX-platform Hooks", runtime.md "State".)
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from oci.runtime import Hook
from shim.linux import clone, files, signals
from shim.linux.reaping import ended

_REPORT_BYTES: Final = 4096
_NOT_EXECUTED: Final = 127


class State(msgspec.Struct, frozen=True, rename="camel"):
    """What a hook is told of its container; `status` is creating, created, running or stopped."""

    oci_version: str
    id: str
    status: str
    pid: int
    bundle: str
    annotations: Mapping[str, str]


class HookError(Exception):
    """A hook failed; the message is one line that names it."""


async def run(kind: str, hooks: Sequence[Hook], state: State) -> None:
    """Run hooks one after the other; `kind` is their name in the spec. Raises HookError."""
    for number, hook in enumerate(hooks):
        with _started(f"hooks.{kind}[{number}]", hook, state, state.bundle) as running:
            try:
                running.status = await asyncio.wait_for(ended(running.child), hook.timeout)
            except asyncio.TimeoutError:
                pass  # by which it has been killed


def run_here(kind: str, hooks: Sequence[Hook], state: State, cwd: str) -> None:
    """Run hooks in this process's namespaces, which waits for them. Raises HookError."""
    for number, hook in enumerate(hooks):
        with _started(f"hooks.{kind}[{number}]", hook, state, cwd) as running:
            pidfd = running.child.pidfd
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            in_time = poll.poll(None if hook.timeout is None else hook.timeout * 1000)
            if not in_time:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            status = clone.wait(pidfd)
            os.close(pidfd)
            if in_time:
                running.status = status


@dataclass
class _Running:
    child: clone.Child
    status: int | None = None
    """None until it has ended by itself."""


@contextmanager
def _started(name: str, hook: Hook, state: State, cwd: str) -> Iterator[_Running]:
    """Run a hook for which the block waits, and raise HookError if it has not ended well."""
    if hook.timeout is not None and hook.timeout <= 0:
        raise HookError(f"{name}.timeout: expected more than 0, got {hook.timeout}")
    if not os.path.isabs(hook.path):
        raise HookError(f"{name}.path: expected an absolute path, got {hook.path!r}")
    given = os.memfd_create("state", os.MFD_CLOEXEC)
    report = os.memfd_create("report", os.MFD_CLOEXEC)
    try:
        os.write(given, msgspec.json.encode(state))
        os.lseek(given, 0, os.SEEK_SET)
        running = _Running(clone.clone(lambda: _execute(hook, given, report, cwd)))
        yield running
        if running.status is None:
            raise HookError(f"{name}: {hook.path}: killed after {hook.timeout} s")
        if running.status:
            words = os.pread(report, _REPORT_BYTES, 0).decode(errors="replace").split()
            reason = f": {' '.join(words)}" if words else ""
            raise HookError(f"{name}: {hook.path}: ended with status {running.status}{reason}")
    finally:
        os.close(given)
        os.close(report)


def _execute(hook: Hook, given: int, report: int, cwd: str) -> None:
    try:
        os.setsid()
        for target, fd in enumerate((given, report, report)):
            os.dup2(fd, target)
        files.keep_only(())
        signals.reset_signals(keep=())
        os.chdir(cwd)
        environment = dict(variable.partition("=")[::2] for variable in hook.env)
        os.execve(hook.path, list(hook.args) or [hook.path], environment)
    except OSError as error:
        os.write(2, (error.strerror or "").encode())
        raise SystemExit(_NOT_EXECUTED) from None
