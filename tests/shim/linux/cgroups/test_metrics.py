"""The messages against the kernel's files, and against formats that this machine has not."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from oci.linux import CPU, Memory, Pids, Resources
from proto import cgroups_v1_pb2, cgroups_v2_pb2
from shim.linux.cgroups import Cgroup, Hierarchy, hierarchies
from shim.linux.cgroups.files import read
from shim.linux.cgroups.metrics import metrics
from shim.linux.cgroups.metrics_v1 import read_metrics as read_v1
from shim.linux.cgroups.metrics_v2 import read_metrics as read_v2
from shim.linux.cgroups.numbers import UNLIMITED
from shim.linux.clone import Child, wait

Start = Callable[..., Child]
V1 = [tree for tree in hierarchies() if not tree.is_v2]
V2 = [tree for tree in hierarchies() if tree.is_v2]
MB = 1 << 20


def pairs(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in map(str.split, text.splitlines())}


@pytest.fixture
def frozen(name: str, start: Start) -> Cgroup:
    """A cgroup whose numbers stand still, with a process that has used something of everything."""
    cgroup = Cgroup.for_path(f"/{name}/container")
    cgroup.create()
    cgroup.limit(
        Resources(
            memory=Memory(limit=64 * MB), pids=Pids(limit=7), cpu=CPU(quota=20000, period=40000)
        )
    )
    ready, told = os.pipe()

    def entry() -> None:
        cgroup.attach()
        memory = mmap.mmap(-1, 8 * MB)
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1
        for number in range(3_000_000):
            number + 1
        os.write(told, b"!")
        signal.pause()
        memory.close()

    start(entry)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    cgroup.freeze()
    return cgroup


@pytest.fixture(autouse=True)
def thawed(name: str, start: Start) -> object:
    yield
    Cgroup.for_path(f"/{name}/container").kill()


@pytest.mark.skipif(
    not {"cpu", "cpuacct", "memory", "pids"} <= {c for tree in V1 for c in tree.controllers},
    reason="no cgroup v1",
)
def test_v1(frozen: Cgroup) -> None:
    message = metrics(frozen)
    assert isinstance(message, cgroups_v1_pb2.Metrics)

    def file(controller: str, name: str) -> str:
        return read(f"{frozen.directory(controller)}/{name}")

    assert (message.pids.current, message.pids.limit) == (1, 7)
    usage = message.cpu.usage
    assert usage.total == int(file("cpuacct", "cpuacct.usage")) > 10_000_000
    assert list(usage.per_cpu) == [int(n) for n in file("cpuacct", "cpuacct.usage_percpu").split()]
    ticks = pairs(file("cpuacct", "cpuacct.stat"))
    assert (usage.user, usage.kernel) == (ticks["user"] * 10**7, ticks["system"] * 10**7)
    throttling = pairs(file("cpu", "cpu.stat"))
    assert message.cpu.throttling.periods == throttling["nr_periods"] > 0
    assert message.cpu.throttling.throttled_periods == throttling["nr_throttled"]
    assert message.cpu.throttling.throttled_time == throttling["throttled_time"]
    stat = pairs(file("memory", "memory.stat"))
    memory = message.memory
    assert memory.cache == stat["cache"] >= 8 * MB
    assert memory.total_active_anon == stat["total_active_anon"]
    assert memory.total_inactive_file == stat["total_inactive_file"]
    assert memory.pg_fault == stat["pgfault"] > 0
    assert memory.total_pg_pg_in == stat["total_pgpgin"] > 0
    assert memory.hierarchical_memory_limit == 64 * MB
    assert memory.hierarchical_swap_limit == stat["hierarchical_memsw_limit"]
    set_fields = {field.name for field, _ in memory.ListFields()}
    assert {"usage", "swap", "kernel", "kernel_tcp"} <= set_fields
    for entry, kind in ((memory.usage, ""), (memory.swap, "memsw."), (memory.kernel, "kmem.")):
        assert entry.usage == int(file("memory", f"memory.{kind}usage_in_bytes")) > 0
        assert entry.max == int(file("memory", f"memory.{kind}max_usage_in_bytes"))
        assert entry.limit == int(file("memory", f"memory.{kind}limit_in_bytes"))
        assert entry.failcnt == 0
    assert message.HasField("memory_oom_control")
    assert message.HasField("blkio")


def test_of_every_version(name: str, trees: list[Hierarchy], start: Start) -> None:
    cgroup = Cgroup.for_path(f"/{name}/container", trees)
    cgroup.create()
    cgroup.attach(start().pid)
    message = metrics(cgroup)
    version = "v2" if cgroup.unified else "v1"
    assert message.DESCRIPTOR.full_name == f"io.containerd.cgroups.{version}.Metrics"
    assert message.SerializeToString()


def test_gone(name: str, trees: list[Hierarchy]) -> None:
    with pytest.raises(FileNotFoundError):
        metrics(Cgroup.for_path(f"/{name}/none", trees))


@pytest.mark.skipif(not V2, reason="no cgroup v2")
def test_v2(name: str, start: Start) -> None:
    cgroup = Cgroup.for_path(f"/{name}/container", V2)
    cgroup.create()

    def entry() -> None:
        cgroup.attach()
        for number in range(300_000):
            number + 1

    wait(start(entry).pidfd)
    message = metrics(cgroup)
    assert isinstance(message, cgroups_v2_pb2.Metrics)
    stat = pairs(read(f"{cgroup.directory('')}/cpu.stat"))
    assert message.cpu.usage_usec == stat["usage_usec"] > 1000
    assert message.cpu.user_usec == stat["user_usec"]
    assert message.cpu.system_usec == stat["system_usec"]
    sections = {field.name for field, _ in message.ListFields()}
    assert {"pids", "cpu", "memory", "rdma", "io"} <= sections


@pytest.mark.skipif(bool(V1), reason="not cgroup v2 alone")
def test_v2_alone(frozen: Cgroup) -> None:
    message = metrics(frozen)
    assert isinstance(message, cgroups_v2_pb2.Metrics)

    def file(name: str) -> str:
        return read(f"{frozen.directory('')}/{name}")

    stat = pairs(file("memory.stat"))
    assert (message.pids.current, message.pids.limit) == (1, 7)
    assert message.memory.usage == int(file("memory.current")) > 8 * MB
    assert message.memory.usage_limit == 64 * MB
    assert message.memory.max_usage == int(file("memory.peak"))
    assert message.memory.shmem == stat["shmem"] >= 8 * MB
    assert message.memory.pgfault == stat["pgfault"]
    assert message.memory.swap_limit == UNLIMITED
    assert message.memory_events.oom_kill == 0
    assert message.HasField("memory_events")
    assert message.cpu.nr_periods > 0


def test_formats_of_v2(tmp_path: Path) -> None:
    """From the examples of the kernel's documentation."""
    for name, text in {
        "cpu.stat": "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnew_thing 7\nnr_bursts 2\n",
        "cpu.pressure": "some avg10=0.12 avg60=0.50 avg300=1.00 total=63\n",
        "memory.stat": "anon 5\nfile 6\nworkingset_refault_file 8\nthp_fault_alloc 3\nzswap 1\n",
        "memory.current": "100\n",
        "memory.max": "max\n",
        "memory.swap.max": "7\n",
        "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n",
        "io.stat": "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n"
        "8:0 rbytes=1 cost.usage=5\n253:0 \n",
        "pids.current": "3\n",
        "pids.max": "max\n",
        "rdma.current": "mlx4_0 hca_handle=1 hca_object=20\nocrdma1 hca_handle=1 hca_object=23\n",
        "rdma.max": "mlx4_0 hca_handle=2 hca_object=max\nocrdma1 hca_handle=3 hca_object=max\n",
    }.items():
        (tmp_path / name).write_text(text)
    message = read_v2(str(tmp_path))
    assert (message.pids.current, message.pids.limit) == (3, UNLIMITED)
    cpu = message.cpu
    assert (cpu.usage_usec, cpu.user_usec, cpu.system_usec, cpu.nr_bursts) == (9, 5, 4, 2)
    some = cpu.psi.some
    assert (some.avg10, some.avg60, some.avg300, some.total) == (0.12, 0.5, 1.0, 63)
    assert not cpu.psi.HasField("full")
    memory = message.memory
    assert (memory.anon, memory.file, memory.workingset_refault_file) == (5, 6, 8)
    assert (memory.thp_fault_alloc, memory.usage, memory.usage_limit) == (3, 100, UNLIMITED)
    assert (memory.swap_limit, memory.max_usage) == (7, 0)
    events = message.memory_events
    assert (events.high, events.max, events.oom, events.oom_kill) == (1, 2, 3, 4)
    assert events.oom_group_kill == 5
    assert [(e.major, e.minor, e.rbytes, e.wbytes, e.rios, e.wios) for e in message.io.usage] == [
        (8, 16, 1459200, 314773504, 192, 353),
        (8, 0, 1, 0, 0, 0),
        (253, 0, 0, 0, 0, 0),
    ]
    current = [(e.device, e.hca_handles, e.hca_objects) for e in message.rdma.current]
    assert current == [("mlx4_0", 1, 20), ("ocrdma1", 1, 23)]
    assert message.rdma.limit[0].hca_objects == 2**32 - 1


def test_formats_of_v1(tmp_path: Path) -> None:
    for name, text in {
        "blkio.throttle.io_service_bytes": "8:0 Read 1282048\n8:0 Write 2195456\nTotal 3477504\n",
        "blkio.throttle.io_serviced_recursive": "8:0 Read 124\nTotal 124\n",
        "hugetlb.2MB.usage_in_bytes": "2097152\n",
        "hugetlb.2MB.max_usage_in_bytes": "4194304\n",
        "hugetlb.2MB.failcnt": "1\n",
        "memory.stat": "cache 5\nswap 9\nshmem 7\n",
        "memory.usage_in_bytes": "11\n",
        "memory.limit_in_bytes": "12\n",
    }.items():
        (tmp_path / name).write_text(text)
    message = read_v1(
        lambda name: str(tmp_path) if name in ("blkio", "hugetlb", "memory") else None
    )
    (read_, written) = message.blkio.io_service_bytes_recursive
    assert (read_.op, read_.major, read_.minor, read_.value) == ("Read", 8, 0, 1282048)
    assert (written.op, written.value) == ("Write", 2195456)
    assert [entry.value for entry in message.blkio.io_serviced_recursive] == [124]
    assert (message.memory.cache, message.memory.swap.usage) == (5, 0)
    assert (message.memory.usage.usage, message.memory.usage.limit) == (11, 12)
    assert message.HasField("cpu")
    assert not message.HasField("pids")
    if os.path.exists("/sys/kernel/mm/hugepages/hugepages-2048kB"):
        (page,) = (entry for entry in message.hugetlb if entry.pagesize == "2MB")
        assert (page.usage, page.max, page.failcnt) == (2097152, 4194304, 1)
