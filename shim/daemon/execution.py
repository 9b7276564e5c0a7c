"""A further program of a container: `ctr task exec`, `kubectl exec`, exec probes. Runs in: shim."""

import contextlib
import os

from oci.runtime import SpecError, decode_process
from shim.daemon.child import Child, GuestError
from shim.daemon.guest import Guest
from shim.daemon.log import Logger
from shim.daemon.program import Program
from shim.daemon.stdio import Stdio
from shim.guest import control
from shim.guest.execution import Birth, live
from shim.guest.program import Origin
from shim.linux import clone
from shim.ttrpc import Code, RpcError


class Exec(Program):
    """A program of a running container; its process is there from `start` on."""

    def __init__(self, id: str, guest: Guest, process: bytes, stdio: Stdio, log: Logger) -> None:
        super().__init__(guest.id, id, stdio)
        self._guest = guest
        self._process = process
        self._log = log

    async def start(self) -> None:
        """Run it. Raises RpcError, and then it can be tried again."""
        if self._started:
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot start a {self.state()} process")
        if self._guest.exited.done() or self._guest.paused:
            raise RpcError(Code.FAILED_PRECONDITION, "cannot exec: the container does not run")
        self._started = True
        try:
            child = await self._create()
        except (GuestError, OSError, SpecError) as error:
            self._started = False
            self.stdio.close()
            if isinstance(error, OSError):
                raise RpcError(Code.UNKNOWN, control.reason(error)) from error
            invalid = not isinstance(error, GuestError) or error.invalid
            code = Code.INVALID_ARGUMENT if invalid else Code.UNKNOWN
            raise RpcError(code, str(error)) from error
        self._process = b""  # its environment may hold secrets
        self._adopt(child)
        await self._start()

    async def _create(self) -> Child:
        fds = self.stdio.open()
        try:
            await self.stdio.ready()
            if self.stdio.terminal and (size := decode_process(self._process).console_size):
                self.stdio.resize(size.width, size.height)
            child = _join(self._guest)
            child.watch()
            try:
                ready = await child.prepare(self._process, fds, terminal=self.stdio.terminal)
            except BaseException:
                await child.discard()
                raise
        finally:
            for fd in fds:
                os.close(fd)
        self._log.debug(
            "exec", task=self.container_id, exec=self.id, pid=child.pid, engine=ready.engine
        )
        return child

    async def discard(self) -> None:
        """End it, whatever it does, and free what it held."""
        if self._child is not None:
            await self._child.discard()
        await self.stdio.drain()
        self.stdio.close()


class _Joined(Child):
    """A guest in the namespaces of another."""

    async def prepare(self, process: bytes, fds: list[int], *, terminal: bool) -> control.Ready:
        """Tell it what to run, and wait until it is ready to start. Raises GuestError."""
        return await self._prepare(control.Execute(process, terminal), fds)


def _join(guest: Guest) -> _Joined:
    """Clone a guest into the PID namespace and the cgroup of another, whose rest it joins itself.

    Raises OSError.
    """
    # An address can be listened on once.
    annotations = guest.annotations._replace(listen=())
    ours, theirs = control.pair()
    artifacts = guest.artifacts
    origin = Origin(theirs, artifacts.directory, annotations, artifacts.preferred_engine)
    init = clone.Child(guest.pid, guest.pidfd)
    birth = Birth(origin, guest.bundle, init, guest.placement)
    try:
        with theirs, contextlib.ExitStack() as stack:
            cgroup = None
            if birth.placement is not None and birth.placement.cgroup.unified:
                cgroup = birth.placement.cgroup.open_dir()
                stack.callback(os.close, cgroup)
            own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, own)
            clone.setns(guest.pidfd, clone.CLONE_NEWPID)
            stack.callback(clone.setns, own, clone.CLONE_NEWPID)
            child = clone.clone(lambda: live(birth), cgroup=cgroup)
    except OSError:
        ours.close()
        raise
    return _Joined(child, ours, artifacts)
