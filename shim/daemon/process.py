"""A guest as its shim sees it, from its clone to its end. Runs in: shim.

The two speak over the control channel; the pidfd tells when the guest has ended.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import time
from collections.abc import Sequence

from oci.bundle import Outline, SpecError
from oci.linux import Resources
from shim import hooks
from shim.daemon import undertaker
from shim.daemon.artifacts import Artifacts
from shim.engines.base import ModuleError
from shim.engines.cache import Refusal
from shim.guest import annotations, control
from shim.guest.entry import Birth, live
from shim.guest.placement import Placement
from shim.linux import clone
from shim.linux.cgroups import Cgroup
from shim.linux.cgroups.metrics import Metrics, metrics
from shim.linux.time_namespace import for_children

_NEW = {
    "mount": clone.CLONE_NEWNS,
    "pid": clone.CLONE_NEWPID,
    "ipc": clone.CLONE_NEWIPC,
    "uts": clone.CLONE_NEWUTS,
    "network": clone.CLONE_NEWNET,
    "time": clone.CLONE_NEWTIME,
}
# New, and joined by path. To ignore one would be to isolate less than was asked for.
_JOINED = {"pid", "ipc", "uts", "network", "time", "cgroup", "user"}
_SUPPORTED = ({*_NEW, "cgroup", "user"}, _JOINED)
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

    def __init__(self, id: str, bundle: str, outline: Outline, artifacts: Artifacts) -> None:
        """Clone the guest of `bundle`, which begins to isolate itself at once. Raises GuestError.

        Needs no event loop yet: the rest of this class does, and `watch` first of all.
        """
        for namespace in outline.namespaces:
            if namespace.type not in _SUPPORTED[bool(namespace.path)]:
                what = f"{namespace.type} {namespace.path}".strip()
                raise GuestError(f"linux.namespaces: {what}: not implemented", invalid=True)
        self.id = id
        self.bundle = bundle
        self.outline = outline
        self._rootfs = -1
        self._artifacts = artifacts
        try:
            self.annotations = annotations.read(outline.annotations)
        except SpecError as error:
            raise GuestError(str(error), invalid=True) from error
        try:
            path = outline.cgroups_path
            self._placement = Placement.for_path(path) if path else None
        except OSError as error:
            raise GuestError(control.reason(error), invalid=error.errno == errno.EINVAL) from error
        ours, theirs = control.pair()
        birth = Birth(
            id,
            bundle,
            theirs,
            artifacts.directory,
            outline,
            self.annotations,
            artifacts.preferred_engine,
            self._placement,
        )
        try:
            with theirs:
                self.pid, self._pidfd = _clone(birth)
        except (OSError, SpecError) as error:
            ours.close()
            if self.cgroup is not None:
                self.cgroup.delete(patience=0)
            if isinstance(error, SpecError):
                raise GuestError(str(error), invalid=True) from error
            raise GuestError(control.reason(error), invalid=False) from error
        self._channel = ours

    @property
    def cgroup(self) -> Cgroup | None:
        """The container's own, if its spec names one."""
        return self._placement.cgroup if self._placement else None

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
        self.paused = False

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
            elif isinstance(message, control.Keep):
                self._artifacts.keep(message.key, fds[0])
            elif isinstance(message, control.Isolated):
                await self._run_early_hooks()

    async def _run_early_hooks(self) -> None:
        state = self.state("creating")
        try:
            await hooks.run("prestart", self.outline.hooks.prestart, state)
            await hooks.run("createRuntime", self.outline.hooks.create_runtime, state)
        except hooks.HookError as error:
            raise GuestError(str(error), invalid=False) from None
        self._tell(control.Continue())

    def state(self, status: str) -> hooks.State:
        """Return what hooks are told of the container."""
        outline = self.outline
        return hooks.State(
            outline.oci_version, self.id, status, self.pid, self.bundle, outline.annotations
        )

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

    async def start(self, *, hooked: bool) -> None:
        """Let the program run; `hooked` as in Ready. Raises GuestError if a hook has failed."""
        self._tell(control.Start())
        if hooked:
            packet = await self._inbox.get()
            answer = packet[0] if packet else control.Failed("the guest ended before", False)
            if isinstance(answer, control.Failed):
                raise GuestError(answer.reason, invalid=answer.invalid)
        self._hang_up()

    def kill(self, signum: int) -> None:
        """Send a signal. Raises ProcessLookupError if the guest has ended."""
        if self.exited.done():
            raise ProcessLookupError(f"process {self.pid} has ended")
        signal.pidfd_send_signal(self._pidfd, signum)
        if self.paused and signum == signal.SIGKILL:
            self.resume()  # what is frozen on cgroup v1 does not even die

    def pause(self) -> None:
        """Stop the guest where it stands. Raises OSError, also where it has no cgroup."""
        self._own_cgroup().freeze()
        self.paused = True

    def resume(self) -> None:
        """Let it go on. Raises OSError."""
        self._own_cgroup().thaw()
        self.paused = False

    def _own_cgroup(self) -> Cgroup:
        if self.cgroup is None:
            raise OSError(errno.ENOENT, "the container has no cgroup of its own", "cgroupsPath")
        return self.cgroup

    async def update(self, resources: Resources) -> None:
        """Change the limits that are given. Raises OSError naming the field."""
        self._own_cgroup()
        placement = self._placement
        assert placement is not None
        if placement.scope is None:
            placement.update(resources)
            return
        # To talk to systemd takes as long as systemd takes, which this loop cannot wait for.
        ours, theirs = control.pair()
        with theirs:
            child = clone.clone(lambda: _update(placement, resources, theirs))
        try:
            await self._ended(child.pidfd)
            message, _ = control.receive(ours)
            if isinstance(message, control.Failed):
                raise OSError(message.reason)
        finally:
            ours.close()

    async def _ended(self, pidfd: int) -> None:
        ended = asyncio.Event()
        self._loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            self._loop.remove_reader(pidfd)
            clone.wait(pidfd)
            os.close(pidfd)

    def metrics(self) -> Metrics:
        """Return what the container uses. Raises OSError."""
        return metrics(self._own_cgroup())

    async def discard(self) -> None:
        """End the guest, whatever it does, and free what it held."""
        if not self.exited.done():
            self.kill(signal.SIGKILL)
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
    offsets = birth.outline.time_offsets
    with contextlib.ExitStack() as stack:
        if flags & clone.CLONE_NEWTIME and offsets:
            stack.enter_context(for_children(offsets))
            flags &= ~clone.CLONE_NEWTIME
        cgroup = None
        if birth.placement is not None and birth.placement.born_in:
            birth.placement.cgroup.create()
            cgroup = birth.placement.cgroup.open_dir()
            stack.callback(os.close, cgroup)
        if pid_namespace:
            # A process cannot change its own PID namespace, only that of its children to come.
            own = _open_namespace("/proc/self/ns/pid", stack)
            clone.setns(_open_namespace(pid_namespace, stack), clone.CLONE_NEWPID)
            stack.callback(clone.setns, own, clone.CLONE_NEWPID)
        return clone.clone(lambda: live(birth), flags, cgroup=cgroup)


def _update(placement: Placement, resources: Resources, channel: socket.socket) -> None:
    try:
        placement.update(resources)
        control.send(channel, control.Continue())
    except OSError as error:
        control.send(channel, control.Failed(control.reason(error), invalid=False))


def _open_namespace(path: str, stack: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd
