"""What the guest of a container and those of its further processes do alike. Runs in: guest.

From a clone of the shim to a process of its own, and from a confined process to the program.
"""

import errno
import fcntl
import os
import signal
import socket
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import BuiltinImporter, FrozenImporter
from typing import NamedTuple

from oci.linux import Seccomp
from oci.runtime import Mount, Process, SpecError
from shim.engines.base import ModuleError, TryAgainError, internal_error
from shim.engines.cache import write_filter
from shim.guest import control, entrypoint, environment, grants, privileges
from shim.guest.arrival import arrive
from shim.guest.compiled import compiled
from shim.guest.origin import Origin
from shim.guest.privileges import Confinement
from shim.linux import clone, credentials, files, hooks, seccomp, signals
from shim.linux.messages import cut
from shim.linux.title import set_title

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


class Outlook(NamedTuple):
    """How a guest that has entered the container's root looks into it before it is confined.

    Descriptors of that root and of the host's /proc; and who the program is going to be.
    """

    root: int
    proc: int
    identity: credentials.Identity


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
    # It will be in the image's root soon, where at our paths there is whatever the image likes.
    sys.meta_path[:] = (BuiltinImporter, FrozenImporter)
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
    except TryAgainError as error:
        _fail(channel, str(error), number=errno.EAGAIN)
    except (SpecError, ModuleError) as error:
        _fail(channel, str(error), invalid=True)
    except hooks.HookError as error:
        _fail(channel, str(error))
    except OSError as error:
        _fail(channel, control.reason(error))
    except Exception as error:  # a mistake of ours, whose traceback goes to the zygote's log
        _fail(channel, internal_error(error))
        raise


def _fail(channel: socket.socket, reason: str, *, invalid: bool = False, number: int = 0) -> None:
    with suppress(OSError):
        # Not whole, if it repeats something that would not fit into a packet.
        control.send(channel, control.Failed(cut(reason), invalid, number))


def await_start(channel: socket.socket, ready: control.Ready) -> None:
    """Say that the program is ready and wait for its start. Raises EOFError if nobody wants it."""
    control.send(channel, ready)
    if not isinstance(control.receive(channel)[0], control.Start):
        raise EOFError


def confinement(origin: Origin, profile: Seccomp | None) -> Confinement:
    """Make a profile's filter; a new one goes to the shim, who keeps it for the next guest."""
    if profile is None:
        return Confinement()
    key, filter_, cached = privileges.load_filter(profile, origin.cache())
    if not cached:
        kept = os.memfd_create("filter", os.MFD_CLOEXEC)
        write_filter(kept, key, filter_)
        control.send(origin.channel, control.Keep(key), [kept])
        os.close(kept)
    return Confinement(filter=filter_, flags=seccomp.flag_bits(profile))


def load_module(
    origin: Origin,
    process: Process,
    visible: Sequence[Mount],
    streams: Streams,
    last: Confinement,
    outlook: Outlook,
) -> Ready:
    """Become the user, load the module, and give it what it is granted.

    In the container's root and the program's working directory. Raises ModuleError, OSError,
    SpecError, EOFError.
    """
    with credentials.acting_as(outlook.identity):
        found = entrypoint.find(process, outlook.root, outlook.proc)
        process = environment.with_home(process, outlook.root, outlook.proc)
        listeners = [grants.listen(address) for address in origin.annotations.listen]
    made = compiled(origin, found)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    kept = [*made.fds, outlook.root, here, *listeners]
    # A working directory is in reach of others in the PID namespace, see `arrival`.
    mapped = made.can_be_mapped and last.pid_namespace is None
    if mapped:
        # The user who the guest is about to become cannot enter it any more, only be there.
        os.fchdir(origin.artifacts)
    set_title(os.path.basename(found.path), *process.args)
    missing = settle(origin, process, streams, last, kept)
    module = made.load(found.function, mapped=mapped)
    if mapped:
        _leave(here)
    granted = grants.grant(process, visible, origin.annotations, outlook.root, here, listeners)
    message = control.Ready(made.engine.name, made.reason, missing)
    return Ready(message, lambda: module.run(granted, found.function))


def settle(
    origin: Origin,
    process: Process,
    streams: Streams,
    last: Confinement,
    kept: Sequence[int] = (),
) -> list[str]:
    """Become the program's user, confined for good, with its streams and the descriptors `kept`.

    Returns the capabilities that could not be granted. Raises OSError, EOFError.
    """
    for target, fd in enumerate(streams.fds):
        os.dup2(fd, target)
    if last.pid_namespace is not None:
        clone.setns(last.pid_namespace, clone.CLONE_NEWPID)
    elif streams.terminal:
        _control_terminal()
    kept = [origin.channel.fileno(), *kept]
    files.keep_only(kept if last.user_namespace is None else [*kept, last.user_namespace])
    control.send(origin.channel, control.Sealed())

    def arriving() -> None:
        arrive(origin.channel)
        if streams.terminal:
            _control_terminal()

    return privileges.drop(process, last, arriving)


def _control_terminal() -> None:
    """Let standard input be the terminal that controls this session, which has none yet."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _leave(here: int) -> None:
    """Go back to the directory `here`, or to the root where the user may not enter it."""
    try:
        os.fchdir(here)
    except PermissionError:
        os.chdir("/")
