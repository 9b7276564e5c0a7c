"""Conversions, and files that stand in for those of controllers that this machine has on v1.

What the real ones say is in test_limits, which a machine with v2 alone runs, too.
"""

from __future__ import annotations

import errno

import pytest

from oci.linux import (
    CPU,
    BlockIO,
    HugepageLimit,
    InterfacePriority,
    Memory,
    Network,
    Pids,
    Rdma,
    Resources,
    ThrottleDevice,
    WeightDevice,
)
from shim.linux.cgroups.files import Directory
from shim.linux.cgroups.limits_v2 import (
    CONTROLLERS,
    cpu_weight,
    io_weight,
    refuse_v1_only,
    swap_limit,
    unified,
)


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(1, 1), (2, 1), (256, 35), (512, 59), (1024, 100), (2048, 174), (10**6, 10000)],
)
def test_cpu_weight(shares: int, weight: int) -> None:
    assert cpu_weight(shares) == weight


def test_cpu_weight_grows() -> None:
    weights = [cpu_weight(shares) for shares in range(2, 2**18 + 1, 97)]
    assert weights == sorted(weights)
    assert cpu_weight(2**18) == 10000


@pytest.mark.parametrize(("weight", "converted"), [(10, 1), (500, 4950), (1000, 10000)])
def test_io_weight(weight: int, converted: int) -> None:
    assert io_weight(weight) == converted


@pytest.mark.parametrize(
    ("both", "memory", "current", "swap"),
    [
        (None, 5, "9", None),
        (0, 5, "9", None),
        (None, -1, "9", "max"),
        (-1, 5, "9", "max"),
        (-1, None, "9", "max"),
        (8, 5, "9", "3"),
        (5, 5, "9", "0"),
        (12, None, "9", "3"),
        (12, None, "max", "12"),
        (12, -1, "9", "12"),
    ],
)
def test_swap_is_what_both_leave(
    both: int | None, memory: int | None, current: str, swap: str | None
) -> None:
    assert swap_limit(both, memory, lambda: current) == swap


@pytest.mark.parametrize("memory", [9, None])
def test_swap_below_memory(memory: int | None) -> None:
    with pytest.raises(OSError, match=r"linux\.resources\.memory\.swap: 8: below") as e:
        swap_limit(8, memory, lambda: "9")
    assert e.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    "resources",
    [
        Resources(cpu=CPU(realtime_runtime=1)),
        Resources(cpu=CPU(realtime_period=1)),
        Resources(memory=Memory(swappiness=0)),
        Resources(memory=Memory(disable_oom_killer=True)),
        Resources(block_io=BlockIO(leaf_weight=10)),
        Resources(block_io=BlockIO(weight_device=(WeightDevice(leaf_weight=10),))),
        Resources(network=Network(class_id=1)),
        Resources(network=Network(priorities=(InterfacePriority(name="lo"),))),
    ],
)
def test_no_such_thing_in_v2(resources: Resources) -> None:
    with pytest.raises(OSError, match="cgroup v2 has no such limit") as e:
        refuse_v1_only(resources)
    assert e.value.errno == errno.EOPNOTSUPP


def test_nobody_minds_kernel_memory() -> None:
    refuse_v1_only(Resources(memory=Memory(kernel=1, kernel_tcp=1, disable_oom_killer=False)))


FILES = (
    "cpu.weight cpu.idle cpu.max.burst cpuset.cpus cpuset.mems memory.swap.max memory.low"
    " pids.max io.max io.weight hugetlb.2MB.max hugetlb.2MB.rsvd.max hugetlb.1GB.max"
    " rdma.max memory.high"
)


class Files(Directory):
    """A cgroup whose files take anything."""

    def __init__(self) -> None:
        self.path = "/cgroup"
        self.content = dict.fromkeys(FILES.split(), "")
        self.content |= {
            "cpu.max": "max 100000",
            "memory.max": "max",
            "memory.current": "4096",
            "cgroup.controllers": "cpu memory",
        }
        self.written: list[tuple[str, str]] = []

    def has(self, file: str) -> bool:
        return file in self.content

    def read(self, file: str) -> str:
        return self.content[file]

    def set(self, field: str, file: str, *values: str) -> None:
        if file not in self.content:
            raise FileNotFoundError(errno.ENOENT, f"linux.resources.{field}", file)
        for value in values:
            self.written.append((file, value))
            self.content[file] = value

    def limit(self, resources: Resources) -> list[tuple[str, str]]:
        """Set them; returns what has been written."""
        self.written.clear()
        for set_in_v2 in CONTROLLERS.values():
            set_in_v2(self, resources)
        unified(self, resources)
        return self.written


@pytest.fixture
def files() -> Files:
    return Files()


def test_nothing_is_written_unless_given(files: Files) -> None:
    assert files.limit(Resources()) == []


def test_cpu(files: Files) -> None:
    cpu = CPU(shares=1024, quota=5000, period=20000, burst=7, idle=0, cpus="0-1", mems="0")
    assert files.limit(Resources(cpu=cpu)) == [
        ("cpu.weight", "100"),
        ("cpu.idle", "0"),
        ("cpu.max", "5000 20000"),
        ("cpu.max.burst", "7"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
    ]


def test_bandwidth_in_part(files: Files) -> None:
    assert files.limit(Resources(cpu=CPU(period=50000))) == [("cpu.max", "max 50000")]
    assert files.limit(Resources(cpu=CPU(quota=7000))) == [("cpu.max", "7000")]
    files.content["cpu.max"] = "7000 50000"
    assert files.limit(Resources(cpu=CPU(period=90000))) == [("cpu.max", "7000 90000")]
    assert files.limit(Resources(cpu=CPU(quota=-1))) == [("cpu.max", "max")]


def test_memory(files: Files) -> None:
    memory = Memory(limit=8192, swap=10000, reservation=4096)
    assert files.limit(Resources(memory=memory)) == [
        ("memory.swap.max", "1808"),
        ("memory.max", "8192"),
        ("memory.low", "4096"),
    ]
    assert files.limit(Resources(memory=Memory(limit=-1, reservation=-1))) == [
        ("memory.swap.max", "max"),
        ("memory.max", "max"),
        ("memory.low", "max"),
    ]


def test_memory_without_swap(files: Files) -> None:
    del files.content["memory.swap.max"]
    for swap in (8192, -1):
        memory = Memory(limit=8192, swap=swap)
        assert files.limit(Resources(memory=memory)) == [("memory.max", "8192")]
    with pytest.raises(FileNotFoundError):
        files.limit(Resources(memory=Memory(limit=8192, swap=8193)))


def test_memory_that_is_in_use(files: Files) -> None:
    for memory in (Memory(limit=4096), Memory(limit=8192, swap=4000)):
        files.limit(Resources(memory=Memory(limit=memory.limit)))
        checked = Memory(limit=memory.limit, swap=memory.swap, check_before_update=True)
        with pytest.raises(OSError, match="4096 are in use") as e:
            files.limit(Resources(memory=checked))
        assert e.value.errno == errno.EBUSY
    assert files.limit(Resources(memory=Memory(limit=4097, check_before_update=True)))


def test_io(files: Files) -> None:
    device = ThrottleDevice(major=8, minor=1, rate=5)
    block = BlockIO(
        weight=1000,
        weight_device=(WeightDevice(major=8, minor=0, weight=10),),
        throttle_read_bps_device=(device, ThrottleDevice(major=8, minor=2)),
        throttle_write_bps_device=(device,),
        throttle_read_iops_device=(device,),
        throttle_write_iops_device=(device,),
    )
    throttled = [
        ("io.max", "8:1 rbps=5"),
        ("io.max", "8:2 rbps=max"),
        ("io.max", "8:1 wbps=5"),
        ("io.max", "8:1 riops=5"),
        ("io.max", "8:1 wiops=5"),
    ]
    converted = [("io.weight", "10000"), ("io.weight", "8:0 1")]
    assert files.limit(Resources(block_io=block)) == converted + throttled
    files.content["io.bfq.weight"] = ""
    as_it_is = [("io.bfq.weight", "1000"), ("io.bfq.weight", "8:0 10")]
    assert files.limit(Resources(block_io=block)) == as_it_is + throttled


def test_the_rest(files: Files) -> None:
    resources = Resources(
        pids=Pids(limit=9),
        hugepage_limits=(
            HugepageLimit(page_size="2MB", limit=4),
            HugepageLimit(page_size="1GB", limit=5),
        ),
        rdma={"mlx5_0": Rdma(hca_handles=0, hca_objects=3), "mlx5_1": Rdma(hca_objects=4)},
        unified={"memory.high": "5\n", "io.max": "8:0 rbps=1\n8:1 rbps=2"},
    )
    assert files.limit(resources) == [
        ("pids.max", "9"),
        ("hugetlb.2MB.max", "4"),
        ("hugetlb.2MB.rsvd.max", "4"),
        ("hugetlb.1GB.max", "5"),
        ("rdma.max", "mlx5_0 hca_handle=0 hca_object=3"),
        ("rdma.max", "mlx5_1 hca_object=4"),
        ("memory.high", "5"),
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:1 rbps=2"),
    ]


@pytest.mark.parametrize(
    ("file", "number", "reason"),
    [
        ("../memory.high", errno.EINVAL, "not a file such as"),
        ("a/b.c", errno.EINVAL, "not a file such as"),
        ("..", errno.EINVAL, "not a file such as"),
        (".x", errno.EINVAL, "not a file such as"),
        ("memory.high\n", errno.EINVAL, "not a file such as"),
        ("memory", errno.EINVAL, "not a file such as"),
        ("memory.high\0", errno.EINVAL, "not a file such as"),
        ("hugetlb.4MB.max", errno.ENOENT, "the cgroup has no hugetlb controller"),
        ("memory.new", errno.ENOENT, "unified.memory.new"),
    ],
)
def test_unified_file_that_is_none(files: Files, file: str, number: int, reason: str) -> None:
    with pytest.raises(OSError, match=reason) as e:
        files.limit(Resources(unified={file: "1"}))
    assert e.value.errno == number
    assert files.written == []
