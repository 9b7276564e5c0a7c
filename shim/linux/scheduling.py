"""When and where a process runs: CPU and I/O scheduling, affinity, NUMA policy (library).

Applies to the calling process. See sched(7), sched_setattr(2), ioprio_set(2), set_mempolicy(2).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping
from typing import Final

from oci.decoding import SpecError
from oci.linux import MemoryPolicy
from oci.runtime import IOPriority, Scheduler
from shim.linux.libc import NUMBERS, fail, system_call

_POLICIES: Final = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
_NICE: Final = ("SCHED_OTHER", "SCHED_BATCH")
_REALTIME: Final = ("SCHED_FIFO", "SCHED_RR")
_SCHEDULER_FLAGS: Final = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
# struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, and the two
# clamps that the runtime-spec has flags but no values for.
_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQII")

_IO_CLASSES: Final = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_IOPRIO_WHO_PROCESS: Final = 1
_IO_CLASS_SHIFT: Final = 13
_IO_LEVELS: Final = 8

MEMORY_MODES: Final = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS: Final = {
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
}
_MAX_LISTED: Final = 1 << 14  # CPUs or nodes, more than any kernel is built for

_sched_setattr = system_call(ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_ioprio_set = system_call(ctypes.c_int, ctypes.c_int, ctypes.c_int)
_set_mempolicy = system_call(ctypes.c_int, ctypes.c_char_p, ctypes.c_ulong)


def set_scheduler(scheduler: Scheduler) -> None:
    """Apply `process.scheduler`. Raises SpecError naming the field; OSError: EPERM, EBUSY."""
    where = "process.scheduler"
    policy = _number(_POLICIES, scheduler.policy, f"{where}.policy")
    if scheduler.policy in _NICE and not -20 <= scheduler.nice <= 19:
        raise SpecError(f"{where}.nice: {scheduler.nice} is not in -20..19")
    if scheduler.priority and scheduler.policy not in _REALTIME:
        raise SpecError(f"{where}.priority: {scheduler.policy} has none")
    times = (scheduler.runtime, scheduler.deadline, scheduler.period)
    if any(times) and scheduler.policy != "SCHED_DEADLINE":
        raise SpecError(f"{where}.runtime, deadline, period: {scheduler.policy} has none")
    flags = 0
    for flag in scheduler.flags:
        flags |= _number(_SCHEDULER_FLAGS, flag, f"{where}.flags")
    try:
        attributes = _SCHED_ATTR.pack(
            _SCHED_ATTR.size, policy, flags, scheduler.nice, scheduler.priority, *times, 0, 0
        )
    except struct.error:
        raise SpecError(f"{where}: a number is out of range") from None
    if _sched_setattr(NUMBERS["sched_setattr"], 0, attributes, 0) < 0:
        fail("sched_setattr", where)


def set_io_priority(priority: IOPriority) -> None:
    """Apply `process.ioPriority`. Raises SpecError naming the field; OSError: EPERM."""
    where = "process.ioPriority"
    number = _number(_IO_CLASSES, priority.class_, f"{where}.class")
    if not 0 <= priority.priority < _IO_LEVELS:
        raise SpecError(f"{where}.priority: {priority.priority} is not in 0..{_IO_LEVELS - 1}")
    value = number << _IO_CLASS_SHIFT | priority.priority
    if _ioprio_set(NUMBERS["ioprio_set"], _IOPRIO_WHO_PROCESS, 0, value) < 0:
        fail("ioprio_set", where)


def set_affinity(cpus: str, field: str = "process.execCPUAffinity") -> None:
    """Run on these CPUs only, a list such as `0-3,8`. Raises SpecError, OSError with the field."""
    try:
        os.sched_setaffinity(0, parse_list(cpus, field))
    except OSError as e:
        raise OSError(e.errno, f"CPUs {cpus}: {e.strerror}", field) from None


def set_memory_policy(policy: MemoryPolicy) -> None:
    """Apply `linux.memoryPolicy`. Raises SpecError naming the field; OSError."""
    where = "linux.memoryPolicy"
    mode = _number(MEMORY_MODES, policy.mode, f"{where}.mode")
    for flag in policy.flags:
        mode |= _number(MEMORY_FLAGS, flag, f"{where}.flags")
    nodes = parse_list(policy.nodes, f"{where}.nodes") if policy.nodes else set()
    mask = sum(1 << node for node in nodes)
    size = (mask.bit_length() // 64 + 1) * 8
    # The kernel takes one bit less than it is told there are.
    if _set_mempolicy(NUMBERS["set_mempolicy"], mode, mask.to_bytes(size, "little"), size * 8) < 0:
        fail("set_mempolicy", where)


def parse_list(text: str, field: str) -> set[int]:
    """The numbers of a list such as `0-3,8` (cpuset(7), "List format"). Raises SpecError."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise SpecError(f"{field}: {text!r} is no list of numbers")
        begin, end = int(first), int(last or first)
        if not begin <= end < _MAX_LISTED:
            raise SpecError(f"{field}: {part.strip()!r} is no range")
        numbers.update(range(begin, end + 1))
    return numbers


def _number(names: Mapping[str, int], name: str, where: str) -> int:
    try:
        return names[name]
    except KeyError:
        raise SpecError(f"{where}: unknown value {name!r}") from None
