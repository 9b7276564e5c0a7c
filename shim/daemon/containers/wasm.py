"""A container whose program is a module: a guest. Runs in: shim."""

import os
from collections.abc import Sequence

from oci.runtime import Hook
from proto.task_v2_pb2 import CreateTaskRequest
from shim.daemon.containers.child import GuestError
from shim.daemon.containers.container import PID_FILE, Container, rootfs_mounts
from shim.daemon.containers.exec_request import ProcessFile
from shim.daemon.containers.execution import Exec, GuestExec
from shim.daemon.containers.guest import Guest
from shim.daemon.log import Logger
from shim.daemon.streams.stdio import Stdio
from shim.linux import hooks
from shim.linux.files import write_small
from shim.ttrpc import Code, RpcError


class WasmContainer(Container):
    """A container whose guest is ready to start."""

    @classmethod
    async def create(
        cls,
        request: CreateTaskRequest,
        guest: Guest,
        stdio: Stdio,
        fds: Sequence[int],
        log: Logger,
    ) -> "WasmContainer":
        """Finish what `guest` began; `fds` are the guest's ends of `stdio`.

        Raises NativeEntrypointError, GuestError, OSError; the guest is the caller's to discard.
        """
        size = guest.outline.console_size
        if request.terminal and size is not None:
            stdio.resize(size.width, size.height)
        mounts = rootfs_mounts(request)
        ready = await guest.prepare(mounts, fds, terminal=request.terminal)
        stdio.connect()
        write_small(os.path.join(request.bundle, PID_FILE), b"%d" % guest.pid)
        log.info(
            "created", task=request.id, pid=guest.pid, engine=ready.engine, reason=ready.reason
        )
        if ready.missing:
            log.warning("not granted", task=request.id, capabilities=" ".join(ready.missing))
        return cls(request.id, request.bundle, guest, stdio, log, hooked=ready.hooked)

    def __init__(
        self, id: str, bundle: str, guest: Guest, stdio: Stdio, log: Logger, *, hooked: bool
    ) -> None:
        super().__init__(id, bundle, guest.outline, guest, guest.placement, stdio, log)
        self._guest = guest
        self._hooked = hooked

    async def _run(self) -> None:
        try:
            await self._guest.start(hooked=self._hooked)
        except GuestError as error:
            raise RpcError(Code.UNKNOWN, str(error)) from error
        await self._run_late_hooks("poststart", self._guest.outline.hooks.poststart, "running")

    def _exec(self, exec_id: str, process: ProcessFile, stdio: Stdio) -> Exec:
        return GuestExec(exec_id, self, self._guest, process, stdio, self._log)

    async def _free(self) -> None:
        await self._guest.discard()
        await self._run_late_hooks("poststop", self._guest.outline.hooks.poststop, "stopped")

    async def _run_late_hooks(self, kind: str, those: Sequence[Hook], status: str) -> None:
        for hook in those:
            try:
                await hooks.run(kind, [hook], self._guest.state(status))
            except hooks.HookError as error:  # the spec wants the others to run all the same
                self._log.warning("hook failed", task=self.id, error=error)
