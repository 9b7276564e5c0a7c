"""What a cgroup uses, as the messages that containerd and the kubelet expect of `Stats` (library).

The runc shim sends `io.containerd.cgroups.v2.Metrics` where there is v2 alone, else
`io.containerd.cgroups.v1.Metrics`, in an Any whose type URL is that bare name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from proto import cgroups_v1_pb2, cgroups_v2_pb2
from shim.linux.cgroups import metrics_v1, metrics_v2
from shim.linux.cgroups.cgroup import Cgroup

Metrics: TypeAlias = "cgroups_v1_pb2.Metrics | cgroups_v2_pb2.Metrics"


def metrics(cgroup: Cgroup) -> Metrics:
    """Read all there is. What the kernel does not tell is not in the message.

    Raises OSError: ENOENT if the cgroup is gone.
    """
    path = cgroup.directory("")
    if cgroup.unified and path is not None:
        return metrics_v2.read_metrics(path)
    controllers: Callable[[str], str | None] = cgroup.directory
    return metrics_v1.read_metrics(controllers)
