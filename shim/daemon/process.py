"""A guest as its shim sees it, from its clone to its end. Runs in: shim.

The two speak over the control channel; the pidfd tells when the guest has ended.
"""

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Sequence

from oci.bundle import Outline, SpecError
from shim.daemon import undertaker
from shim.daemon.artifacts import Artifacts
from shim.engines.base import ModuleError
from shim.engines.cache import Refusal
from shim.guest import annotations, control
from shim.guest.entry import Birth, live
from shim.linux import clone
from shim.linux.cgroups import Cgroup

_NEW = {
    "mount": clone.CLONE_NEWNS,
    "pid": clone.CLONE_NEWPID,
    "ipc": clone.CLONE_NEWIPC,
    "uts": clone.CLONE_NEWUTS,
    "network": clone.CLONE_NEWNET,
}
# New, and joined by path. To ignore one would be to isolate less than was asked for.
_SUPPORTED = ({*_NEW, "cgroup"}, {"pid", "ipc", "uts", "network"})
_DELETE_TRIES, _DELETE_PAUSE = 100, 0.002


class GuestError(Exception):
    """A guest could not be made.

    `invalid`: because of the spec or the image, not of this machine.
    """

    def __init__(self, reason: str, *, invalid: bool) -> None:
        super().__init__(reason)
        self.invalid = invalid


class Guest:
    """One guest process, from its clone to its end."""

    def __init__(self, bundle: str, outline: Outline, artifacts: Artifacts) -> None:
        """Clone the guest of `bundle`, which begins to isolate itself at once. Raises GuestError.

        Needs no event loop yet: the rest of this class does, and `watch` first of all.
        """
        for namespace in outline.namespaces:
            if namespace.type not in _SUPPORTED[bool(namespace.path)]:
                what = f"{namespace.type} {namespace.path}".strip()
                raise GuestError(f"linux.namespaces: {what}: not implemented", invalid=True)
        self.bundle = bundle
        self._rootfs = -1
        self._artifacts = artifacts
        try:
            self.annotations = annotations.read(outline.annotations)
        except SpecError as error:
            raise GuestError(str(error), invalid=True) from error
        try:
            self.cgroup = Cgroup.for_path(outline.cgroups_path) if outline.cgroups_path else None
        except OSError as error:
            raise GuestError(control.reason(error), invalid=error.errno == errno.EINVAL) from error
        ours, theirs = control.pair()
        birth = Birth(
            bundle,
            theirs,
            artifacts.directory,
            outline,
            self.annotations,
            artifacts.preferred_engine,
            self.cgroup,
        )
        try:
            with theirs:
                self.pid, self._pidfd = _clone(birth)
        except OSError as error:
            ours.close()
            if self.cgroup is not None:
                self.cgroup.delete(patience=0)
            raise GuestError(control.reason(error), invalid=False) from error
        self._channel = ours

    def watch(self) -> None:
        """Listen to the guest, and for its end."""
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[tuple[control.Message, list[int]] | None] = asyncio.Queue()
        self._loop.add_reader(self._channel, self._receive)
        self._loop.add_reader(self._pidfd, self._reap)
        self.exited: asyncio.Future[int] = self._loop.create_future()
        """Exit status, 128 + n for a death by signal n."""
        self.exited_at = 0
        """Nanoseconds since the epoch."""

    async def prepare(self, rootfs: Sequence[control.Mount], stdio: Sequence[int]) -> control.Ready:
        """Give the guest what only Create knows and wait until it is ready to start.

        Raises GuestError.
        """
        self._tell(control.Prepare(list(rootfs)), stdio)
        while True:
            packet = await self._inbox.get()
            if packet is None:
                # The channel ends a moment before the process does.
                status = await asyncio.wait_for(asyncio.shield(self.exited), 5)
                raise GuestError(
                    f"the guest ended while it was set up (status {status})", invalid=False
                )
            message, fds = packet
            if isinstance(message, control.Ready):
                if any(mount.type == "overlay" for mount in rootfs):
                    self._rootfs = undertaker.hold(self.pid)
                return message
            if isinstance(message, control.Failed):
                raise GuestError(message.reason, invalid=message.invalid)
            if isinstance(message, control.Compile):
                await self._compile(message, fds)

    async def _compile(self, request: control.Compile, fds: list[int]) -> None:
        try:
            made = await self._artifacts.make(request, fds[0])
        except ModuleError as error:
            self._tell(control.Refused(str(error)))
        else:
            if isinstance(made, Refusal):
                self._tell(control.Refused(made.reason))
            else:
                self._tell(control.Compiled(made.length, made.name), [made.fd])
                made.close()
        finally:
            for fd in fds:
                os.close(fd)

    def start(self) -> None:
        """Let the program run."""
        self._tell(control.Start())
        self._hang_up()

    def kill(self, signum: int) -> None:
        """Send a signal. Raises ProcessLookupError if the guest has ended."""
        if self.exited.done():
            raise ProcessLookupError(f"process {self.pid} has ended")
        signal.pidfd_send_signal(self._pidfd, signum)

    async def discard(self) -> None:
        """End the guest, whatever it does, and free what it held."""
        if not self.exited.done():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await asyncio.shield(self.exited)
        self._hang_up()
        if self._rootfs >= 0:
            undertaker.bury(self._rootfs)
            self._rootfs = -1
        if self.cgroup is not None:
            await _delete(self.cgroup)

    def _tell(self, message: control.Message, fds: Sequence[int] = ()) -> None:
        try:
            control.send(self._channel, message, fds)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended: what it said last, and its exit, are on their way

    def _receive(self) -> None:
        try:
            self._inbox.put_nowait(control.receive(self._channel))
        except (BlockingIOError, ConnectionResetError):
            # Reset says that it ended without reading our last; its own last is still to be read.
            return
        except (EOFError, OSError):
            self._hang_up()
            self._inbox.put_nowait(None)

    def _hang_up(self) -> None:
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel)
            self._channel.close()

    def _reap(self) -> None:
        self.exited_at = time.time_ns()
        self._loop.remove_reader(self._pidfd)
        status = clone.wait(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self.exited.set_result(status)


async def _delete(cgroup: Cgroup) -> None:
    """Remove a cgroup that a process has just left, or is about to leave."""
    for _ in range(_DELETE_TRIES):
        try:
            cgroup.delete(patience=0)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        await asyncio.sleep(_DELETE_PAUSE)
    cgroup.delete(patience=0)


def _clone(birth: Birth) -> clone.Child:
    # Its own mounts are what keeps a guest out of the host's, so it has them without being asked.
    flags = clone.CLONE_NEWNS
    pid_namespace = ""
    for namespace in birth.outline.namespaces:
        if not namespace.path:
            flags |= _NEW.get(namespace.type, 0)
        elif namespace.type == "pid":
            pid_namespace = namespace.path
    with contextlib.ExitStack() as stack:
        cgroup = None
        if birth.cgroup is not None and birth.cgroup.unified:
            birth.cgroup.create()
            cgroup = birth.cgroup.open_dir()
            stack.callback(os.close, cgroup)
        if pid_namespace:
            # A process cannot change its own PID namespace, only that of its children to come.
            own = _open_namespace("/proc/self/ns/pid", stack)
            clone.setns(_open_namespace(pid_namespace, stack), clone.CLONE_NEWPID)
            stack.callback(clone.setns, own, clone.CLONE_NEWPID)
        return clone.clone(lambda: live(birth), flags, cgroup=cgroup)


def _open_namespace(path: str, stack: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd
