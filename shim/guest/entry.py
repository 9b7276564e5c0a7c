"""A guest's life, from its clone to the first instruction of the wasm program. Runs in: guest.

What needs the host's filesystem or privileges comes before they are given up, and all of that
before a byte of the module is executed. What does not depend on the Create request is done while
that is still on its way.
"""

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from oci.bundle import Outline, read_spec
from oci.runtime import Process, Spec, SpecError
from shim.engines.base import ModuleError
from shim.guest import control, entrypoint, grants, rootfs
from shim.guest.annotations import Annotations
from shim.linux import clone, credentials, files, signals
from shim.linux.cgroups import Cgroup
from shim.linux.network import bring_up_loopback

_JOINED = {
    "ipc": clone.CLONE_NEWIPC,
    "uts": clone.CLONE_NEWUTS,
    "network": clone.CLONE_NEWNET,
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

    bundle: str
    channel: socket.socket
    artifacts: int
    """Directory of the artifact cache."""
    outline: Outline
    annotations: Annotations
    preferred_engine: str
    cgroup: Cgroup | None
    """To create and join, unless the guest was born in it (v2)."""


def live(birth: Birth) -> None:
    """Become the container's program. Called in the cloned process."""
    try:
        _take_place(birth)
        ready, run = _isolate(birth)
        control.send(birth.channel, ready)
        if not isinstance(control.receive(birth.channel)[0], control.Start):
            return
    except EOFError:
        return  # the shim has gone, or has no use for this guest any more
    except (SpecError, ModuleError) as error:
        _fail(birth.channel, str(error), invalid=True)
        return
    except OSError as error:
        _fail(birth.channel, control.reason(error), invalid=False)
        return
    birth.channel.close()
    run()


def _take_place(birth: Birth) -> None:
    """Be a process of its own, in its cgroup."""
    credentials.set_pdeathsig(signal.SIGKILL)
    os.setsid()
    signals.exit_on(_ENDING)
    files.keep_only([birth.channel.fileno(), birth.artifacts])
    if birth.cgroup is not None and not birth.cgroup.unified:
        # First of all: on cgroup v1 the kernel makes the caller wait for a grace period.
        birth.cgroup.create()
        birth.cgroup.attach()
    if any(namespace.type == "cgroup" for namespace in birth.outline.namespaces):
        # Its root is the cgroup that the process is in when it is made.
        clone.unshare(clone.CLONE_NEWCGROUP)


def _isolate(birth: Birth) -> tuple[control.Ready, Callable[[], None]]:
    """Do everything up to Ready; returns that, and what Start runs."""
    spec = read_spec(birth.bundle)
    if not spec.process.args:
        raise SpecError("process.args: expected at least one argument")
    annotations = birth.annotations
    _join_namespaces(birth.outline, network=annotations.network)
    rootfs.isolate()
    prepare, stdio = control.receive(birth.channel)
    if not isinstance(prepare, control.Prepare):
        raise EOFError
    mounts = rootfs.build(birth.bundle, spec, prepare.rootfs, annotations.kernel_filesystems)
    _name(spec)
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
    files.keep_only([birth.channel.fileno(), compiled.artifact.fd, here])
    listeners = [grants.listen(address) for address in annotations.listen]
    _drop_privileges(spec.process)
    path, function = entrypoint.split(spec.process.args[0])
    credentials.set_name(os.path.basename(path))
    module = compiled.load(function)
    if compiled.mapped:
        _leave(here)
    granted = grants.grant(spec.process, mounts, annotations, here, listeners)
    ready = control.Ready(compiled.engine.name, compiled.reason)
    return ready, lambda: module.run(granted, function)


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


def _leave(here: int) -> None:
    """Go back to the directory `here`, or to the root where the user may not enter it."""
    try:
        os.fchdir(here)
    except PermissionError:
        os.chdir("/")


def _name(spec: Spec) -> None:
    if not (spec.hostname or spec.domainname):
        return
    if not any(namespace.type == "uts" for namespace in spec.linux.namespaces):
        raise SpecError("hostname: without a uts namespace it would be the host's")
    if spec.hostname:
        credentials.set_hostname(spec.hostname)
    if spec.domainname:
        credentials.set_domainname(spec.domainname)


def _enter_cwd(process: Process) -> None:
    try:
        os.chdir(process.cwd)
    except FileNotFoundError:
        # An image may name a working directory that no layer has; as runc, make it.
        os.makedirs(process.cwd, 0o755, exist_ok=True)
        os.chdir(process.cwd)


def _drop_privileges(process: Process) -> None:
    user = process.user
    credentials.set_user(user.uid, user.gid, user.additional_gids, user.umask)
    # The kernel forgets it when credentials change.
    credentials.set_pdeathsig(signal.SIGKILL)
    if process.no_new_privileges:
        credentials.no_new_privs()


def _fail(channel: socket.socket, reason: str, *, invalid: bool) -> None:
    try:
        control.send(channel, control.Failed(reason, invalid))
    except OSError:
        pass
