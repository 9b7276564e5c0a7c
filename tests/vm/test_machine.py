"""The machine has what the tests in it are there for; else they would prove nothing."""

from __future__ import annotations

import os
import subprocess

import pytest

from shim.linux.cgroups import hierarchies


def read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def test_only_cgroup_v2() -> None:
    (tree,) = hierarchies()
    assert tree.is_v2
    controllers = read(f"{tree.mount}/cgroup.controllers").split()
    assert {"cpu", "cpuset", "io", "memory", "pids", "hugetlb"} <= set(controllers)
    assert os.path.exists(f"{tree.mount}/system.slice/memory.swap.max")


def test_apparmor_is_enforced() -> None:
    assert "apparmor" in read("/sys/kernel/security/lsm").split(",")
    assert read("/sys/module/apparmor/parameters/enabled") == "Y"
    assert read("/sys/module/apparmor/parameters/mode") == "enforce"
    assert read("/proc/self/attr/apparmor/current") == "unconfined"


def test_systemd_is_in_charge() -> None:
    assert read("/proc/1/comm") == "systemd"
    done = subprocess.run(
        ["systemctl", "is-system-running", "--wait"], stdout=subprocess.PIPE, check=False
    )
    assert done.stdout == b"running\n", subprocess.run(["systemctl", "--failed"], check=False)
    # On the bus, not on systemd's own socket.
    names = subprocess.run(["busctl", "--system", "list"], stdout=subprocess.PIPE, check=True)
    assert b"org.freedesktop.systemd1 " in names.stdout


@pytest.mark.parametrize("kind", ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"])
def test_namespaces(kind: str) -> None:
    assert os.path.exists(f"/proc/self/ns/{kind}")


def test_seccomp() -> None:
    assert "kill_process" in read("/proc/sys/kernel/seccomp/actions_avail").split()


def test_binfmt_misc() -> None:
    assert read("/proc/sys/fs/binfmt_misc/status") == "enabled"  # mounted as it is looked at
