"""Control groups: where a container's are, what they allow, use and tell (library).

* `trees`: the mounted hierarchies, v1 and v2;
* `cgroup`: one cgroup in all of them, from `create` to `delete`;
* `limits`, with `limits_v1` and `limits_v2`: an OCI `linux.resources` in the kernel's files;
* `device_rules`: which devices may be used, in the order of the spec and as v1 has it;
* `device_filter`: the same for v2;
* `metrics_v1`, `metrics_v2`: what containerd and the kubelet want to know;
* `oom`: hearing of processes that the kernel killed for want of memory.
"""

from shim.linux.cgroups.cgroup import Cgroup, warm
from shim.linux.cgroups.trees import Hierarchy, hierarchies

__all__ = ["Cgroup", "Hierarchy", "hierarchies", "warm"]
