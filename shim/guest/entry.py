"""The life of a container's guest, from its clone to its program. Runs in: guest.

What needs the host's filesystem or privileges comes before they are given up, and all of that
before a byte of the module is executed. What does not depend on the Create request is done while
that is still on its way.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from oci.bundle import Outline, read_spec
from oci.linux import Resources
from oci.runtime import Hook, Mount, Spec, SpecError
from shim.guest import (
    annotations,
    control,
    entrypoint,
    environment,
    privileges,
    program,
    rootfs,
    sandbox,
    workdir,
)
from shim.guest.origin import Origin
from shim.guest.placement import Placement
from shim.linux import cgroups, clone, hooks, keyring, mounts, proc_mounts, procfs
from shim.linux.network import bring_up_loopback

_JOINED = {
    "cgroup": clone.CLONE_NEWCGROUP,
    "ipc": clone.CLONE_NEWIPC,
    "network": clone.CLONE_NEWNET,
    "time": clone.CLONE_NEWTIME,
    "uts": clone.CLONE_NEWUTS,
}


@dataclass(frozen=True, slots=True)
class Birth:
    """What a container's guest takes along from its shim's memory."""

    origin: Origin
    id: str
    bundle: str
    outline: Outline
    placement: Placement | None

    def state(self, status: str) -> hooks.State:
        """Return what the hooks that the guest runs are told; it has no other pid than its own."""
        annotations = self.outline.annotations
        version = self.outline.oci_version
        return hooks.State(version, self.id, status, os.getpid(), self.bundle, annotations)


def live(birth: Birth) -> None:
    """Become the container's program. Called in the cloned process."""
    channel = birth.origin.channel
    run = None
    with program.telling(channel):
        program.be_apart([channel.fileno(), birth.origin.artifacts])
        control.check_wanted(channel)  # or nobody is there to remove the cgroup that it makes
        ready, starting = _isolate(birth)
        program.await_start(channel, ready.message)
        if starting:
            hooks.run_here("startContainer", starting, birth.state("created"), "/")
            control.send(channel, control.Started())
        run = ready.run
    channel.close()
    if run is not None:
        run()


def _isolate(birth: Birth) -> tuple[program.Ready, Sequence[Hook]]:
    """Do everything up to Ready; returns also the hooks that are to run when it is started."""
    spec = read_spec(birth.bundle)
    process = entrypoint.without_init(environment.unique(spec.process))
    spec = msgspec.structs.replace(spec, process=process)
    origin, linux = birth.origin, spec.linux
    holds_pod = annotations.is_sandbox(birth.outline.annotations)
    inside = sandbox.made_inside(birth.outline)
    if not (spec.process.args or holds_pod):
        raise SpecError("process.args: expected at least one argument")
    proc = procfs.open_proc()
    privileges.check(spec)
    own_network = _has_network(birth.outline, proc)
    identity = privileges.identity(spec.process, linux, own_network=own_network)
    image = os.path.join(birth.bundle, spec.root.path)
    mounts.isolate(image, linux.rootfs_propagation)
    visible = rootfs.visible_mounts(spec, origin.annotations.kernel_filesystems)
    prepared = None
    undecided = (
        not holds_pod
        and origin.annotations.handler != "wasm"
        and not entrypoint.is_named_module(spec.process)
    )
    if undecided:
        # It is hardly a module, then: nothing is done that an OCI runtime would find in its way.
        prepared = _prepared(origin.channel, image, holds_pod=False)
        if _is_native(image, proc, spec, visible):
            mounted = prepared[0].rootfs or prepared[0].mounted
            tree = [mounts.copy_tree(image)] if mounted else []
            control.send(origin.channel, control.Native(), tree)
            cgroups.warm()  # for the runtime, which is about to move a process
            raise EOFError
    # First of what takes long, since on cgroup v1 it is waiting.
    _take_place(birth, linux.resources)
    last = program.confinement(origin, linux.seccomp)
    keyring.new_session_keyring()
    last = last._replace(
        user_namespace=privileges.open_user_namespace(spec),
        pid_namespace=_join_namespaces(birth.outline, inside, network=origin.annotations.network),
    )

    prepare, stdio = prepared or _prepared(origin.channel, image, holds_pod=holds_pod)
    if holds_pod:
        root = sandbox.build(image, linux)
    else:
        root = rootfs.build(image, spec, visible)
        if undecided and entrypoint.is_native(root, proc, spec.process):
            # Out of a volume. Before any hook: an OCI runtime is about to run them.
            control.send(origin.channel, control.Native(placed=True))
            raise EOFError
    if birth.outline.hooks.before_root:
        control.send(origin.channel, control.Isolated())
        if not isinstance(control.receive(origin.channel)[0], control.Continue):
            raise EOFError
    hooks.run_here(
        "createContainer", spec.hooks.create_container, birth.state("creating"), birth.bundle
    )
    rootfs.enter(root, linux.rootfs_propagation)
    proc_mounts.seal(proc)

    privileges.apply(spec.process, linux, proc)
    if inside:
        last = sandbox.enter_users(last, inside)
    privileges.apply_names(spec, proc)
    privileges.apply_labels(spec.process, proc)
    streams = program.Streams(stdio, prepare.terminal)
    if holds_pod:
        ready = sandbox.become(origin, spec.process, streams, last)
    else:
        outlook = program.Outlook(rootfs.open_root("/"), proc, identity)
        workdir.enter(spec.process, outlook.root, identity)
        ready = program.load_module(origin, spec.process, visible, streams, last, outlook)
    if starting := spec.hooks.start_container:
        ready = ready._replace(message=msgspec.structs.replace(ready.message, hooked=True))
    return ready, starting


def _prepared(
    channel: socket.socket, image: str, *, holds_pod: bool
) -> tuple[control.Prepare, list[int]]:
    """Wait for what only the Create request knows, and mount the image unless it is not needed."""
    prepare, stdio = control.receive(channel)
    if not isinstance(prepare, control.Prepare):
        raise EOFError
    if prepare.mounted:
        tree = stdio.pop()
        mounts.place_tree(tree, image)
        os.close(tree)
    elif not holds_pod:
        rootfs.mount_image(prepare.rootfs, image)
    return prepare, stdio


def _is_native(image: str, proc: int, spec: Spec, visible: Sequence[Mount]) -> bool:
    """Whether the program is the kernel's, as far as that can be told from the image alone."""
    root = rootfs.open_root(image)
    try:
        covered = [mount.destination for mount in visible]
        return entrypoint.is_native(root, proc, spec.process, covered)
    finally:
        os.close(root)


def _take_place(birth: Birth, resources: Resources) -> None:
    """Be in the container's cgroup, and its limits in force."""
    if birth.placement is not None:
        birth.placement.enter(resources, f"pywasm container {birth.id}")
    elif resources != Resources():
        raise SpecError("linux.cgroupsPath: expected, since there are linux.resources")
    if any(n.type == "cgroup" and not n.path for n in birth.outline.namespaces):
        # Its root is the cgroup that the process is in when it is made.
        clone.unshare(clone.CLONE_NEWCGROUP)


def _has_network(outline: Outline, proc: int) -> bool:
    """Whether the container's network is another than the host's. Raises OSError."""
    ours = os.stat("self/ns/net", dir_fd=proc)
    paths = [namespace.path for namespace in outline.namespaces if namespace.type == "network"]
    return any(not path or not os.path.samestat(os.stat(path), ours) for path in paths)


def _join_namespaces(outline: Outline, later: int, *, network: bool) -> int | None:
    """Join those that have a path; returns a descriptor of the PID namespace, for the last step.

    `later`: those that are still to be made (CLONE_NEW*).
    """
    pid_namespace = None
    for namespace in outline.namespaces:
        if namespace.type == "network" and not network:
            continue
        if namespace.path and namespace.type == "pid":
            pid_namespace = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
        elif namespace.path and namespace.type in _JOINED:
            fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
            clone.setns(fd, _JOINED[namespace.type])
            os.close(fd)
        elif namespace.type == "network" and not later & clone.CLONE_NEWNET:
            bring_up_loopback()
    if not network:
        clone.unshare(clone.CLONE_NEWNET)
    return pid_namespace
