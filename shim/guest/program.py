"""What the guest of a container and those of its further processes do alike. Runs in: guest.

From a clone of the shim to a process of its own, and from a confined process to the program.
"""

import fcntl
import os
import signal
import socket
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from oci.linux import Seccomp
from oci.runtime import Mount, Process, SpecError
from shim import hooks
from shim.engines.base import ModuleError, internal_error
from shim.engines.cache import ArtifactCache, write_artifact
from shim.guest import control, entrypoint, grants, privileges
from shim.guest.annotations import Annotations
from shim.linux import credentials, files, seccomp, signals

_ENDING = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGTERM,
)
"""Signals that end a process by default.

PID 1 of a namespace would ignore them, and WASI can handle none.
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """What every guest takes along from its shim's memory."""

    channel: socket.socket
    artifacts: int
    """Directory of the artifact cache."""
    annotations: Annotations
    preferred_engine: str

    def cache(self) -> ArtifactCache:
        """Return the cache, which only the shim may change."""

        def touch(key: bytes, verified: bool) -> None:
            control.send(self.channel, control.Touch(key, verified))

        return ArtifactCache(self.artifacts, touch=touch)


class Confinement(NamedTuple):
    """What is imposed at the very end: a user namespace to enter, and a seccomp filter."""

    user_namespace: int | None
    filter: bytes
    flags: int


class Streams(NamedTuple):
    """Standard input, output and error, and whether they are a terminal."""

    fds: Sequence[int]
    terminal: bool


class Ready(NamedTuple):
    """A program that can be run: what to say of it, and how to become it."""

    message: control.Ready
    run: Callable[[], None]


def be_apart(kept: Sequence[int]) -> None:
    """Be a process of its own, with none of the shim's descriptors but these."""
    # Nobody looks into a guest, whatever user it becomes: it has been a copy of its shim.
    credentials.set_dumpable(False)
    credentials.set_pdeathsig(signal.SIGKILL)
    os.setsid()
    signals.exit_on(_ENDING)
    files.keep_only(kept)


@contextmanager
def telling(channel: socket.socket) -> Iterator[None]:
    """Tell the shim of what goes wrong in the block, and then leave that behind."""
    try:
        yield
    except EOFError:
        return  # the shim has gone, or has no use for this guest any more
    except (SpecError, ModuleError) as error:
        failed = control.Failed(str(error), invalid=True)
    except hooks.HookError as error:
        failed = control.Failed(str(error), invalid=False)
    except OSError as error:
        failed = control.Failed(control.reason(error), invalid=False)
    except Exception as error:  # a mistake of ours, whose traceback goes to the zygote's log
        with suppress(OSError):
            control.send(channel, control.Failed(internal_error(error), invalid=False))
        raise
    else:
        return
    with suppress(OSError):
        control.send(channel, failed)


def await_start(channel: socket.socket, ready: control.Ready) -> None:
    """Say that the program is ready and wait for its start. Raises EOFError if nobody wants it."""
    control.send(channel, ready)
    if not isinstance(control.receive(channel)[0], control.Start):
        raise EOFError


def confinement(origin: Origin, profile: Seccomp | None, user_namespace: int | None) -> Confinement:
    """Make a profile's filter; a new one goes to the shim, who keeps it for the next guest."""
    if profile is None:
        return Confinement(user_namespace, b"", 0)
    key, filter_, cached = privileges.load_filter(profile, origin.cache())
    if not cached:
        kept = os.memfd_create("filter", os.MFD_CLOEXEC)
        write_artifact(kept, key, filter_)
        control.send(origin.channel, control.Keep(key), [kept])
        os.close(kept)
    return Confinement(user_namespace, filter_, seccomp.flag_bits(profile))


def load_module(
    origin: Origin,
    process: Process,
    visible: Sequence[Mount],
    streams: Streams,
    last: Confinement,
) -> Ready:
    """Become the user, load the module, and give it what it is granted.

    In the container's root and the program's working directory. Raises ModuleError, OSError,
    SpecError, EOFError.
    """
    compiled = entrypoint.compiled(origin, process)
    here = grants.open_directory(".")
    if compiled.mapped:
        # The user who the guest is about to become cannot enter it any more, only be there.
        os.fchdir(origin.artifacts)
    take_streams(streams)
    kept = [origin.channel.fileno(), compiled.artifact.fd, here]
    files.keep_only(kept if last.user_namespace is None else [*kept, last.user_namespace])
    listeners = [grants.listen(address) for address in origin.annotations.listen]
    missing = privileges.drop(process, *last)
    path, function = entrypoint.split(process.args[0])
    credentials.set_name(os.path.basename(path))
    module = compiled.load(function)
    if compiled.mapped:
        _leave(here)
    granted = grants.grant(process, visible, origin.annotations, here, listeners)
    message = control.Ready(compiled.engine.name, compiled.reason, missing)
    return Ready(message, lambda: module.run(granted, function))


def take_streams(streams: Streams) -> None:
    """Make them descriptors 0, 1 and 2, and a terminal the one that controls this session."""
    for target, fd in enumerate(streams.fds):
        os.dup2(fd, target)
    if streams.terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def enter_cwd(process: Process) -> None:
    """Go to the working directory, which is made if the image has none. Raises OSError."""
    try:
        os.chdir(process.cwd)
    except FileNotFoundError:
        os.makedirs(process.cwd, 0o755, exist_ok=True)
        os.chdir(process.cwd)


def _leave(here: int) -> None:
    """Go back to the directory `here`, or to the root where the user may not enter it."""
    try:
        os.fchdir(here)
    except PermissionError:
        os.chdir("/")
