"""The life of a further process of a container, from its clone to its program. Runs in: guest.

It joins the namespaces of the container's first process, the PID namespace last, and is confined as
that is, except for what its own `process` says. The program may be a module of the same rootfs, or
a native one.
"""

import os
from dataclasses import dataclass

from oci.bundle import read_spec
from oci.runtime import CPUAffinity, Process, SpecError, decode_process
from shim.engines.base import ModuleError
from shim.engines.snapshot import contents
from shim.guest import (
    control,
    entrypoint,
    environment,
    privileges,
    program,
    rootfs,
    workdir,
)
from shim.guest.origin import Origin
from shim.guest.placement import Placement
from shim.linux import (
    clone,
    credentials,
    keyring,
    limits,
    procfs,
    scheduling,
    security_labels,
    signals,
)

_NOT_EXECUTED = 126  # as shells have it
_KINDS = {
    "mnt": clone.CLONE_NEWNS,
    "net": clone.CLONE_NEWNET,
    "ipc": clone.CLONE_NEWIPC,
    "uts": clone.CLONE_NEWUTS,
    "cgroup": clone.CLONE_NEWCGROUP,
    "time": clone.CLONE_NEWTIME,
}


@dataclass(frozen=True, slots=True)
class Birth:
    """What it takes along from its shim's memory."""

    origin: Origin
    bundle: str
    init: clone.Child
    """The container's first process."""
    placement: Placement | None
    """To join, unless it was born there (v2)."""


def live(birth: Birth) -> None:
    """Become the program. Called in the cloned process."""
    channel = birth.origin.channel
    run = None
    with program.telling(channel):
        program.be_apart([channel.fileno(), birth.origin.artifacts, birth.init.pidfd])
        ready = _join(birth)
        program.await_start(channel, ready.message)
        run = ready.run
    channel.close()
    if run is not None:
        run()


def _join(birth: Birth) -> program.Ready:
    """Do everything up to Ready."""
    origin = birth.origin
    message, fds = control.receive(origin.channel)
    if not isinstance(message, control.Execute):
        raise EOFError
    *stdio, document = fds
    with contents(document, os.fstat(document).st_size) as text:
        process = environment.unique(decode_process(text))
    os.close(document)
    if not process.args:
        raise SpecError("process.args: expected at least one argument")
    spec = read_spec(birth.bundle)
    limits.check_rlimits(process.rlimits)
    security_labels.check(process.apparmor_profile, process.selinux_label, spec.linux.mount_label)
    proc = procfs.open_proc()
    affinity = process.exec_cpu_affinity or CPUAffinity()
    if affinity.initial:
        scheduling.set_affinity(affinity.initial)
    if birth.placement is not None and not birth.placement.cgroup.unified:
        birth.placement.cgroup.attach()
    if affinity.final:
        scheduling.set_affinity(affinity.final)
    keyring.new_session_keyring()
    last = program.confinement(origin, spec.linux.seccomp)
    user, pid = _enter_namespaces(birth.init, proc)
    last = last._replace(user_namespace=user, pid_namespace=pid)
    privileges.apply(process, spec.linux, proc)
    privileges.apply_labels(process, proc)
    identity = privileges.identity(process, spec.linux)
    outlook = program.Outlook(rootfs.open_root("/"), proc, identity)
    workdir.enter(process, outlook.root, identity)
    streams = program.Streams(stdio, message.terminal)
    path = entrypoint.native(process, outlook.root, proc)
    if path is not None:
        with credentials.acting_as(identity):
            process = environment.with_home(process, outlook.root, proc)
        return _native(origin, process, path, streams, last)
    visible = rootfs.visible_mounts(spec, origin.annotations.kernel_filesystems)
    return program.load_module(origin, process, visible, streams, last, outlook)


def _enter_namespaces(init: clone.Child, proc: int) -> tuple[int | None, int | None]:
    """Join all but two; returns descriptors of those, user and PID, if they are other ones."""

    def differs(kind: str) -> bool:
        theirs, ours = (os.stat(f"{who}/ns/{kind}", dir_fd=proc) for who in (init.pid, "self"))
        return not os.path.samestat(theirs, ours)

    def opened(kind: str) -> int | None:
        if not differs(kind):
            return None
        return os.open(f"{init.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)

    later = opened("user"), opened("pid")
    clone.setns(init.pidfd, sum(flag for kind, flag in _KINDS.items() if differs(kind)))
    os.close(init.pidfd)
    return later


def _native(
    origin: Origin,
    process: Process,
    path: str,
    streams: program.Streams,
    last: privileges.Confinement,
) -> program.Ready:
    """Become the user, ready to execute a program of the rootfs that is no module."""
    missing = program.settle(origin, process, streams, last)
    if not os.access(path, os.X_OK):
        raise ModuleError(f"entrypoint {process.args[0]!r}: Permission denied")
    variables = dict(variable.partition("=")[::2] for variable in process.env)

    def run() -> None:
        signals.reset_signals(keep=())
        try:
            os.execve(path, process.args, variables)
        except (OSError, ValueError) as error:  # it has begun, so it is the program that fails
            reason = error.strerror if isinstance(error, OSError) else error
            os.write(2, f"pywasm: cannot execute {path!r}: {reason}\n".encode())
            os._exit(_NOT_EXECUTED)

    return program.Ready(control.Ready("native", "no wasm module", missing), run)
