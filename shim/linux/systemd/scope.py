"""The scope that a cgroup path of `slice:prefix:name` asks for, and its properties (library).

Sources: org.freedesktop.systemd1(5), systemd.resource-control(5), systemd.slice(5).
"""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from oci.linux import Resources
from shim.linux.cgroups.device_rules import Rule, container_rules, exceptions, ordered
from shim.linux.cgroups.files import refusal
from shim.linux.cgroups.limits_v2 import cpu_weight, io_weight, swap_limit
from shim.linux.cgroups.names import cpu_list

Property: TypeAlias = tuple[str, tuple[str, Any]]
"""A name, and a value with its D-Bus signature."""

_SLICE: Final = ".slice"
_DEFAULT_SLICE: Final = "system.slice"
_INFINITY: Final = 2**64 - 1
_DEFAULT_PERIOD: Final = 100_000
_PERCENT: Final = 10_000  # of a CPU, in microseconds per second
# Releases that brought properties.
_PERIOD_SINCE: Final = 242
_CPUSET_SINCE: Final = 244
_IDLE_SINCE: Final = 252
_OOM_POLICY_SINCE: Final = 253

_SIZES: Final = {
    "memory.min": "MemoryMin",
    "memory.low": "MemoryLow",
    "memory.high": "MemoryHigh",
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
}
_CPUSETS: Final = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}


class Scope(NamedTuple):
    """A transient unit, and the slice that it is in."""

    slice: str
    unit: str

    @classmethod
    def for_path(cls, cgroups_path: str) -> Scope:
        """The scope that a `linux.cgroupsPath` of `slice:prefix:name` stands for.

        Raises OSError (EINVAL) for another path.
        """
        slice_, *names = cgroups_path.split(":")
        if len(names) != 2 or not names[1] or any("/" in name or "\0" in name for name in names):
            raise OSError(errno.EINVAL, "not a path of slice:prefix:name", cgroups_path)
        scope = cls(slice_ or _DEFAULT_SLICE, "-".join(names) + ".scope")
        _slice_path(scope.slice)
        return scope

    @property
    def path(self) -> str:
        """Its cgroup, in the hierarchies that systemd has, for `Cgroup.for_path`."""
        return f"{_slice_path(self.slice)}/{self.unit}"


def scope_properties(pids: Sequence[int], *, slice: str, description: str) -> list[Property]:
    """What a scope of ours is, apart from its limits. A pid of 0 is whoever is asking."""
    return [
        ("Description", ("s", description)),
        ("Slice", ("s", slice)),
        ("Delegate", ("b", True)),
        ("PIDs", ("au", list(pids))),
        ("DefaultDependencies", ("b", False)),
        # Or a scope whose process was killed would stay until somebody resets it.
        ("CollectMode", ("s", "inactive-or-failed")),
        # Delegation alone does not make systemd switch on every controller of v1.
        ("CPUAccounting", ("b", True)),
        ("MemoryAccounting", ("b", True)),
        ("TasksAccounting", ("b", True)),
    ]


def limit_properties(
    resources: Resources, *, unified: bool, version: int, update: bool = False
) -> list[Property]:
    """What systemd can be told of `linux.resources`; `unified` if the machine has v2 alone.

    What it does not know is left to `Cgroup.limit`. Raises OSError (EINVAL) for a value that
    cannot be converted.
    """
    cpu, memory, block = resources.cpu, resources.memory, resources.block_io
    found: list[Property] = []

    def add(name: str, value: int | None) -> None:
        if value:
            found.append((name, ("t", _INFINITY if value < 0 else value)))

    if not update:
        found += _devices(container_rules(resources.devices))
    add("MemoryMax" if unified else "MemoryLimit", memory.limit)
    if unified:
        add("MemoryLow", memory.reservation)
        # With an update of swap alone systemd would need to know the other limit.
        if memory.limit or (memory.swap or 0) < 0:
            swap = swap_limit(memory.swap, memory.limit, lambda: "max")
            if swap is not None:
                found.append(("MemorySwapMax", ("t", _size(swap))))
    idle = unified and cpu.idle == 1 and version >= _IDLE_SINCE
    if idle:
        found.append(("CPUWeight", ("t", 0)))
    elif cpu.shares:
        name, weight = (
            ("CPUWeight", cpu_weight(cpu.shares)) if unified else ("CPUShares", cpu.shares)
        )
        add(name, weight)
    found += _bandwidth(cpu.quota or 0, cpu.period or 0, version)
    if block.weight:
        name, weight = (
            ("IOWeight", io_weight(block.weight)) if unified else ("BlockIOWeight", block.weight)
        )
        add(name, weight)
    if resources.pids.limit is not None:
        add("TasksMax", resources.pids.limit or 1)
    for name, field, numbers in (
        ("AllowedCPUs", "cpu.cpus", cpu.cpus),
        ("AllowedMemoryNodes", "cpu.mems", cpu.mems),
    ):
        if numbers and version >= _CPUSET_SINCE:
            found.append((name, ("ay", _bits(field, numbers))))
    if unified:
        found += _unified(resources, version=version, idle=idle, update=update)
    return found


def _devices(rules: list[Rule]) -> list[Property]:
    strict: Property = ("DevicePolicy", ("s", "strict"))
    clear: Property = ("DeviceAllow", ("a(ss)", []))
    try:
        allow, accesses = exceptions(rules)
    except OSError:
        return [clear, strict]  # until `Cgroup.limit`
    if allow:
        # There is no list of what is forbidden.
        return [clear, strict if accesses else ("DevicePolicy", ("s", "auto"))]
    allowed = []
    for (kind, major, minor), access in accesses.items():
        name = {"b": "block", "c": "char"}[kind]
        if major is None and minor is None:
            path = f"{name}-*"
        elif major is None:
            continue  # it has no words for one minor number of every major
        elif minor is None:
            path = f"{name}-{major}"
        else:
            path = f"/dev/{name}/{major}:{minor}"
        allowed.append((path, ordered(access)))
    return [clear, strict, ("DeviceAllow", ("a(ss)", allowed))]


def _bandwidth(quota: int, period: int, version: int) -> list[Property]:
    found: list[Property] = []
    if period and version >= _PERIOD_SINCE:
        found.append(("CPUQuotaPeriodUSec", ("t", period)))
    if quota or period:
        share = _INFINITY
        if quota > 0:
            share = quota * 1_000_000 // (period or _DEFAULT_PERIOD)
            share = math.ceil(share / _PERCENT) * _PERCENT  # it has whole percents only
        found.append(("CPUQuotaPerSecUSec", ("t", share)))
    return found


def _unified(resources: Resources, *, version: int, idle: bool, update: bool) -> list[Property]:
    found: list[Property] = []
    for file, content in resources.unified.items():
        try:
            found += _unified_file(file, content.split(), version=version, idle=idle, update=update)
        except (ValueError, IndexError):
            raise refusal(errno.EINVAL, f"unified.{file}", f"{content!r}") from None
    return found


def _unified_file(
    file: str, words: list[str], *, version: int, idle: bool, update: bool
) -> list[Property]:
    if file in _SIZES:
        return [(_SIZES[file], ("t", _size(words[0])))]
    if file == "pids.max":
        return [("TasksMax", ("t", _size(words[0]) or 1))]
    if file == "cpu.weight" and not idle:
        return [("CPUWeight", ("t", int(words[0])))]
    if file == "cpu.idle" and words[0] == "1" and version >= _IDLE_SINCE:
        return [("CPUWeight", ("t", 0))]
    if file == "cpu.max":
        quota = -1 if words[0] == "max" else int(words[0])
        return _bandwidth(quota, int(words[1]) if len(words) > 1 else 0, version)
    if file in _CPUSETS and version >= _CPUSET_SINCE:
        return [(_CPUSETS[file], ("ay", _bits(f"unified.{file}", words[0])))]
    if file == "memory.oom.group" and not update and version >= _OOM_POLICY_SINCE:
        return [("OOMPolicy", ("s", "kill" if words[0] == "1" else "continue"))]
    return []


def _size(word: str) -> int:
    return _INFINITY if word == "max" else int(word)


def _bits(field: str, numbers: str) -> bytes:
    """A list such as 0-2,7 as systemd has it: one bit for each, the lowest first."""
    mask = sum(1 << number for number in cpu_list(field, numbers))
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _slice_path(slice_: str) -> str:
    """Where a slice is: a-b.slice is in a.slice, -.slice is the root (systemd.slice(5))."""
    name = slice_.removesuffix(_SLICE)
    if name == slice_ or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, "not the name of a slice", slice_)
    if name == "-":
        return ""
    parts = name.split("-")
    if not all(parts):
        raise OSError(errno.EINVAL, "not the name of a slice", slice_)
    return "".join(f"/{'-'.join(parts[: i + 1])}{_SLICE}" for i in range(len(parts)))
