from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from oci.decoding import SpecError
from oci.linux import MemoryPolicy, Personality
from oci.runtime import IOPriority, Scheduler
from shim.linux.libc import LIBC
from shim.linux.personality import set_personality
from shim.linux.scheduling import (
    parse_list,
    set_affinity,
    set_io_priority,
    set_memory_policy,
    set_scheduler,
)

Alive = Callable[..., AbstractContextManager[int]]
IOPRIO_GET = {"x86_64": 252, "aarch64": 31}[os.uname().machine]


def policy_of(pid: int) -> tuple[int, int, int]:
    """Nice value, real-time priority and policy, from /proc/PID/stat (proc_pid_stat(5))."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[16]), int(fields[37]), int(fields[38])


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (Scheduler(policy="SCHED_BATCH", nice=7), (7, 0, 3)),
        (Scheduler(policy="SCHED_OTHER", nice=19), (19, 0, 0)),
        (Scheduler(policy="SCHED_OTHER", nice=-5), (-5, 0, 0)),
        (Scheduler(policy="SCHED_IDLE"), (None, 0, 5)),
        (Scheduler(policy="SCHED_FIFO", priority=3), (None, 3, 1)),
        (
            Scheduler(policy="SCHED_RR", priority=9, flags=("SCHED_FLAG_RESET_ON_FORK",)),
            (None, 9, 2),
        ),
        (
            Scheduler(policy="SCHED_DEADLINE", runtime=10**6, deadline=10**7, period=10**7),
            (None, 0, 6),
        ),
    ],
)
def test_scheduler(
    scheduler: Scheduler, expected: tuple[int | None, int, int], alive: Alive
) -> None:
    nice, *rest = expected
    if nice is None:  # it has no meaning there, and stays
        nice = os.getpriority(os.PRIO_PROCESS, 0)
    with alive(lambda: set_scheduler(scheduler)) as pid:
        assert policy_of(pid) == (nice, *rest)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (Scheduler(policy="SCHED_FAST"), "process.scheduler.policy: unknown value 'SCHED_FAST'"),
        (
            Scheduler(policy="SCHED_OTHER", flags=("FLAG",)),
            "process.scheduler.flags: unknown value 'FLAG'",
        ),
        (Scheduler(policy="SCHED_BATCH", nice=20), "process.scheduler.nice: 20 is not in -20..19"),
        (
            Scheduler(policy="SCHED_OTHER", priority=1),
            "process.scheduler.priority: SCHED_OTHER has none",
        ),
        (
            Scheduler(policy="SCHED_FIFO", runtime=1),
            "process.scheduler.runtime, deadline, period: SCHED_FIFO has none",
        ),
    ],
)
def test_scheduler_that_is_none(scheduler: Scheduler, message: str) -> None:
    with pytest.raises(SpecError) as e:
        set_scheduler(scheduler)
    assert str(e.value) == message


def test_what_the_kernel_refuses_names_the_field(in_child: Callable[..., None]) -> None:
    def entry() -> None:
        with pytest.raises(OSError) as e:
            set_scheduler(Scheduler(policy="SCHED_FIFO", priority=1000))
        assert e.value.filename == "process.scheduler"

    in_child(entry)


@pytest.mark.parametrize(
    ("class_", "level"), [("IOPRIO_CLASS_RT", 2), ("IOPRIO_CLASS_BE", 7), ("IOPRIO_CLASS_IDLE", 0)]
)
def test_io_priority(class_: str, level: int, alive: Alive) -> None:
    with alive(lambda: set_io_priority(IOPriority(class_=class_, priority=level))) as pid:
        found = LIBC.syscall(IOPRIO_GET, 1, pid)
    classes = ["IOPRIO_CLASS_NONE", "IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"]
    assert (classes[found >> 13], found & 7) == (class_, level)


def test_io_priority_that_is_none() -> None:
    with pytest.raises(SpecError, match=r"process.ioPriority.class: unknown value 'RT'"):
        set_io_priority(IOPriority(class_="RT"))
    with pytest.raises(SpecError, match=r"process.ioPriority.priority: 8 is not in 0..7"):
        set_io_priority(IOPriority(class_="IOPRIO_CLASS_BE", priority=8))


def test_affinity(alive: Alive) -> None:
    last = max(os.sched_getaffinity(0))
    with alive(lambda: set_affinity(str(last))) as pid:
        assert os.sched_getaffinity(pid) == {last}
    with pytest.raises(OSError) as e:
        set_affinity("9999", "process.execCPUAffinity.initial")
    assert e.value.filename == "process.execCPUAffinity.initial"


def test_lists() -> None:
    assert parse_list("0-3,8, 10-10", "f") == {0, 1, 2, 3, 8, 10}
    for bad in ("", "a", "1-", "-1", "3-1", "1,,2", "99999999"):
        with pytest.raises(SpecError, match="f: "):
            parse_list(bad, "f")


def test_memory_policy(alive: Alive) -> None:
    def bind() -> None:
        set_memory_policy(MemoryPolicy(mode="MPOL_BIND", nodes="0", flags=("MPOL_F_STATIC_NODES",)))

    with alive(bind) as pid, open(f"/proc/{pid}/numa_maps") as file:
        assert " bind=static:0 " in file.readline()
    with pytest.raises(SpecError, match=r"linux.memoryPolicy.mode: unknown value 'BIND'"):
        set_memory_policy(MemoryPolicy(mode="BIND"))
    with pytest.raises(OSError) as e:
        set_memory_policy(MemoryPolicy(mode="MPOL_BIND"))
    assert e.value.filename == "linux.memoryPolicy"


def test_personality(alive: Alive) -> None:
    with (
        alive(lambda: set_personality(Personality(domain="LINUX32"))) as pid,
        open(f"/proc/{pid}/personality") as file,
    ):
        assert file.read() == "00000008\n"
    with pytest.raises(SpecError, match=r"linux.personality.domain: unknown value 'BSD'"):
        set_personality(Personality(domain="BSD"))
    with pytest.raises(SpecError, match=r"linux.personality.flags: unknown value 'X'"):
        set_personality(Personality(domain="LINUX", flags=("X",)))
