"""Metrics out of the files of cgroup v1 (library).

Source: the kernel's Documentation/admin-guide/cgroup-v1; which number goes into which field is as
in containerd/cgroups.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from proto import cgroups_v1_pb2 as api
from shim.linux.cgroups.files import Directory
from shim.linux.cgroups.numbers import (
    fill,
    number,
    page_sizes,
    pairs,
    rdma_entries,
    text,
)

_TICK: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# The kernel's words, where those of the message are others.
_RENAMED: Final = {
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
    **{
        prefix + kernel: prefix + field
        for prefix in ("", "total_")
        for kernel, field in (
            ("pgpgin", "pg_pg_in"),
            ("pgpgout", "pg_pg_out"),
            ("pgfault", "pg_fault"),
            ("pgmajfault", "pg_maj_fault"),
        )
    },
}
_IO: Final = (
    ("io_service_bytes", "io_service_bytes_recursive"),
    ("io_serviced", "io_serviced_recursive"),
)


def read_metrics(where: Callable[[str], str | None]) -> api.Metrics:
    """Read what there is; `where` tells the directory for a controller. Raises OSError."""
    metrics = api.Metrics()
    metrics.cpu.usage.SetInParent()
    metrics.cpu.throttling.SetInParent()
    for controller, add in _CONTROLLERS.items():
        path = where(controller)
        if path is not None:
            with Directory(path.__str__) as directory:
                add(directory, metrics)
    return metrics


def _cpu(directory: Directory, metrics: api.Metrics) -> None:
    stat = pairs(text(directory, "cpu.stat"))
    throttling = metrics.cpu.throttling
    throttling.periods = stat.get("nr_periods", 0)
    throttling.throttled_periods = stat.get("nr_throttled", 0)
    throttling.throttled_time = stat.get("throttled_time", 0)


def _cpuacct(directory: Directory, metrics: api.Metrics) -> None:
    stat = pairs(text(directory, "cpuacct.stat"))
    usage = metrics.cpu.usage
    usage.total = number(directory, "cpuacct.usage")
    usage.user = stat.get("user", 0) * _TICK
    usage.kernel = stat.get("system", 0) * _TICK
    usage.per_cpu.extend(map(int, text(directory, "cpuacct.usage_percpu").split()))


def _memory(directory: Directory, metrics: api.Metrics) -> None:
    memory = metrics.memory
    stat = pairs(directory.read("memory.stat"))
    fill(memory, {_RENAMED.get(name, name): value for name, value in stat.items()})
    for kind, entry in (
        ("", memory.usage),
        ("memsw.", memory.swap),
        ("kmem.", memory.kernel),
        ("kmem.tcp.", memory.kernel_tcp),
    ):
        entry.SetInParent()
        usage = text(directory, f"memory.{kind}usage_in_bytes")
        if usage:
            entry.usage = int(usage)
            entry.max = number(directory, f"memory.{kind}max_usage_in_bytes")
            entry.failcnt = number(directory, f"memory.{kind}failcnt")
            entry.limit = number(directory, f"memory.{kind}limit_in_bytes")
    metrics.memory_oom_control.SetInParent()
    fill(metrics.memory_oom_control, pairs(text(directory, "memory.oom_control")))


def _pids(directory: Directory, metrics: api.Metrics) -> None:
    metrics.pids.current = number(directory, "pids.current")
    metrics.pids.limit = number(directory, "pids.max")


def _blkio(directory: Directory, metrics: api.Metrics) -> None:
    metrics.blkio.SetInParent()
    names: dict[str, str] = {}
    for file, field in _IO:
        # Not of the I/O scheduler, which counts only what is its own.
        lines = text(directory, f"blkio.throttle.{file}_recursive") or text(
            directory, f"blkio.throttle.{file}"
        )
        for line in lines.splitlines():  # such as "8:0 Read 4096", and "Total 4096" at the end
            device, _, rest = line.partition(" ")
            op, _, value = rest.rpartition(" ")
            if device == "Total":
                continue
            names = names or _block_devices()
            major, _, minor = device.partition(":")
            getattr(metrics.blkio, field).add(
                op=op,
                device=names.get(device, ""),
                major=int(major),
                minor=int(minor),
                value=int(value),
            )


def _block_devices() -> dict[str, str]:
    """The paths of block devices by their numbers, from /proc/partitions."""
    found: dict[str, str] = {}
    with open("/proc/partitions") as partitions:
        for line in partitions:
            words = line.split()
            if len(words) == 4 and words[0] != "major":
                found.setdefault(f"{words[0]}:{words[1]}", f"/dev/{words[3]}")
    return found


def _hugetlb(directory: Directory, metrics: api.Metrics) -> None:
    for size in page_sizes():
        metrics.hugetlb.add(
            pagesize=size,
            usage=number(directory, f"hugetlb.{size}.usage_in_bytes"),
            max=number(directory, f"hugetlb.{size}.max_usage_in_bytes"),
            failcnt=number(directory, f"hugetlb.{size}.failcnt"),
        )


def _rdma(directory: Directory, metrics: api.Metrics) -> None:
    current, limit = text(directory, "rdma.current"), text(directory, "rdma.max")
    metrics.rdma.current.extend(rdma_entries(current, api.RdmaEntry))
    metrics.rdma.limit.extend(rdma_entries(limit, api.RdmaEntry))


_CONTROLLERS: Final[dict[str, Callable[[Directory, api.Metrics], None]]] = {
    "cpu": _cpu,
    "cpuacct": _cpuacct,
    "memory": _memory,
    "pids": _pids,
    "blkio": _blkio,
    "hugetlb": _hugetlb,
    "rdma": _rdma,
}
