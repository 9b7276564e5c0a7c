"""What a guest's process may do, and what it still has when its module is loaded. Runs in: guest.

In steps: `check` while the host is still around it; `apply`, `apply_names` and `apply_labels` in
its namespaces and its root, but with all privileges; `drop` for good.
"""

import os
import signal
from collections.abc import Callable
from typing import NamedTuple

from oci.linux import Linux, Seccomp
from oci.runtime import Process, Spec, SpecError
from shim.engines.cache import ArtifactCache
from shim.linux import (
    credentials,
    limits,
    personality,
    scheduling,
    seccomp,
    security_labels,
    sysctl,
    user_namespace,
)


class Confinement(NamedTuple):
    """What is imposed at the very end: namespaces to enter, and a seccomp filter.

    Descriptors of a user namespace, and of a PID namespace that others are in. `reborn`: a new PID
    namespace is there for this process's children, and it goes there, too.
    """

    user_namespace: int | None = None
    pid_namespace: int | None = None
    reborn: bool = False
    filter: bytes = b""
    flags: int = 0


def check(spec: Spec) -> None:
    """Raise SpecError for what we, or this machine, could not enforce, or must not."""
    process, linux = spec.process, spec.linux
    for field, wanted in (("intelRdt", linux.intel_rdt), ("netDevices", linux.net_devices)):
        if wanted:
            raise SpecError(f"linux.{field}: not implemented")
    if (spec.hostname or spec.domainname) and not _has(spec, "uts"):
        raise SpecError("hostname: without a uts namespace it would be the host's")
    sysctl.check(linux.sysctl, linux.namespaces)
    security_labels.check(process.apparmor_profile, process.selinux_label, linux.mount_label)
    user_namespace.check(linux)
    limits.check_rlimits(process.rlimits)


def identity(process: Process, linux: Linux, *, own_network: bool = False) -> credentials.Identity:
    """Who the program is going to be, in the host's ids, for `credentials.acting_as`.

    `own_network`: other than the host's. Raises SpecError for an id that is not mapped.
    """
    user, ids = process.user, user_namespace.ids(linux)
    capabilities = credentials.effective_capabilities(process)
    if ids.uids:
        # They are about files of mapped owners then; out here they would be about all.
        capabilities -= credentials.FILE_CAPABILITIES
        if not own_network:
            # A port of the host's is not the user namespace's to give.
            capabilities -= {"CAP_NET_BIND_SERVICE"}
    groups = tuple(ids.gid(gid) for gid in user.additional_gids)
    return credentials.Identity(ids.uid(user.uid), ids.gid(user.gid), groups, capabilities)


def open_user_namespace(spec: Spec) -> int | None:
    """Make the user namespace of the spec, or open the one it names; None without any."""
    for namespace in spec.linux.namespaces:
        if namespace.type == "user":
            if namespace.path:
                return os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
            return user_namespace.create(spec.linux.uid_mappings, spec.linux.gid_mappings)
    return None


def load_filter(profile: Seccomp, cache: ArtifactCache) -> tuple[bytes, bytes, bool]:
    """Return the key and the instructions of a profile's filter, and whether they were cached.

    Raises SpecError, OSError.
    """
    name = bytes.fromhex(seccomp.key(profile))
    found = cache.load_filter(name)
    if found is not None:
        return name, found, True
    return name, seccomp.compile_filter(profile), False


def apply_names(spec: Spec, proc: int) -> None:
    """Give the container's namespaces their names and sysctls. Raises OSError."""
    if spec.hostname:
        credentials.set_hostname(spec.hostname)
    if spec.domainname:
        credentials.set_domainname(spec.domainname)
    sysctl.write(spec.linux.sysctl, proc)


def apply(process: Process, linux: Linux, proc: int) -> None:
    """Give this process its priorities, for which it takes the node's privileges.

    `proc` is the host's /proc. Raises OSError, SpecError.
    """
    if process.oom_score_adj is not None:
        limits.set_oom_score_adj(process.oom_score_adj, proc)
    if process.scheduler is not None:
        scheduling.set_scheduler(process.scheduler)
    if process.io_priority is not None:
        scheduling.set_io_priority(process.io_priority)
    if linux.memory_policy is not None:
        scheduling.set_memory_policy(linux.memory_policy)
    if linux.personality is not None:
        personality.set_personality(linux.personality)


def apply_labels(process: Process, proc: int) -> None:
    """Give this process its labels, under which it may not do all that comes before. As `apply`."""
    if process.apparmor_profile:
        security_labels.apply_apparmor(process.apparmor_profile, proc)
    if process.selinux_label:
        security_labels.apply_selinux(process.selinux_label, proc)


def drop(process: Process, last: Confinement, arrive: Callable[[], None]) -> list[str]:
    """Become the user, with the limits and capabilities and under the filter of the spec.

    `arrive` makes this process one of the PID namespace that is there for its children.
    Returns the capabilities that could not be granted. Raises OSError, and what `arrive` does.
    """
    # Not before: they are the program's, and a copy of its module may be larger than its files. Nor
    # later, where it is not the node's any more to raise one.
    limits.set_rlimits(process.rlimits)
    if last.user_namespace is not None:
        user_namespace.enter(last.user_namespace)
        os.close(last.user_namespace)
    if last.filter and not process.no_new_privileges:
        # It takes a privilege that is about to go. Otherwise it comes last, as under runc.
        seccomp.install(last.filter, last.flags)
    missing = credentials.become(process)
    if last.pid_namespace is not None or last.reborn:
        arrive()
    # The kernel forgets it when credentials change.
    credentials.set_pdeathsig(signal.SIGKILL)
    if last.filter and process.no_new_privileges:
        seccomp.install(last.filter, last.flags)
    return missing


def _has(spec: Spec, kind: str) -> bool:
    return any(namespace.type == kind for namespace in spec.linux.namespaces)
