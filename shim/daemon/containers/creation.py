"""From a Create request to a container, wasm or native. Runs in: shim.

Which of the two it is the container's annotation says, or else its program's first bytes. The shim
does not look at those, which are an image's: it begins with a guest, which finds out as soon as it
has the rootfs, and makes place for an OCI runtime if it is not the one to run the program.
"""

import os
import stat
from collections.abc import Sequence

from oci.bundle import Outline, read_outline
from oci.runtime import SpecError
from proto.task_v2_pb2 import CreateTaskRequest
from shim.daemon import options
from shim.daemon.containers.apart import apart
from shim.daemon.containers.artifacts import Artifacts
from shim.daemon.containers.container import Container
from shim.daemon.containers.guest import Guest, NativeEntrypointError
from shim.daemon.containers.native import NativeContainer
from shim.daemon.containers.oci_runtime import OciRuntime
from shim.daemon.containers.reaper import Reaper
from shim.daemon.containers.wasm import WasmContainer
from shim.daemon.log import Logger
from shim.daemon.options import Options
from shim.daemon.streams.stdio import Stdio
from shim.guest import annotations
from shim.guest.placement import is_systemd


class Creator:
    """Makes the containers of one shim."""

    def __init__(
        self,
        namespace: str,
        artifacts: Artifacts,
        runtime: Options,
        forbidden: Sequence[annotations.Forbidden],
        log: Logger,
    ) -> None:
        self._namespace = namespace
        self._artifacts = artifacts
        self._runtime = runtime
        self._forbidden = forbidden
        self._log = log
        self._reaper = Reaper()

    async def create(
        self, request: CreateTaskRequest, stdio: Stdio, early: Guest | None
    ) -> Container:
        """Make a container that can be started. `early` is its guest, if that has begun already.

        Raises ProcessError, SpecError, OSError; then nothing of the container is left, and `stdio`
        is closed.
        """
        guest = early
        try:
            chosen = options.read(request.options)
            if chosen == options.NONE:  # containerd 2.0 replaces them by its own, not meant for us
                chosen = self._runtime
            outline = guest.outline if guest else read_outline(request.bundle)
            options.check_cgroups_path(chosen, outline.cgroups_path)
            for forbidden in self._forbidden:
                forbidden.check(outline.annotations)
            if guest is None and not is_native(outline):
                guest = Guest(request.id, request.bundle, outline, self._artifacts, self._log)
                guest.watch()
            if guest is not None:
                guest.on_stray = self._reaper.seek
            fds = stdio.open()
            image, leaving = -1, None
            try:
                _own(fds, chosen)
                await stdio.ready()
                if guest is not None:
                    try:
                        return await WasmContainer.create(request, guest, stdio, fds, self._log)
                    except NativeEntrypointError as native:
                        image, found, guest = native.image, guest, None
                        if found.placement is None:
                            leaving = found  # by itself: nothing of it is in anybody's way
                        else:
                            await _make_place(found)
                return await self._native(request, outline, chosen, stdio, fds, image)
            finally:
                for fd in fds if image < 0 else [*fds, image]:
                    os.close(fd)
                if leaving is not None:
                    await leaving.discard()
        except BaseException:
            stdio.close()
            if guest is not None:
                await guest.discard()
            raise

    async def _native(
        self,
        request: CreateTaskRequest,
        outline: Outline,
        chosen: Options,
        stdio: Stdio,
        fds: Sequence[int],
        image: int,
    ) -> Container:
        _check_rights(outline)
        runtime = OciRuntime.chosen(
            chosen, self._namespace, systemd_cgroup=is_systemd(outline.cgroups_path)
        )
        return await NativeContainer.create(
            request, outline, runtime, self._reaper, stdio, fds, image, self._log
        )


def is_native(outline: Outline) -> bool:
    """Whether a container says that it is native. Raises SpecError."""
    return annotations.read(outline.annotations).handler == "native"


def _check_rights(outline: Outline) -> None:
    """Raise SpecError for annotations that take rights away from a module, and only from that."""
    asked = annotations.read(outline.annotations)
    for name, given in (
        ("memory-pages", asked.memory_pages is not None),
        ("network", not asked.network),
        ("rootfs", not asked.rootfs),
    ):
        if given:
            what = "a native container cannot be limited so"
            raise SpecError(f"annotations: {annotations.PREFIX}{name}: {what}")


async def _make_place(guest: Guest) -> None:
    """Discard a guest so that a container with the same names can be made."""
    await guest.discard()
    placement = guest.placement
    if placement is not None and placement.scope is not None:
        await apart(placement.vacate)


def _own(fds: Sequence[int], chosen: Options) -> None:
    """Give FIFOs and pipes to the user whom the options name."""
    if chosen.io_uid or chosen.io_gid:
        for fd in fds:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.fchown(fd, chosen.io_uid, chosen.io_gid)
