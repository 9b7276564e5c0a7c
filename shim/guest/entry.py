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
from oci.runtime import Mount, Process, Spec, SpecError
from shim.engines.base import Grants, ModuleError, Preopen
from shim.guest import control, entrypoint, rootfs
from shim.linux import clone, credentials, files, signals
from shim.linux.cgroups import Cgroup

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
    cgroup: Cgroup | None
    """To create and join, unless the guest was born in it (v2)."""


def live(birth: Birth) -> None:
    """Become the container's program. Called in the cloned process."""
    try:
        _take_place(birth)
        run = _isolate(birth)
        control.send(birth.channel, control.Ready())
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


def _isolate(birth: Birth) -> Callable[[], None]:
    """Do everything up to Ready; returns what Start runs."""
    spec = read_spec(birth.bundle)
    if not spec.process.args:
        raise SpecError("process.args: expected at least one argument")
    _join_namespaces(birth.outline)
    rootfs.isolate()
    prepare, stdio = control.receive(birth.channel)
    if not isinstance(prepare, control.Prepare):
        raise EOFError
    mounts = rootfs.build(birth.bundle, spec, prepare.rootfs)
    _name(spec)
    _enter_cwd(spec.process)
    compiled = entrypoint.compiled(spec, birth.channel, birth.artifacts)
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    files.keep_only([birth.channel.fileno(), compiled.artifact.fd])
    _drop_privileges(spec.process)
    path, function = entrypoint.split(spec.process.args[0])
    credentials.set_name(os.path.basename(path))
    module = compiled.load(function)
    grants = Grants(
        args=[os.fsencode(argument) for argument in spec.process.args],
        env=[os.fsencode(variable) for variable in spec.process.env],
        preopens=_preopens(mounts),
        cwd=os.fsencode(spec.process.cwd),
    )
    return lambda: module.run(grants, function)


def _join_namespaces(outline: Outline) -> None:
    for namespace in outline.namespaces:
        if namespace.path and namespace.type in _JOINED:
            fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
            clone.setns(fd, _JOINED[namespace.type])
            os.close(fd)


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


def _preopens(mounts: list[Mount]) -> list[Preopen]:
    """The root, and each mounted directory as a capability of its own."""
    preopens = [Preopen("/", _open_directory("/"))]
    for mount in mounts:
        if os.path.isdir(mount.destination):
            readonly = "ro" in mount.options
            preopens.append(
                Preopen(mount.destination, _open_directory(mount.destination), readonly)
            )
    return preopens


def _open_directory(path: str) -> int:
    # Not for reading: whether the container's user may list it is for the engine to find out.
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


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
