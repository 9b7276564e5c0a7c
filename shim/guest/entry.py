"""A guest's life, from its clone to the first instruction of the wasm program. Runs in: guest.

What needs the host's filesystem or privileges comes before they are given up, and all of that
before a byte of the module is executed. What does not depend on the Create request is done while
that is still on its way.
"""

import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from oci.bundle import Outline, read_spec
from oci.linux import Resources, Seccomp
from oci.runtime import Hook, Process, SpecError
from shim import hooks
from shim.engines.base import ModuleError
from shim.engines.cache import ArtifactCache, write_artifact
from shim.guest import control, entrypoint, grants, privileges, rootfs
from shim.guest.annotations import Annotations
from shim.guest.placement import Placement
from shim.linux import clone, credentials, files, keyring, mounts, procfs, seccomp, signals
from shim.linux.network import bring_up_loopback

_JOINED = {
    "cgroup": clone.CLONE_NEWCGROUP,
    "ipc": clone.CLONE_NEWIPC,
    "network": clone.CLONE_NEWNET,
    "time": clone.CLONE_NEWTIME,
    "uts": clone.CLONE_NEWUTS,
}
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
class Birth:
    """What a guest takes along from its shim's memory."""

    id: str
    bundle: str
    channel: socket.socket
    artifacts: int
    """Directory of the artifact cache."""
    outline: Outline
    annotations: Annotations
    preferred_engine: str
    placement: Placement | None

    def state(self, status: str) -> hooks.State:
        """Return what the hooks that the guest runs are told; it has no other pid than its own."""
        annotations = self.outline.annotations
        version = self.outline.oci_version
        return hooks.State(version, self.id, status, os.getpid(), self.bundle, annotations)


class _Isolated(NamedTuple):
    """A guest that only waits for Start: what it answers, the hooks before, and its program."""

    ready: control.Ready
    hooks: Sequence[Hook]
    run: Callable[[], None]


def live(birth: Birth) -> None:
    """Become the container's program. Called in the cloned process."""
    try:
        _be_apart(birth)
        isolated = _isolate(birth)
        control.send(birth.channel, isolated.ready)
        if not isinstance(control.receive(birth.channel)[0], control.Start):
            return
        if isolated.hooks:
            hooks.run_here("startContainer", isolated.hooks, birth.state("created"), "/")
            control.send(birth.channel, control.Started())
    except EOFError:
        return  # the shim has gone, or has no use for this guest any more
    except (SpecError, ModuleError) as error:
        _fail(birth.channel, str(error), invalid=True)
        return
    except hooks.HookError as error:
        _fail(birth.channel, str(error), invalid=False)
        return
    except OSError as error:
        _fail(birth.channel, control.reason(error), invalid=False)
        return
    birth.channel.close()
    isolated.run()


def _be_apart(birth: Birth) -> None:
    """Be a process of its own."""
    # Nobody looks into a guest, whatever user it becomes: it has been a copy of its shim.
    credentials.set_dumpable(False)
    credentials.set_pdeathsig(signal.SIGKILL)
    os.setsid()
    signals.exit_on(_ENDING)
    files.keep_only([birth.channel.fileno(), birth.artifacts])


def _take_place(birth: Birth, resources: Resources) -> None:
    """Be in the container's cgroup, and its limits in force."""
    if birth.placement is not None:
        birth.placement.enter(resources, f"pywasm container {birth.id}")
    if any(n.type == "cgroup" and not n.path for n in birth.outline.namespaces):
        # Its root is the cgroup that the process is in when it is made.
        clone.unshare(clone.CLONE_NEWCGROUP)


def _isolate(birth: Birth) -> _Isolated:
    """Do everything up to Ready."""
    spec = read_spec(birth.bundle)
    if not spec.process.args:
        raise SpecError("process.args: expected at least one argument")
    annotations, linux = birth.annotations, spec.linux
    proc = procfs.open_proc()
    privileges.check(spec)
    # First of what takes long, since on cgroup v1 it is waiting.
    _take_place(birth, linux.resources)
    program = _filter(birth, linux.seccomp)
    flags = seccomp.flag_bits(linux.seccomp) if linux.seccomp else 0
    keyring.new_session_keyring()
    user_namespace = privileges.open_user_namespace(spec)
    _join_namespaces(birth.outline, network=annotations.network)
    mounts.isolate(os.path.join(birth.bundle, spec.root.path), linux.rootfs_propagation)

    prepare, stdio = control.receive(birth.channel)
    if not isinstance(prepare, control.Prepare):
        raise EOFError
    visible = rootfs.visible_mounts(spec, annotations.kernel_filesystems)
    root = rootfs.build(birth.bundle, spec, prepare.rootfs, visible)
    if birth.outline.hooks.before_root:
        control.send(birth.channel, control.Isolated())
        if not isinstance(control.receive(birth.channel)[0], control.Continue):
            raise EOFError
    hooks.run_here(
        "createContainer", spec.hooks.create_container, birth.state("creating"), birth.bundle
    )
    rootfs.enter(root, linux.rootfs_propagation)

    privileges.apply(spec, proc)
    os.close(proc)
    _enter_cwd(spec.process)
    compiled = entrypoint.compiled(
        spec, annotations, birth.preferred_engine, birth.channel, birth.artifacts
    )
    here = grants.open_directory(".")
    if compiled.mapped:
        # The user who the guest is about to become cannot enter it any more, only be there.
        os.fchdir(birth.artifacts)
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    kept = [birth.channel.fileno(), compiled.artifact.fd, here]
    files.keep_only(kept if user_namespace is None else [*kept, user_namespace])
    listeners = [grants.listen(address) for address in annotations.listen]
    missing = privileges.drop(spec.process, user_namespace, program, flags)
    path, function = entrypoint.split(spec.process.args[0])
    credentials.set_name(os.path.basename(path))
    module = compiled.load(function)
    if compiled.mapped:
        _leave(here)
    granted = grants.grant(spec.process, visible, annotations, here, listeners)
    starting = spec.hooks.start_container
    ready = control.Ready(compiled.engine.name, compiled.reason, missing, bool(starting))
    return _Isolated(ready, starting, lambda: module.run(granted, function))


def _filter(birth: Birth, profile: Seccomp | None) -> bytes:
    """Return the profile's filter; a new one goes to the shim, who keeps it for the next guest."""
    if profile is None:
        return b""
    key, program, cached = privileges.load_filter(profile, ArtifactCache(birth.artifacts))
    if not cached:
        kept = os.memfd_create("filter", os.MFD_CLOEXEC)
        write_artifact(kept, key, program)
        control.send(birth.channel, control.Keep(key), [kept])
        os.close(kept)
    return program


def _join_namespaces(outline: Outline, *, network: bool) -> None:
    for namespace in outline.namespaces:
        if namespace.type == "network" and not network:
            continue
        if namespace.path and namespace.type in _JOINED:
            fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
            clone.setns(fd, _JOINED[namespace.type])
            os.close(fd)
        elif namespace.type == "network":
            bring_up_loopback()
    if not network:
        clone.unshare(clone.CLONE_NEWNET)


def _enter_cwd(process: Process) -> None:
    try:
        os.chdir(process.cwd)
    except FileNotFoundError:
        # An image may name a working directory that no layer has; as runc, make it.
        os.makedirs(process.cwd, 0o755, exist_ok=True)
        os.chdir(process.cwd)


def _leave(here: int) -> None:
    """Go back to the directory `here`, or to the root where the user may not enter it."""
    try:
        os.fchdir(here)
    except PermissionError:
        os.chdir("/")


def _fail(channel: socket.socket, reason: str, *, invalid: bool) -> None:
    try:
        control.send(channel, control.Failed(reason, invalid))
    except OSError:
        pass
