"""A container's guest as its shim sees it, with its namespaces and cgroup. Runs in: shim."""

import asyncio
import contextlib
import errno
import os
from collections.abc import Sequence

from oci.bundle import Outline, SpecError
from shim.daemon.containers import image, undertaker
from shim.daemon.containers.artifacts import Artifacts
from shim.daemon.containers.child import Child, GuestError
from shim.daemon.log import Logger
from shim.guest import annotations, control, sandbox
from shim.guest.entry import Birth, live
from shim.guest.placement import Placement
from shim.linux import clone, hooks
from shim.linux.cgroups import Cgroup
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


class NativeEntrypointError(Exception):
    """A container's program is none for a guest: the kernel itself is to execute it.

    `image` is the mounted rootfs, as `mounts.copy_tree` returns it, or -1.
    """

    def __init__(self, image: int) -> None:
        super().__init__(image)
        self.image = image


class Guest(Child):
    """The guest of a container, with the cgroup and the namespaces that its spec asks for."""

    def __init__(
        self, id: str, bundle: str, outline: Outline, artifacts: Artifacts, log: Logger
    ) -> None:
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
        try:
            self.annotations = annotations.read(outline.annotations)
        except SpecError as error:
            raise GuestError(str(error), invalid=True) from error
        try:
            path = outline.cgroups_path
            self.placement = Placement.for_path(path) if path else None
        except OSError as error:
            raise GuestError(control.reason(error), invalid=error.errno == errno.EINVAL) from error
        ours, theirs = control.pair()
        owner = artifacts.owner(outline.annotations)
        origin = artifacts.origin(theirs, owner, self.annotations)
        birth = Birth(origin, id, bundle, outline, self.placement)
        try:
            with theirs:
                child = _clone(birth)
        except (OSError, SpecError) as error:
            ours.close()
            if self.cgroup is not None:
                self.cgroup.delete(patience=0)
            if isinstance(error, SpecError):
                raise GuestError(str(error), invalid=True) from error
            raise GuestError(control.reason(error), invalid=False) from error
        joins = any(n.type == "pid" and n.path for n in outline.namespaces)
        reborn = bool(sandbox.made_inside(outline) & clone.CLONE_NEWPID)
        super().__init__(child, ours, artifacts, owner, log, comes_to_others=joins or reborn)
        if outline.hooks.before_root:
            self._expected.add(control.Isolated)
        if not annotations.is_sandbox(outline.annotations) and self.annotations.handler != "wasm":
            self._expected.add(control.Native)

    @property
    def cgroup(self) -> Cgroup | None:
        """The container's own, if its spec names one."""
        return self.placement.cgroup if self.placement else None

    async def prepare(
        self, rootfs: Sequence[control.Mount], stdio: Sequence[int], *, terminal: bool = False
    ) -> control.Ready:
        """Give the guest what only Create knows, and wait until it is ready to start.

        Raises GuestError, NativeEntrypointError.
        """
        if image.from_device(rootfs) and not annotations.is_sandbox(self.outline.annotations):
            tree = await image.detached(rootfs, os.path.join(self.bundle, image.ROOTFS))
            try:
                prepare = control.Prepare([], terminal, mounted=True)
                return await self._prepare(prepare, [*stdio, tree])
            finally:
                os.close(tree)
        ready = await self._prepare(control.Prepare(list(rootfs), terminal), stdio)
        if any(mount.type == "overlay" for mount in rootfs):
            self._rootfs = undertaker.hold(self.pid)
        return ready

    async def _serve(self, request: control.Message, fds: list[int]) -> None:
        if isinstance(request, control.Isolated):
            # Once; and after hooks there is no other runtime to begin anew.
            self._expected -= {control.Isolated, control.Native}
            await self._run_early_hooks()
        elif isinstance(request, control.Native):
            if self.placement is not None and not (request.placed or self.placement.born_in):
                self.placement = None  # which it has left to others
            raise NativeEntrypointError(fds[0] if fds else -1)
        else:
            await super()._serve(request, fds)

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

    async def discard(self) -> None:
        """See `Child.discard`."""
        await super().discard()
        if self._rootfs >= 0:
            undertaker.bury(self._rootfs)
            self._rootfs = -1
        if self.cgroup is not None:
            await _delete(self.cgroup)


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
    for namespace in birth.outline.namespaces:
        if not namespace.path:
            flags |= _NEW.get(namespace.type, 0)
    flags &= ~sandbox.made_inside(birth.outline)
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
        return clone.clone(lambda: live(birth), flags, cgroup=cgroup)
