"""`linux.resources` in the files of cgroup v1 (library).

Each function is for one controller, of a cgroup whose directory it is given, and writes what
`resources` has for it. Sources: the runtime-spec's config-linux.md, the kernel's
Documentation/admin-guide/cgroup-v1.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Final

from oci.linux import Resources
from shim.linux.cgroups.device_rules import Rule, exceptions, line
from shim.linux.cgroups.files import Directory, Setting, refusal
from shim.linux.cgroups.names import check_word, page_size, pids_limit

_SHARES: Final = range(2, 2**18 + 1)
_SWAPPINESS: Final = range(101)
_UNLIMITED: Final = -1


def _cpu(directory: Directory, resources: Resources) -> None:
    cpu = resources.cpu
    if cpu.shares and cpu.shares not in _SHARES:
        # The kernel would take the nearest it has, and say nothing.
        raise refusal(errno.EINVAL, "cpu.shares", f"{cpu.shares}: not from 2 to 262144")
    _together(  # one that is idle takes no shares
        directory,
        ("cpu.shares", "cpu.shares", cpu.shares or None),
        ("cpu.idle", "cpu.idle", cpu.idle),
    )
    _together(
        directory,
        ("cpu.period", "cpu.cfs_period_us", cpu.period or None),
        ("cpu.quota", "cpu.cfs_quota_us", cpu.quota or None),
        ("cpu.burst", "cpu.cfs_burst_us", cpu.burst),
    )
    _together(
        directory,
        ("cpu.realtimePeriod", "cpu.rt_period_us", cpu.realtime_period or None),
        ("cpu.realtimeRuntime", "cpu.rt_runtime_us", cpu.realtime_runtime or None),
    )


def _cpuset(directory: Directory, resources: Resources) -> None:
    if resources.cpu.cpus:
        directory.set("cpu.cpus", "cpuset.cpus", resources.cpu.cpus)
    if resources.cpu.mems:
        directory.set("cpu.mems", "cpuset.mems", resources.cpu.mems)


def _memory(directory: Directory, resources: Resources) -> None:
    memory = resources.memory
    swap = memory.swap
    both = "memory.memsw.limit_in_bytes"
    if memory.limit == _UNLIMITED and not swap and directory.has(both):
        swap = _UNLIMITED  # or the old limit of both would be the limit of memory
    _together(
        directory,
        ("memory.limit", "memory.limit_in_bytes", memory.limit or None),
        ("memory.swap", both, swap or None),
    )
    if memory.reservation:
        directory.set("memory.reservation", "memory.soft_limit_in_bytes", str(memory.reservation))
    if memory.disable_oom_killer:
        directory.set("memory.disableOOMKiller", "memory.oom_control", "1")
    if memory.swappiness is not None:
        if memory.swappiness not in _SWAPPINESS:
            raise refusal(
                errno.EINVAL, "memory.swappiness", f"{memory.swappiness}: not from 0 to 100"
            )
        directory.set("memory.swappiness", "memory.swappiness", str(memory.swappiness))


def _pids(directory: Directory, resources: Resources) -> None:
    if resources.pids.limit is not None:
        directory.set("pids.limit", "pids.max", pids_limit(resources.pids.limit))


def _blkio(directory: Directory, resources: Resources) -> None:
    block = resources.block_io
    weights = "blkio.weight", "blkio.weight_device"
    if (block.weight or block.weight_device) and not directory.has(weights[0]):
        weights = "blkio.bfq.weight", "blkio.bfq.weight_device"
    if block.weight:
        directory.set("blockIO.weight", weights[0], str(block.weight))
    if block.leaf_weight:
        directory.set("blockIO.leafWeight", "blkio.leaf_weight", str(block.leaf_weight))
    for device in block.weight_device:
        number = f"{device.major}:{device.minor}"
        if device.weight:
            directory.set("blockIO.weightDevice", weights[1], f"{number} {device.weight}")
        if device.leaf_weight:
            directory.set(
                "blockIO.weightDevice",
                "blkio.leaf_weight_device",
                f"{number} {device.leaf_weight}",
            )
    for field, what, devices in (
        ("throttleReadBpsDevice", "read_bps", block.throttle_read_bps_device),
        ("throttleWriteBpsDevice", "write_bps", block.throttle_write_bps_device),
        ("throttleReadIOPSDevice", "read_iops", block.throttle_read_iops_device),
        ("throttleWriteIOPSDevice", "write_iops", block.throttle_write_iops_device),
    ):
        if devices:
            directory.set(
                f"blockIO.{field}",
                f"blkio.throttle.{what}_device",
                *(f"{device.major}:{device.minor} {device.rate}" for device in devices),
            )


def hugetlb(directory: Directory, resources: Resources, ending: str = "limit_in_bytes") -> None:
    """Limit huge pages, here and with v2's `ending` of the files' names. Raises OSError."""
    for limit in resources.hugepage_limits:
        for kind in ("", ".rsvd"):
            file = f"hugetlb.{page_size(limit.page_size)}{kind}.{ending}"
            if kind and not directory.has(file):
                continue  # before Linux 5.7
            directory.set("hugepageLimits", file, str(limit.limit))


def _net_cls(directory: Directory, resources: Resources) -> None:
    if resources.network.class_id:
        directory.set("network.classID", "net_cls.classid", str(resources.network.class_id))


def _net_prio(directory: Directory, resources: Resources) -> None:
    for priority in resources.network.priorities:
        field = "network.priorities"
        name = check_word(field, priority.name)
        directory.set(field, "net_prio.ifpriomap", f"{name} {priority.priority}")


def rdma(directory: Directory, resources: Resources) -> None:
    """The limits of RDMA devices, which v2 has in the same words."""
    for name, limits in resources.rdma.items():
        words = [check_word("rdma", name)]
        if limits.hca_handles is not None:
            words.append(f"hca_handle={limits.hca_handles}")
        if limits.hca_objects is not None:
            words.append(f"hca_object={limits.hca_objects}")
        directory.set(f"rdma.{name}", "rdma.max", " ".join(words))


def devices(directory: Directory, rules: Iterable[Rule]) -> None:
    """Allow what `rules` allow and nothing else. Raises OSError."""
    allow, accesses = exceptions(rules)
    files = "devices.deny", "devices.allow"
    directory.set("devices", files[allow], "a")
    if accesses:
        directory.set(
            "devices", files[not allow], *(line(key, access) for key, access in accesses.items())
        )


def _together(directory: Directory, *settings: tuple[str, str, int | None]) -> None:
    directory.set_together(
        [Setting(field, file, str(value)) for field, file, value in settings if value is not None]
    )


CONTROLLERS: Final[dict[str, Callable[[Directory, Resources], None]]] = {
    "cpu": _cpu,
    "cpuset": _cpuset,
    "memory": _memory,
    "pids": _pids,
    "blkio": _blkio,
    "hugetlb": hugetlb,
    "net_cls": _net_cls,
    "net_prio": _net_prio,
    "rdma": rdma,
}
"""In the order in which they are set."""
