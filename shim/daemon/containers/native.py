"""A container whose program the kernel itself executes: an OCI runtime makes it. Runs in: shim.

The runtime gets the same bundle, and ends when it has made the container, whose process is the
shim's child then. From there on it is a container as any other; only to start it, to execute
something in it and to take it apart the runtime is asked again.

The rootfs is mounted where the bundle has it, as runtimes expect. So what a shim that was killed
has left has to be unmounted, and the runtime to be asked by whoever comes then (`clean_up`).
"""

import os
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from oci.bundle import Outline
from proto.task_v2_pb2 import CreateTaskRequest
from shim.daemon.containers import image, undertaker
from shim.daemon.containers.apart import apart
from shim.daemon.containers.container import PID_FILE, Container, rootfs_mounts
from shim.daemon.containers.exec_request import ProcessFile
from shim.daemon.containers.execution import Exec
from shim.daemon.containers.handover import Handover
from shim.daemon.containers.oci_runtime import OciRuntime, RuntimeFailedError
from shim.daemon.containers.process import Process, ProcessError
from shim.daemon.containers.reaper import Reaper
from shim.daemon.log import Logger
from shim.daemon.streams.stdio import Stdio
from shim.guest import control
from shim.guest.placement import Placement
from shim.linux import mounts
from shim.linux.files import read_small, write_small
from shim.ttrpc import Code, RpcError

MARK = "oci-runtime.json"
"""In the bundle of a native container: the runtime that made it."""


class NativeContainer(Container):
    """A container that an OCI runtime has made, and can start."""

    @classmethod
    async def create(
        cls,
        request: CreateTaskRequest,
        outline: Outline,
        runtime: OciRuntime,
        reaper: Reaper,
        stdio: Stdio,
        fds: Sequence[int],
        tree: int,
        log: Logger,
    ) -> "NativeContainer":
        """Have the container made; `fds` are the program's ends of `stdio`.

        `tree` is its rootfs if that is mounted already, but nowhere (`mounts.copy_tree`), else -1.
        Raises ProcessError, SpecError or OSError, and then nothing of the container is left.
        """
        bundle = request.bundle
        layers = rootfs_mounts(request)
        overlay = any(layer.type == "overlay" for layer in layers)
        write_small(os.path.join(bundle, MARK), msgspec.json.encode(runtime))
        try:
            await image.mount(layers, tree, os.path.join(bundle, image.ROOTFS))
            with (
                reaper.expecting(),
                Handover(bundle, terminal=request.terminal, pid_file=PID_FILE) as handover,
            ):
                await runtime.create(
                    request.id,
                    bundle,
                    () if request.terminal else fds,
                    pid_file=handover.pid_file,
                    console_socket=handover.console_socket,
                )
                process = Process(handover.process())
                process.watch()
                stdio.connect(handover.master())
            placement = Placement.of_process(process.pid, outline.cgroups_path)
        except BaseException:
            with suppress(ProcessError, OSError):
                await _take_apart(request.id, bundle, runtime, overlay=overlay)
            raise
        log.info("created", task=request.id, pid=process.pid, runtime=runtime.binary)
        return cls(
            request.id, bundle, outline, process, placement, stdio, log, runtime, reaper, overlay
        )

    def __init__(
        self,
        id: str,
        bundle: str,
        outline: Outline,
        process: Process,
        placement: Placement,
        stdio: Stdio,
        log: Logger,
        runtime: OciRuntime,
        reaper: Reaper,
        overlay: bool,
    ) -> None:
        super().__init__(id, bundle, outline, process, placement, stdio, log)
        self._init = process
        self._runtime = runtime
        self._reaper = reaper
        self._overlay = overlay

    async def _run(self) -> None:
        try:
            await self._runtime.start(self.id, self.bundle)
        except RuntimeFailedError as error:
            self._started = False
            raise RpcError(Code.UNKNOWN, str(error)) from error

    def _kill_others(self) -> None:
        super()._kill_others()
        with suppress(OSError):
            self._cgroup().kill()  # its descendants, too

    def _exec(self, exec_id: str, process: ProcessFile, stdio: Stdio) -> Exec:
        return _NativeExec(exec_id, self, self._runtime, self._reaper, process, stdio, self._log)

    async def _free(self) -> None:
        await self._init.discard()
        try:
            await _take_apart(self.id, self.bundle, self._runtime, overlay=self._overlay)
        except RuntimeFailedError as error:
            raise RpcError(Code.UNKNOWN, str(error)) from error
        except OSError as error:
            raise RpcError(Code.UNKNOWN, control.reason(error)) from error


class _NativeExec(Exec):
    """A further program of a container that an OCI runtime has made."""

    def __init__(
        self,
        id: str,
        container: NativeContainer,
        runtime: OciRuntime,
        reaper: Reaper,
        document: ProcessFile,
        stdio: Stdio,
        log: Logger,
    ) -> None:
        super().__init__(id, container, document, stdio, log)
        self._bundle = container.bundle
        self._runtime = runtime
        self._reaper = reaper

    async def _run(self, fds: list[int]) -> Process:
        terminal = self.stdio.terminal
        with (
            # Of the request, not of what it runs: without a terminal there is nobody to take one.
            self._document.with_terminal(terminal) as document,
            self._reaper.expecting(),
            Handover(self._bundle, terminal=terminal) as handover,
        ):
            await self._runtime.exec(
                self.container_id,
                self._bundle,
                document.fileno(),
                () if terminal else fds,
                pid_file=handover.pid_file,
                console_socket=handover.console_socket,
            )
            process = Process(handover.process())
            process.watch()
            try:
                self.stdio.connect(handover.master())
            except BaseException:
                await process.discard()
                raise
        self._log.debug("exec", task=self.container_id, exec=self.id, pid=process.pid)
        return process


def abandoned(id: str, bundle: str) -> OciRuntime | None:
    """Return the runtime of a container whose shim is no more; None if it is not a native one.

    Whatever the shim has had it do ends here, so that nothing is made any more. Raises OSError.
    """
    try:
        mark = read_small(os.path.join(bundle, MARK))
    except FileNotFoundError:
        return None
    if not mark:  # the shim ended before it did anything
        return None
    runtime = msgspec.json.decode(mark, type=OciRuntime)
    runtime.end_calls(id)
    return runtime


async def clean_up(id: str, bundle: str, runtime: OciRuntime) -> None:
    """Free what is left of such a container. Raises RuntimeFailedError, OSError."""
    await _take_apart(id, bundle, runtime, overlay=False)


async def _take_apart(id: str, bundle: str, runtime: OciRuntime, *, overlay: bool) -> None:
    """Remove a container that has ended or never was, however far it was made."""
    try:
        if runtime.has(id):
            await runtime.delete(id, bundle)
    finally:
        path = os.path.join(bundle, image.ROOTFS)
        if overlay:
            undertaker.umount(path)
        else:  # The kernel syncs the filesystem that goes.
            await apart(lambda: mounts.umount_all(path))
    for name in (MARK, PID_FILE):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(bundle, name))
