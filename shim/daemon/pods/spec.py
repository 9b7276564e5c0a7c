"""The spec of the process that holds a pod's namespaces, from CRI's description of the pod.

Runs in: shim.

Where containerd's "shim" sandboxer is used nobody else writes one. What is in it is what CRI has
for its own sandbox containers, so that the pod's containers meet the same either way.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

from oci.runtime import SpecError
from proto.pod_pb2 import IDMapping, NamespaceMode, PodSandboxConfig
from shim.linux.credentials import may
from shim.linux.files import read_small

_NOBODY: Final = 65535  # the user of the image that CRI would run
_OOM_SCORE: Final = -998  # the kernel takes the pod's other processes first
_CPU_SHARES: Final = 2  # the fewest

_ANNOTATION: Final = "io.kubernetes.cri."

_NETWORK_SYSCTLS: Final = {"net.ipv4.ip_unprivileged_port_start": "0"}
_GROUP_SYSCTLS: Final = {"net.ipv4.ping_group_range": "0 2147483647"}
"""The defaults of containerd 2, in a network of the pod's own; the pod's own sysctls go before.

The second is refused where not all groups are mapped.
"""


def pod_spec(id: str, config: PodSandboxConfig, network: str, user: str) -> dict[str, Any]:
    """Return the document. Raises SpecError.

    `network` is the path of the pod's network namespace, and `user` of the user namespace that it
    belongs to; each is empty if there is none yet.
    """
    security = config.linux.security_context
    modes = security.namespace_options
    own_network = modes.network != NamespaceMode.NODE
    own_users = has_own_users(config)
    namespaces: list[dict[str, str]] = [{"type": "mount"}]
    if own_network:
        namespaces += [{"type": "network", "path": network}, {"type": "uts"}]
    if modes.pid != NamespaceMode.NODE:
        namespaces.append({"type": "pid"})
    if modes.ipc != NamespaceMode.NODE:
        namespaces.append({"type": "ipc"})
    sysctls = dict(config.linux.sysctls)
    if own_network:
        sysctls = {**_NETWORK_SYSCTLS, **({} if own_users else _GROUP_SYSCTLS), **sysctls}
    linux: dict[str, Any] = {"namespaces": namespaces, "sysctl": sysctls}
    if own_users:
        namespaces.append({"type": "user", "path": user})
        linux["uidMappings"] = _mappings(modes.userns_options.uids)
        linux["gidMappings"] = _mappings(modes.userns_options.gids)
    if parent := config.linux.cgroup_parent:
        linux["cgroupsPath"] = _cgroups_path(parent, id)
        linux["resources"] = {"cpu": {"shares": _CPU_SHARES}}
    uid = security.run_as_user.value if security.HasField("run_as_user") else _NOBODY
    gid = security.run_as_group.value if security.HasField("run_as_group") else uid
    return {
        "ociVersion": "1.1.0",
        "process": {
            "user": {
                "uid": uid,
                "gid": gid,
                "additionalGids": list(security.supplemental_groups),
            },
            "cwd": "/",
            "noNewPrivileges": True,
            "oomScoreAdj": _oom_score(),
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": config.hostname if own_network else "",
        "annotations": {
            **sandbox_annotations(id),
            _ANNOTATION + "sandbox-name": config.metadata.name,
            _ANNOTATION + "sandbox-namespace": config.metadata.namespace,
            _ANNOTATION + "sandbox-uid": config.metadata.uid,
        },
        "linux": linux,
    }


def has_own_users(config: PodSandboxConfig) -> bool:
    """Tell whether the pod has a user namespace of its own. Raises SpecError for another mode."""
    modes = config.linux.security_context.namespace_options
    if not modes.HasField("userns_options"):
        return False
    mode = modes.userns_options.mode
    if mode not in (NamespaceMode.POD, NamespaceMode.NODE):
        raise SpecError(f"userns_options.mode: expected POD or NODE, got {_name(mode)}")
    return mode == NamespaceMode.POD


def _name(mode: int) -> str:
    return NamespaceMode.Name(mode) if mode in NamespaceMode.values() else str(mode)


def sandbox_annotations(id: str) -> Mapping[str, str]:
    """Return what tells a sandbox from a container of a pod."""
    return {_ANNOTATION + "container-type": "sandbox", _ANNOTATION + "sandbox-id": id}


def _mappings(mappings: Iterable[IDMapping]) -> list[dict[str, int]]:
    return [
        {"containerID": m.container_id, "hostID": m.host_id, "size": m.length} for m in mappings
    ]


def _cgroups_path(parent: str, id: str) -> str:
    slice_ = os.path.basename(parent)
    # The prefix is part of what node agents know containers by.
    return f"{slice_}:cri-containerd:{id}" if slice_.endswith(".slice") else f"{parent}/{id}"


def _oom_score() -> int:
    if may("CAP_SYS_RESOURCE"):
        return _OOM_SCORE
    return max(int(read_small("/proc/self/oom_score_adj")), _OOM_SCORE)
