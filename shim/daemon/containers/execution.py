"""A further program of a container: `ctr task exec`, `kubectl exec`, exec probes. Runs in: shim."""

import asyncio
import contextlib
import os
import signal
from abc import ABC, abstractmethod

from oci.runtime import SpecError
from proto.task_pb2 import Status
from shim.daemon.containers.child import Child
from shim.daemon.containers.exec_request import ProcessFile
from shim.daemon.containers.guest import Guest
from shim.daemon.containers.process import Process, ProcessError
from shim.daemon.containers.program import Program
from shim.daemon.log import Logger
from shim.daemon.streams.stdio import Stdio
from shim.guest import control
from shim.guest.execution import Birth, live
from shim.linux import clone
from shim.ttrpc import Code, RpcError


class Exec(Program, ABC):
    """A program of a running container; its process is there from `start` on."""

    def __init__(
        self, id: str, container: Program, document: ProcessFile, stdio: Stdio, log: Logger
    ) -> None:
        """`document` says what to run; it is taken over."""
        super().__init__(container.id, id, stdio)
        self._container = container
        self._document = document
        self._log = log

    @property
    def status(self) -> Status:
        """CREATED, RUNNING, PAUSED or STOPPED."""
        status = super().status
        paused = status == Status.RUNNING and self._container.status == Status.PAUSED
        return Status.PAUSED if paused else status

    async def start(self) -> None:
        """Run it. Raises RpcError, and then it can be tried again."""
        if self._started:
            raise RpcError(Code.FAILED_PRECONDITION, f"cannot start a {self.state()} process")
        if self._container.has_ended or self._container.status == Status.PAUSED:
            raise RpcError(Code.FAILED_PRECONDITION, "cannot exec: the container does not run")
        self._started = True
        self._over.clear()
        try:
            fds = self.stdio.open()
            try:
                await self.stdio.ready()
                process = await self._run(fds)
            finally:
                for fd in fds:
                    os.close(fd)
        except OSError as error:
            self._not_started()
            raise RpcError(Code.UNKNOWN, control.reason(error)) from error
        except (ProcessError, SpecError) as error:
            self._not_started()
            code = error.code if isinstance(error, ProcessError) else Code.INVALID_ARGUMENT
            raise RpcError(code, str(error)) from error
        except asyncio.CancelledError:  # its caller has given up
            self._not_started()
            raise
        self._document.close()
        self._adopt(process)
        if self._container.has_ended:  # and could not take this with it
            with contextlib.suppress(RpcError):
                self.kill(signal.SIGKILL)

    def _not_started(self) -> None:
        self._started = False
        self._over.set()  # nobody waits for what may never come
        self.stdio.close()

    @abstractmethod
    async def _run(self, fds: list[int]) -> Process:
        """Make the process, with these streams, and let it run.

        Raises ProcessError, OSError, SpecError.
        """

    def container_has_ended(self) -> None:
        """Hear that the container's first process is no more."""

    async def discard(self) -> None:
        """End it, whatever it does, and free what it held."""
        self._document.close()
        if self._process is not None:
            await self._process.discard()
        self._over.set()
        await self.stdio.drain()
        self.stdio.close()


class GuestExec(Exec):
    """A further program beside a guest: another guest."""

    def __init__(
        self,
        id: str,
        container: Program,
        guest: Guest,
        document: ProcessFile,
        stdio: Stdio,
        log: Logger,
    ) -> None:
        super().__init__(id, container, document, stdio, log)
        self._guest = guest
        self._coming: Child | None = None
        """Its process, while that is outside of the container's PID namespace, or not ready."""

    async def _run(self, fds: list[int]) -> Child:
        child = self._coming = _join(self._guest, self._log)
        child.watch()
        try:
            ready = await child.prepare(self._document, fds, terminal=self.stdio.terminal)
        except BaseException:
            await child.discard()
            raise
        finally:
            self._coming = None
        self._log.debug(
            "exec", task=self.container_id, exec=self.id, pid=child.pid, engine=ready.engine
        )
        self.stdio.connect()
        await child.start()
        return child

    def container_has_ended(self) -> None:
        """End a process that the kernel does not, since it has not arrived yet."""
        if self._coming is not None:
            with contextlib.suppress(ProcessLookupError):
                self._coming.kill(signal.SIGKILL)

    async def discard(self) -> None:
        """See `Exec.discard`."""
        if self._coming is not None:
            await self._coming.discard()
        await super().discard()


class _Joined(Child):
    """A guest in the namespaces of another."""

    async def prepare(
        self, document: ProcessFile, fds: list[int], *, terminal: bool
    ) -> control.Ready:
        """Tell it what to run, and wait until it is ready to start. Raises GuestError."""
        return await self._prepare(control.Execute(terminal), [*fds, document.fileno()])


def _join(guest: Guest, log: Logger) -> _Joined:
    """Clone a guest into the cgroup of another, whose namespaces it joins itself.

    Raises OSError.
    """
    # An address can be listened on once.
    annotations = guest.annotations._replace(listen=())
    ours, theirs = control.pair()
    artifacts = guest.artifacts
    origin = artifacts.origin(theirs, guest.owner, annotations)
    init = clone.Child(guest.pid, guest.pidfd)
    birth = Birth(origin, guest.bundle, init, guest.placement)
    try:
        with theirs, contextlib.ExitStack() as stack:
            cgroup = None
            if birth.placement is not None and birth.placement.cgroup.unified:
                cgroup = birth.placement.cgroup.open_dir()
                stack.callback(os.close, cgroup)
            child = clone.clone(lambda: live(birth), cgroup=cgroup)
    except OSError:
        ours.close()
        raise
    joins = any(namespace.type == "pid" for namespace in guest.outline.namespaces)
    joined = _Joined(child, ours, artifacts, guest.owner, log, comes_to_others=joins)
    joined.on_stray = guest.on_stray
    return joined
