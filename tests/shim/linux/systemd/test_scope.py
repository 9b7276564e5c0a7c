from __future__ import annotations

import errno
from typing import Any

import pytest

from oci.linux import CPU, BlockIO, DeviceRule, Memory, Pids, Resources
from shim.linux.systemd.scope import Property, Scope, limit_properties

INFINITY = 2**64 - 1

# Paths


@pytest.mark.parametrize(
    ("path", "unit", "cgroup"),
    [
        ("system.slice:runc:1", "runc-1.scope", "/system.slice/runc-1.scope"),
        (":cri:x-y", "cri-x-y.scope", "/system.slice/cri-x-y.scope"),
        ("-.slice:a:b", "a-b.scope", "/a-b.scope"),
        (
            "kubepods-besteffort-pod1_2.slice:cri-containerd:abc",
            "cri-containerd-abc.scope",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice"
            "/cri-containerd-abc.scope",
        ),
    ],
)
def test_scope(path: str, unit: str, cgroup: str) -> None:
    scope = Scope.for_path(path)
    assert (scope.unit, scope.path) == (unit, cgroup)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a/b",
        "a.slice:b",
        "a.slice:b:",
        "a.slice:b:c:d",
        "a:b:c",
        ".slice:b:c",
        "a--b.slice:b:c",
        "-a.slice:b:c",
        "a-.slice:b:c",
        "a/b.slice:b:c",
        "../a.slice:b:c",
        "a.slice:b/../..:c",
        "a.slice:b:/etc",
        "a.slice:b:c\0",
    ],
)
def test_path_that_is_no_scope(path: str) -> None:
    with pytest.raises(OSError, match="not ") as e:
        Scope.for_path(path)
    assert e.value.errno == errno.EINVAL


# Properties


def told(resources: Resources, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unified": True, "version": 252, "update": True}
    properties = limit_properties(resources, **(defaults | options))
    return {name: value for name, (_, value) in properties}


FULL = Resources(
    memory=Memory(limit=1 << 26, swap=1 << 27, reservation=1 << 20),
    cpu=CPU(shares=1024, quota=33333, period=100000, cpus="0-2,9", mems="0"),
    pids=Pids(limit=0),
    block_io=BlockIO(weight=1000),
)


def test_limits_of_v2() -> None:
    assert told(FULL) == {
        "MemoryMax": 1 << 26,
        "MemoryLow": 1 << 20,
        "MemorySwapMax": 1 << 26,
        "CPUWeight": 100,
        "CPUQuotaPeriodUSec": 100000,
        "CPUQuotaPerSecUSec": 340000,
        "IOWeight": 10000,
        "TasksMax": 1,
        "AllowedCPUs": b"\x07\x02",
        "AllowedMemoryNodes": b"\x01",
    }


def test_limits_of_v1_and_an_old_release() -> None:
    assert told(FULL, unified=False, version=239) == {
        "MemoryLimit": 1 << 26,
        "CPUShares": 1024,
        "CPUQuotaPerSecUSec": 340000,
        "BlockIOWeight": 1000,
        "TasksMax": 1,
    }


def test_no_limits() -> None:
    assert told(Resources()) == {}
    assert told(Resources(memory=Memory(limit=-1), cpu=CPU(quota=-1), pids=Pids(limit=-1))) == {
        "MemoryMax": INFINITY,
        "MemorySwapMax": INFINITY,
        "CPUQuotaPerSecUSec": INFINITY,
        "TasksMax": INFINITY,
    }
    # What memory's limit is now, it is not asked.
    assert told(Resources(memory=Memory(swap=1 << 20))) == {}


def test_idle_has_no_weight() -> None:
    resources = Resources(cpu=CPU(shares=1024, idle=1))
    assert told(resources) == {"CPUWeight": 0}
    assert told(resources, version=251) == {"CPUWeight": 100}
    unified = Resources(unified={"cpu.idle": "1", "cpu.weight": "9"}, cpu=CPU(idle=1))
    assert told(unified) == {"CPUWeight": 0}


def test_files_of_v2() -> None:
    resources = Resources(
        unified={
            "memory.high": "max",
            "memory.max": "4096\n",
            "cpu.max": "50000 200000",
            "cpu.weight": "7",
            "cpuset.cpus": "8",
            "pids.max": "0",
            "memory.oom.group": "1",
            "io.latency": "8:0 target=1",
        }
    )
    assert told(resources, version=253, update=False) | {"DeviceAllow": ""} == {
        "MemoryHigh": INFINITY,
        "MemoryMax": 4096,
        "CPUQuotaPeriodUSec": 200000,
        "CPUQuotaPerSecUSec": 250000,
        "CPUWeight": 7,
        "AllowedCPUs": b"\x00\x01",
        "TasksMax": 1,
        "OOMPolicy": "kill",
        "DevicePolicy": "strict",
        "DeviceAllow": "",
    }
    assert "OOMPolicy" not in told(resources, version=253)
    assert told(resources, unified=False) == {}


@pytest.mark.parametrize(
    "resources",
    [
        Resources(cpu=CPU(cpus="2-1")),
        Resources(cpu=CPU(cpus="x")),
        Resources(cpu=CPU(cpus=",")),
        Resources(cpu=CPU(mems="0-99999999999")),
        Resources(unified={"memory.max": "lots"}),
        Resources(unified={"cpu.max": ""}),
        Resources(unified={"cpuset.cpus": "-"}),
        Resources(memory=Memory(limit=9, swap=8)),
    ],
)
def test_value_that_cannot_be_converted(resources: Resources) -> None:
    with pytest.raises(OSError, match=r"linux\.resources\.") as e:
        told(resources)
    assert e.value.errno == errno.EINVAL


def devices(*rules: DeviceRule) -> list[Property]:
    properties = limit_properties(Resources(devices=rules), unified=True, version=252)
    assert properties[0] == ("DeviceAllow", ("a(ss)", []))
    return properties[1:]


def test_devices() -> None:
    policy, (name, (signature, allowed)) = devices(
        DeviceRule(access="rwm"),
        DeviceRule(allow=True, type="b", major=8, minor=1, access="rw"),
        DeviceRule(allow=True, type="c", minor=1, access="r"),
    )
    assert policy == ("DevicePolicy", ("s", "strict"))
    assert (name, signature) == ("DeviceAllow", "a(ss)")
    assert {
        ("/dev/block/8:1", "rw"),
        ("/dev/char/1:3", "rwm"),
        ("char-136", "rwm"),
        ("char-*", "m"),
        ("block-*", "m"),
    } < set(allowed)
    assert len(allowed) == 11


def test_devices_that_no_list_has() -> None:
    everything = DeviceRule(allow=True, access="rwm")
    disk = DeviceRule(type="b", major=8, minor=0, access="w")
    hole = [DeviceRule(allow=True, type="b", major=8, access="w"), disk]
    assert devices(everything) == [("DevicePolicy", ("s", "auto"))]
    assert devices(everything, disk) == [("DevicePolicy", ("s", "strict"))]
    assert devices(*hole) == [("DevicePolicy", ("s", "strict"))]
