"""Metrics out of the files of cgroup v2 (library).

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, whose names the messages have, too;
which number goes into which field is as in containerd/cgroups.
"""

from __future__ import annotations

import errno
from typing import Final

from proto import cgroups_v2_pb2 as api
from shim.linux.cgroups.files import Directory
from shim.linux.cgroups.numbers import fill, number, page_sizes, pairs, rdma_entries, text

_SIZES: Final = (
    ("usage", "memory.current"),
    ("usage_limit", "memory.max"),
    ("max_usage", "memory.peak"),
    ("swap_usage", "memory.swap.current"),
    ("swap_limit", "memory.swap.max"),
    ("swap_max_usage", "memory.swap.peak"),
)
_IO: Final = frozenset({"rbytes", "wbytes", "rios", "wios"})


def read_metrics(path: str) -> api.Metrics:
    """Read the metrics of the cgroup whose directory is `path`. Raises OSError."""
    with Directory(path.__str__) as directory:
        metrics = api.Metrics()
        # The section of a controller that the cgroup has not is there, and empty.
        metrics.pids.current = number(directory, "pids.current")
        metrics.pids.limit = number(directory, "pids.max")
        metrics.cpu.SetInParent()
        fill(metrics.cpu, pairs(directory.read("cpu.stat")))
        _pressure(metrics.cpu, directory, "cpu.pressure")
        stat = text(directory, "memory.stat")
        metrics.memory.SetInParent()
        if stat:
            fill(metrics.memory, pairs(stat))
            for field, file in _SIZES:
                setattr(metrics.memory, field, number(directory, file))
            _pressure(metrics.memory, directory, "memory.pressure")
            metrics.memory_events.SetInParent()
            fill(metrics.memory_events, pairs(text(directory, "memory.events")))
        _io(metrics.io, directory)
        metrics.rdma.SetInParent()
        metrics.rdma.current.extend(rdma_entries(text(directory, "rdma.current"), api.RdmaEntry))
        metrics.rdma.limit.extend(rdma_entries(text(directory, "rdma.max"), api.RdmaEntry))
        for size in page_sizes():
            metrics.hugetlb.add(
                pagesize=size,
                current=number(directory, f"hugetlb.{size}.current"),
                max=number(directory, f"hugetlb.{size}.max"),
                failcnt=pairs(text(directory, f"hugetlb.{size}.events")).get("max", 0),
            )
        return metrics


def _pressure(
    message: api.CPUStat | api.MemoryStat | api.IOStat, directory: Directory, file: str
) -> None:
    try:
        content = text(directory, file)
    except OSError as e:
        if e.errno != errno.EOPNOTSUPP:  # switched off: psi=0, or cgroup.pressure
            raise
        return
    for line in content.splitlines():  # such as "some avg10=0.12 avg60=0.00 avg300=0.00 total=63"
        kind, *words = line.split()
        if kind in ("some", "full"):
            values = dict(word.split("=", 1) for word in words)
            getattr(message.psi, kind).MergeFrom(
                api.PSIData(
                    avg10=float(values["avg10"]),
                    avg60=float(values["avg60"]),
                    avg300=float(values["avg300"]),
                    total=int(values["total"]),
                )
            )


def _io(io: api.IOStat, directory: Directory) -> None:
    io.SetInParent()
    for line in text(directory, "io.stat").splitlines():  # such as "8:0 rbytes=90112 wbytes=0"
        device, *words = line.split()
        major, _, minor = device.partition(":")
        values = dict(word.split("=", 1) for word in words if "=" in word)
        if minor:
            io.usage.add(
                major=int(major),
                minor=int(minor),
                **{name: int(value) for name, value in values.items() if name in _IO},
            )
    _pressure(io, directory, "io.pressure")
