"""`linux.resources` in the files of cgroup v2 (library).

Each function is for one controller, of a cgroup whose directory it is given, and writes what
`resources` has for it. The spec is written in the terms of v1; the conversions are those of runc.
Sources: the runtime-spec's config-linux.md, the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Final

from oci.linux import Resources
from shim.linux.cgroups.files import Directory, Setting, refusal
from shim.linux.cgroups.limits_v1 import hugetlb, rdma
from shim.linux.cgroups.names import pids_limit

_FILE: Final = re.compile(r"\w+\.[\w.]+", re.ASCII)
_UNLIMITED: Final = -1
_MAX_SHARES: Final = 2**18


def refuse_v1_only(resources: Resources) -> None:
    """Raise OSError (EOPNOTSUPP) for a field that v2 has nothing for, as the spec demands.

    kernel and kernelTCP are obsolete, and nobody minds them any more.
    """
    cpu, memory, block = resources.cpu, resources.memory, resources.block_io
    leaves = block.leaf_weight or any(device.leaf_weight for device in block.weight_device)
    for field, given in (
        ("cpu.realtimeRuntime", cpu.realtime_runtime),
        ("cpu.realtimePeriod", cpu.realtime_period),
        ("memory.swappiness", memory.swappiness is not None),
        ("memory.disableOOMKiller", memory.disable_oom_killer),
        ("blockIO.leafWeight", leaves),
        ("network.classID", resources.network.class_id),
        ("network.priorities", resources.network.priorities),
    ):
        if given:
            raise refusal(errno.EOPNOTSUPP, field, "cgroup v2 has no such limit")


def cpu_weight(shares: int) -> int:
    """Convert v1's shares (2 to 262144, usually 1024) to v2's weight (1 to 10000, usually 100).

    The curve of runc 1.3.2 and later goes through (2, 1), (1024, 100) and (262144, 10000), so that
    the usual stays the usual. Before, it was a line, which made 39 of 1024.
    """
    if shares <= 2:
        return 1
    if shares >= _MAX_SHARES:
        return 10000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def io_weight(weight: int) -> int:
    """Convert the weight of v1 and BFQ (10 to 1000) to that of io.weight (1 to 10000)."""
    return 1 + (weight - 10) * 9999 // 990


def swap_limit(both: int | None, memory: int | None, current: Callable[[], str]) -> str | None:
    """What memory.swap.max shall hold: the spec's limit is of memory and swap together, as in v1.

    `current` tells what memory.max holds, which counts if `memory` is not given. None if nothing is
    to be changed. Raises OSError (EINVAL) for a limit of both that is below the one of memory.
    """
    if not both:
        return "max" if memory == _UNLIMITED else None
    if both == _UNLIMITED:
        return "max"
    if not memory:
        now = current()
        memory = _UNLIMITED if now == "max" else int(now)
    if memory == _UNLIMITED:
        return str(both)
    if both < memory:
        raise refusal(errno.EINVAL, "memory.swap", f"{both}: below the limit of memory, {memory}")
    return str(both - memory)


def _cpu(directory: Directory, resources: Resources) -> None:
    cpu = resources.cpu
    settings = []
    if cpu.shares:  # which one that is idle does not take
        settings.append(Setting("cpu.shares", "cpu.weight", str(cpu_weight(cpu.shares))))
    if cpu.idle is not None:
        settings.append(Setting("cpu.idle", "cpu.idle", str(cpu.idle)))
    directory.set_together(settings)
    settings = []
    if cpu.quota or cpu.period:
        if cpu.quota:
            bandwidth = "max" if cpu.quota < 0 else str(cpu.quota)
        else:
            bandwidth = directory.read("cpu.max").split()[0]
        if cpu.period:
            bandwidth += f" {cpu.period}"
        field = "cpu.quota" if cpu.quota else "cpu.period"
        settings.append(Setting(field, "cpu.max", bandwidth))
    if cpu.burst is not None:
        settings.append(Setting("cpu.burst", "cpu.max.burst", str(cpu.burst)))
    directory.set_together(settings)


def _cpuset(directory: Directory, resources: Resources) -> None:
    if resources.cpu.cpus:
        directory.set("cpu.cpus", "cpuset.cpus", resources.cpu.cpus)
    if resources.cpu.mems:
        directory.set("cpu.mems", "cpuset.mems", resources.cpu.mems)


def _memory(directory: Directory, resources: Resources) -> None:
    memory = resources.memory
    if memory.check_before_update:
        _check_usage(directory, resources)
    swap = swap_limit(memory.swap, memory.limit, lambda: directory.read("memory.max"))
    # A kernel without swap has no file, and no need of one to have no swap.
    if swap is not None and (swap not in ("0", "max") or directory.has("memory.swap.max")):
        directory.set("memory.swap", "memory.swap.max", swap)
    if memory.limit:
        directory.set("memory.limit", "memory.max", _bytes(memory.limit))
    if memory.reservation:
        directory.set("memory.reservation", "memory.low", _bytes(memory.reservation))


def _check_usage(directory: Directory, resources: Resources) -> None:
    # v1 refuses a limit below the usage, v2 kills until it fits.
    usage = int(directory.read("memory.current"))
    for field, limit in (
        ("memory.swap", resources.memory.swap),
        ("memory.limit", resources.memory.limit),
    ):
        if limit and 0 < limit <= usage:
            raise refusal(errno.EBUSY, field, f"{limit}: {usage} are in use")


def _bytes(limit: int) -> str:
    return "max" if limit == _UNLIMITED else str(limit)


def _pids(directory: Directory, resources: Resources) -> None:
    if resources.pids.limit is not None:
        directory.set("pids.limit", "pids.max", pids_limit(resources.pids.limit))


def _io(directory: Directory, resources: Resources) -> None:
    block = resources.block_io
    if block.weight or block.weight_device:
        bfq = directory.has("io.bfq.weight")
        file = "io.bfq.weight" if bfq else "io.weight"
        for field, device, weight in (
            ("blockIO.weight", "", block.weight),
            *(
                ("blockIO.weightDevice", f"{device.major}:{device.minor} ", device.weight)
                for device in block.weight_device
            ),
        ):
            if weight:
                directory.set(field, file, f"{device}{weight if bfq else io_weight(weight)}")
    for field, what, devices in (
        ("throttleReadBpsDevice", "rbps", block.throttle_read_bps_device),
        ("throttleWriteBpsDevice", "wbps", block.throttle_write_bps_device),
        ("throttleReadIOPSDevice", "riops", block.throttle_read_iops_device),
        ("throttleWriteIOPSDevice", "wiops", block.throttle_write_iops_device),
    ):
        if devices:
            directory.set(
                f"blockIO.{field}",
                "io.max",
                # v1 means no limit by 0, v2 refuses it.
                *(f"{d.major}:{d.minor} {what}={d.rate or 'max'}" for d in devices),
            )


def unified(directory: Directory, resources: Resources) -> None:
    """Write what the spec has for files by name. Raises OSError."""
    for file, content in resources.unified.items():
        if not _FILE.fullmatch(file):
            raise refusal(errno.EINVAL, "unified", f"{file!r}: not a file such as memory.high")
        field, controller = f"unified.{file}", file.partition(".")[0]
        try:
            # Where there is more than one line, the kernel takes them one by one.
            directory.set(field, file, *content.removesuffix("\n").split("\n"))
        except FileNotFoundError:
            if controller in directory.read("cgroup.controllers").split():
                raise
            raise refusal(
                errno.ENOENT, field, f"the cgroup has no {controller} controller", directory.path
            ) from None


CONTROLLERS: Final[dict[str, Callable[[Directory, Resources], None]]] = {
    "pids": _pids,
    "memory": _memory,
    "io": _io,
    "cpu": _cpu,
    "cpuset": _cpuset,
    "hugetlb": partial(hugetlb, ending="max"),
    "rdma": rdma,
}
"""In the order in which they are set."""
