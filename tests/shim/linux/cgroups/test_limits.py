"""Limits in the kernel's own files, and what becomes of a process that tests them."""

from __future__ import annotations

import errno
import mmap
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from oci.linux import (
    CPU,
    BlockIO,
    DeviceRule,
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
from shim.linux.cgroups import Cgroup, Hierarchy, hierarchies
from shim.linux.cgroups.files import Directory, Setting, read
from shim.linux.cgroups.oom import OomWatch
from shim.linux.cgroups.trees import v2_controllers
from shim.linux.clone import Child, wait

Start = Callable[..., Child]

HERE = {name for tree in hierarchies() for name in tree.controllers}
UNIFIED = not HERE
if UNIFIED:
    HERE = {
        {"io": "blkio"}.get(name, name)
        for tree in hierarchies()
        for name in v2_controllers(tree.mount)
    }


def needs(controller: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(controller not in HERE, reason=f"no {controller} controller")


only_v1 = pytest.mark.skipif(UNIFIED, reason="no cgroup v1")
only_v2 = pytest.mark.skipif(not UNIFIED, reason="not cgroup v2 alone")


@pytest.fixture
def cgroup(name: str) -> Cgroup:
    cgroup = Cgroup.for_path(f"/{name}/container")
    cgroup.create()
    return cgroup


def show(cgroup: Cgroup, controller: str, v1: str, v2: str = "") -> str:
    """What a file holds: `v1` of a controller, or `v2` where there is that alone."""
    path = cgroup.directory("" if cgroup.unified else controller)
    assert path is not None
    return read(f"{path}/{v2 if cgroup.unified else v1}")


# CPU


@needs("cpu")
def test_cpu(cgroup: Cgroup) -> None:
    cpu = CPU(shares=512, quota=33333, period=50000, burst=1000)
    cgroup.limit(Resources(cpu=cpu))
    assert show(cgroup, "cpu", "cpu.shares", "cpu.weight") == ("59" if cgroup.unified else "512")
    if cgroup.unified:
        assert show(cgroup, "cpu", "", "cpu.max") == "33333 50000"
    else:
        assert show(cgroup, "cpu", "cpu.cfs_quota_us") == "33333"
        assert show(cgroup, "cpu", "cpu.cfs_period_us") == "50000"
    assert show(cgroup, "cpu", "cpu.cfs_burst_us", "cpu.max.burst") == "1000"


@needs("cpu")
def test_bandwidth_may_change_in_any_direction(cgroup: Cgroup, name: str) -> None:
    """A child's share must not be more than its parent's, in no step on the way."""

    def bandwidth() -> list[int]:
        if cgroup.unified:
            return [int(word) for word in show(cgroup, "cpu", "", "cpu.max").split()]
        return [
            int(show(cgroup, "cpu", file)) for file in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        ]

    if not cgroup.unified:
        half = Resources(cpu=CPU(quota=50000, period=100000))
        Cgroup.for_path(f"/{name}").limit(half, update=True)
    for quota, period in ((50000, 100000), (5000, 10000), (500000, 1000000), (2000, 4000)):
        cgroup.limit(Resources(cpu=CPU(quota=quota, period=period)), update=True)
        assert bandwidth() == [quota, period]
    cgroup.limit(Resources(cpu=CPU(quota=1500)), update=True)
    assert bandwidth() == [1500, 4000]
    cgroup.limit(Resources(cpu=CPU(period=8000)), update=True)
    assert bandwidth() == [1500, 8000]
    if not cgroup.unified:
        with pytest.raises(OSError, match=r"linux\.resources\.cpu\.quota: write '90000'") as e:
            cgroup.limit(Resources(cpu=CPU(quota=90000, period=100000)), update=True)
        assert e.value.errno == errno.EINVAL


@needs("cpu")
def test_idle(cgroup: Cgroup) -> None:
    cgroup.limit(Resources(cpu=CPU(shares=2048, idle=1)))
    assert show(cgroup, "cpu", "cpu.idle", "cpu.idle") == "1"
    cgroup.limit(Resources(cpu=CPU(shares=2048, idle=0)), update=True)
    assert show(cgroup, "cpu", "cpu.idle", "cpu.idle") == "0"
    assert show(cgroup, "cpu", "cpu.shares", "cpu.weight") == ("174" if UNIFIED else "2048")


@needs("cpu")
@only_v1
@pytest.mark.parametrize("shares", [1, 2**18 + 1])
def test_shares_that_would_be_others(cgroup: Cgroup, shares: int) -> None:
    with pytest.raises(OSError, match=r"cpu\.shares: \d+: not from 2 to 262144"):
        cgroup.limit(Resources(cpu=CPU(shares=shares)))


@needs("cpuset")
def test_cpuset(cgroup: Cgroup, in_child: Callable[..., None]) -> None:
    cgroup.limit(Resources(cpu=CPU(cpus="0", mems="0")))
    assert show(cgroup, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"

    def entry() -> None:
        cgroup.attach()
        assert os.sched_getaffinity(0) == {0}

    in_child(entry)


@needs("cpuset")
@pytest.mark.parametrize("cpus", ["x", "99999", "0 \n-"])
def test_refusal_names_field_file_and_value(cgroup: Cgroup, cpus: str) -> None:
    with pytest.raises(OSError) as e:
        cgroup.limit(Resources(cpu=CPU(cpus=cpus)))
    assert f"linux.resources.cpu.cpus: write {cpus!r}: " in str(e.value.strerror)
    assert e.value.filename.endswith("/container/cpuset.cpus")
    assert "\n" not in str(e.value)


# Memory


def memory_limits(cgroup: Cgroup) -> tuple[str, str]:
    limit = show(cgroup, "memory", "memory.limit_in_bytes", "memory.max")
    try:
        return limit, show(cgroup, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
    except FileNotFoundError:
        pytest.skip("no swap accounting")


MB = 1 << 20


@needs("memory")
def test_memory_may_change_in_any_direction(cgroup: Cgroup) -> None:
    for limit, swap in ((64, 96), (128, 128), (256, 512), (32, 48), (16, 16)):
        memory = Memory(limit=limit * MB, swap=swap * MB)
        cgroup.limit(Resources(memory=memory), update=True)
        both = swap - limit if UNIFIED else swap
        assert memory_limits(cgroup) == (str(limit * MB), str(both * MB))
    cgroup.limit(Resources(memory=Memory(swap=24 * MB)), update=True)
    assert memory_limits(cgroup) == (str(16 * MB), str((8 if UNIFIED else 24) * MB))
    cgroup.limit(Resources(memory=Memory(limit=-1)), update=True)
    none = "max" if UNIFIED else "9223372036854771712"
    assert memory_limits(cgroup) == (none, none)
    with pytest.raises(OSError, match=r"linux\.resources\.memory\.swap"):
        cgroup.limit(Resources(memory=Memory(limit=16 * MB, swap=8 * MB)), update=True)


@needs("memory")
def test_memory(cgroup: Cgroup) -> None:
    cgroup.limit(Resources(memory=Memory(reservation=8 * MB, kernel=MB, kernel_tcp=MB)))
    assert show(cgroup, "memory", "memory.soft_limit_in_bytes", "memory.low") == str(8 * MB)
    assert "max" in memory_limits(cgroup)[0] or int(memory_limits(cgroup)[0]) > 1 << 60


@needs("memory")
@only_v1
def test_memory_of_v1(cgroup: Cgroup) -> None:
    cgroup.limit(Resources(memory=Memory(swappiness=7, disable_oom_killer=True)))
    assert show(cgroup, "memory", "memory.swappiness") == "7"
    assert "oom_kill_disable 1" in show(cgroup, "memory", "memory.oom_control")
    with pytest.raises(OSError, match="not from 0 to 100"):
        cgroup.limit(Resources(memory=Memory(swappiness=101)))


def hog(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size)
    for page in range(0, size, mmap.PAGESIZE):
        memory[page] = 1
    return memory


@needs("memory")
def test_limit_below_what_is_in_use(cgroup: Cgroup, start: Start) -> None:
    ready, told = os.pipe()

    def entry() -> None:
        cgroup.attach()
        memory = hog(32 * MB)
        os.write(told, b"!")
        signal.pause()
        memory.close()

    start(entry)
    assert os.read(ready, 1) == b"!"
    memory = Memory(limit=4 * MB, swap=4 * MB, check_before_update=True)
    with pytest.raises(OSError, match=r"linux\.resources\.memory\.") as e:
        cgroup.limit(Resources(memory=memory), update=True)
    assert e.value.errno == errno.EBUSY
    os.close(ready)
    os.close(told)


@needs("memory")
def test_memory_bomb(cgroup: Cgroup, start: Start) -> None:
    cgroup.limit(Resources(memory=Memory(limit=16 * MB, swap=16 * MB)))
    watch = OomWatch(cgroup)
    try:

        def entry() -> None:
            cgroup.attach()
            hog(64 * MB)

        child = start(entry)
        assert wait(child.pidfd) == 128 + signal.SIGKILL
        assert watch.kills() == 1
    finally:
        watch.close()


# Pids


@needs("pids")
def test_fork_bomb(cgroup: Cgroup, in_child: Callable[..., None]) -> None:
    cgroup.limit(Resources(pids=Pids(limit=5)))
    assert show(cgroup, "pids", "pids.max", "pids.max") == "5"

    def entry() -> None:
        cgroup.attach()
        children = []
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
        with pytest.raises(BlockingIOError):
            os.fork()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    in_child(entry)


@needs("pids")
@pytest.mark.parametrize(("limit", "shown"), [(-1, "max"), (0, "1"), (7, "7")])
def test_pids(cgroup: Cgroup, limit: int, shown: str) -> None:
    cgroup.limit(Resources(pids=Pids(limit=3)))
    cgroup.limit(Resources(), update=True)
    assert show(cgroup, "pids", "pids.max", "pids.max") == "3"
    cgroup.limit(Resources(pids=Pids(limit=limit)), update=True)
    assert show(cgroup, "pids", "pids.max", "pids.max") == shown


# Devices


@needs("devices")
def test_devices_of_v1(cgroup: Cgroup, tmp_path: Path, in_child: Callable[..., None]) -> None:
    given = (
        DeviceRule(access="rwm"),
        DeviceRule(allow=True, type="c", major=1, minor=11, access="r"),
        DeviceRule(allow=True, type="b", major=254, access="rw"),
    )
    cgroup.limit(Resources(devices=given))
    listed = show(cgroup, "devices", "devices.list").splitlines()
    assert {"c 1:11 r", "b 254:* rw", "c 1:3 rwm", "c *:* m"} < set(listed)
    cgroup.limit(Resources(devices=(DeviceRule(allow=True, access="rwm"),)), update=True)
    assert show(cgroup, "devices", "devices.list").splitlines() == listed

    def entry() -> None:
        cgroup.attach()
        os.close(os.open("/dev/null", os.O_RDWR))
        os.close(os.open("/dev/kmsg", os.O_RDONLY))
        with pytest.raises(PermissionError):
            os.open("/dev/kmsg", os.O_WRONLY)
        os.mknod(tmp_path / "tty", 0o600 | 0o20000, os.makedev(4, 73))
        with pytest.raises(PermissionError):
            os.open(tmp_path / "tty", os.O_RDWR)

    in_child(entry)


@needs("devices")
def test_no_device_unless_given(cgroup: Cgroup, in_child: Callable[..., None]) -> None:
    cgroup.limit(Resources())

    def entry() -> None:
        cgroup.attach()
        with pytest.raises(PermissionError):
            os.open("/dev/kmsg", os.O_RDONLY)

    in_child(entry)


@needs("devices")
def test_mknod_of_v1(
    cgroup: Cgroup, tmp_path: Path, in_child: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.linux.cgroups.device_rules._DEFAULTS", ())
    cgroup.limit(Resources())

    def entry() -> None:
        cgroup.attach()
        with pytest.raises(PermissionError):
            os.mknod(tmp_path / "tty", 0o600 | 0o20000, os.makedev(4, 73))

    in_child(entry)


@needs("devices")
def test_all_devices_but(cgroup: Cgroup, in_child: Callable[..., None]) -> None:
    given = (
        DeviceRule(allow=True, access="rwm"),
        DeviceRule(allow=False, type="c", major=1, minor=11, access="w"),
    )
    cgroup.limit(Resources(devices=given))

    def entry() -> None:
        cgroup.attach()
        os.close(os.open("/dev/kmsg", os.O_RDONLY))
        with pytest.raises(PermissionError):
            os.open("/dev/kmsg", os.O_WRONLY)

    in_child(entry)


# Block I/O


def disk() -> tuple[int, int]:
    """A whole disk, for which limits can be set."""
    with open("/proc/partitions") as partitions:
        for line in partitions.read().splitlines()[2:]:
            major, minor, _, name = line.split()
            if os.path.exists(f"/sys/block/{name}/queue"):
                return int(major), int(minor)
    pytest.skip("no disk")


@needs("blkio")
def test_throttle(cgroup: Cgroup) -> None:
    major, minor = disk()
    device = f"{major}:{minor}"

    def throttle(rate: int) -> tuple[ThrottleDevice]:
        return (ThrottleDevice(major=major, minor=minor, rate=rate),)

    cgroup.limit(
        Resources(
            block_io=BlockIO(
                throttle_read_bps_device=throttle(MB),
                throttle_write_bps_device=throttle(2 * MB),
                throttle_read_iops_device=throttle(100),
                throttle_write_iops_device=throttle(200),
            )
        )
    )
    if cgroup.unified:
        limits = show(cgroup, "blkio", "", "io.max")
        assert limits == f"{device} rbps={MB} wbps={2 * MB} riops=100 wiops=200"
    else:
        for what, rate in (
            ("read_bps", MB),
            ("write_bps", 2 * MB),
            ("read_iops", 100),
            ("write_iops", 200),
        ):
            assert show(cgroup, "blkio", f"blkio.throttle.{what}_device") == f"{device} {rate}"
    cgroup.limit(Resources(block_io=BlockIO(throttle_read_bps_device=throttle(0))), update=True)
    if not cgroup.unified:
        assert show(cgroup, "blkio", "blkio.throttle.read_bps_device") == ""


@needs("blkio")
def test_no_such_disk(cgroup: Cgroup) -> None:
    device = ThrottleDevice(major=4095, minor=9, rate=1)
    with pytest.raises(
        OSError, match=r"linux\.resources\.blockIO\.throttleReadBpsDevice: write"
    ) as e:
        cgroup.limit(Resources(block_io=BlockIO(throttle_read_bps_device=(device,))))
    assert e.value.errno == errno.ENODEV


@needs("blkio")
@only_v1
def test_weight_of_v1(cgroup: Cgroup) -> None:
    path = cgroup.directory("blkio")
    file = next(
        (name for name in ("blkio.weight", "blkio.bfq.weight") if os.path.exists(f"{path}/{name}")),
        None,
    )
    if file is None:
        with pytest.raises(FileNotFoundError, match=r"linux\.resources\.blockIO\.weight"):
            cgroup.limit(Resources(block_io=BlockIO(weight=500)))
    else:
        cgroup.limit(Resources(block_io=BlockIO(weight=500)))
        assert "500" in show(cgroup, "blkio", file)


@needs("blkio")
@only_v1
@pytest.mark.parametrize(
    "block",
    [
        BlockIO(leaf_weight=10),
        BlockIO(weight_device=(WeightDevice(major=4095, minor=1, weight=10),)),
        BlockIO(weight_device=(WeightDevice(major=4095, minor=1, leaf_weight=10),)),
    ],
)
def test_what_no_kernel_has_any_more(cgroup: Cgroup, block: BlockIO) -> None:
    with pytest.raises(OSError, match=r"linux\.resources\.blockIO\."):
        cgroup.limit(Resources(block_io=block))


# The rest


def huge_page() -> str | None:
    return "2MB" if os.path.exists("/sys/kernel/mm/hugepages/hugepages-2048kB") else None


@pytest.mark.skipif(huge_page() is None, reason="no huge pages")
def test_hugetlb(cgroup: Cgroup) -> None:
    """Also where the controller is v2's and all others are v1's."""
    v2 = next((tree for tree in hierarchies() if tree.is_v2), None)
    if "hugetlb" not in HERE and not (v2 and "hugetlb" in v2_controllers(v2.mount)):
        pytest.skip("no hugetlb controller")
    cgroup.limit(Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=4 * MB),)))
    path = cgroup.directory("hugetlb")
    for kind in ("", ".rsvd"):
        if path is not None:
            shown = read(f"{path}/hugetlb.2MB{kind}.limit_in_bytes")
        else:
            shown = read(f"{cgroup.directory('')}/hugetlb.2MB{kind}.max")
        assert shown == str(4 * MB)


@pytest.mark.parametrize("size", ["../x", "2MB/..", "2", "", "2MB\n", "02MB"])
def test_page_size_is_part_of_a_name(cgroup: Cgroup, size: str) -> None:
    with pytest.raises(OSError, match=r"linux\.resources\.hugepageLimits: .*not a page size"):
        cgroup.limit(Resources(hugepage_limits=(HugepageLimit(page_size=size),)))


@pytest.mark.parametrize(
    ("resources", "controller"),
    [
        (Resources(network=Network(class_id=1)), "net_cls"),
        (Resources(network=Network(priorities=(InterfacePriority(name="lo"),))), "net_prio"),
        (Resources(rdma={"mlx5_0": Rdma(hca_handles=2)}), "rdma"),
    ],
)
@only_v1
def test_controller_that_is_not_there(
    cgroup: Cgroup, resources: Resources, controller: str
) -> None:
    if controller in HERE:
        pytest.skip("it is")
    with pytest.raises(FileNotFoundError, match=rf"linux\.resources\..*{controller} controller"):
        cgroup.limit(resources)


def test_network(tmp_path: Path) -> None:
    """With files that take anything: to mount these controllers would be to keep them for good."""
    for file in ("net_cls.classid", "net_prio.ifpriomap"):
        (tmp_path / "container").mkdir(exist_ok=True)
        (tmp_path / "container" / file).touch()
    tree = Hierarchy(str(tmp_path), "/", frozenset({"net_cls", "net_prio"}))
    cgroup = Cgroup.for_path("/container", [tree])
    priorities = (InterfacePriority(name="lo", priority=7), InterfacePriority(name="eth0"))
    network = Network(class_id=0x100001, priorities=priorities)
    cgroup.limit(Resources(network=network), update=True)
    assert show(cgroup, "net_cls", "net_cls.classid") == "1048577"
    assert show(cgroup, "net_prio", "net_prio.ifpriomap") == "eth0 0"
    for bad in ("", "a b", "eth0 1\neth1"):
        network = Network(priorities=(InterfacePriority(name=bad),))
        with pytest.raises(OSError, match="not the name of a device"):
            cgroup.limit(Resources(network=network), update=True)


@pytest.mark.parametrize("bad", ["", "a b", "x\n", "eth0 1\neth1"])
def test_names_are_words(cgroup: Cgroup, bad: str) -> None:
    with pytest.raises(OSError, match="not the name of a device"):
        cgroup.limit(Resources(rdma={bad: Rdma(hca_handles=2)}))


@only_v1
def test_unified_is_for_v2_alone(cgroup: Cgroup) -> None:
    with pytest.raises(OSError, match=r"linux\.resources\.unified: 'memory\.high'") as e:
        cgroup.limit(Resources(unified={"memory.high": "1"}))
    assert e.value.errno == errno.EOPNOTSUPP


@only_v2
def test_unified(cgroup: Cgroup) -> None:
    cgroup.limit(Resources(unified={"memory.high": "1048576\n", "pids.max": "9"}))
    assert show(cgroup, "", "", "memory.high") == "1048576"
    assert show(cgroup, "", "", "pids.max") == "9"


def test_gone(name: str) -> None:
    with pytest.raises(FileNotFoundError) as e:
        Cgroup.for_path(f"/{name}").limit(Resources())
    assert name in e.value.filename


# The order of writes that depend on each other


class Picky(Directory):
    """A kernel that takes a limit only if it is not above the other."""

    def __init__(self, low: int, high: int) -> None:
        self.values = {"low": low, "high": high}

    def set(self, field: str, file: str, *values: str) -> None:
        (value,) = values
        changed = self.values | {file: int(value)}
        if changed["low"] > changed["high"]:
            raise OSError(errno.EINVAL, field)
        self.values = changed


@pytest.mark.parametrize("low", [1, 5, 9])
@pytest.mark.parametrize("high", [10, 5, 9])
@pytest.mark.parametrize("before", [(1, 2), (5, 5), (20, 30)])
def test_values_that_must_fit(low: int, high: int, before: tuple[int, int]) -> None:
    picky = Picky(*before)
    settings = [Setting("l", "low", str(low)), Setting("h", "high", str(high))]
    if low <= high:
        picky.set_together(settings)
        assert picky.values == {"low": low, "high": high}
    else:
        with pytest.raises(OSError, match="Errno 22"):
            picky.set_together(settings)
