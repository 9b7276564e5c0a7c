"""The systemd cgroup driver against systemd."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from oci.linux import CPU, DeviceRule, Memory, Pids, Resources
from shim.linux.cgroups import Cgroup, hierarchies
from shim.linux.cgroups.files import read
from shim.linux.clone import CLONE_NEWPID, Child, clone, wait
from shim.linux.systemd.manager import Systemd
from shim.linux.systemd.scope import Scope, limit_properties, scope_properties

pytestmark = pytest.mark.skipif(
    not os.path.isdir("/run/systemd/system"), reason="systemd is not PID 1"
)

UNIFIED = all(tree.is_v2 for tree in hierarchies())
LIMITS = Resources(
    memory=Memory(limit=64 << 20, swap=64 << 20),
    cpu=CPU(shares=512, quota=50000, period=100000, cpus="0"),
    pids=Pids(limit=20),
    devices=(DeviceRule(access="rwm"),),
)
SLICE = "pywasm-test.slice"


@pytest.fixture
def scope() -> Iterator[Scope]:
    scope = Scope.for_path(f"{SLICE}:run:{uuid.uuid4().hex[:12]}")
    yield scope
    cgroup = Cgroup.for_path(scope.path)
    cgroup.kill()
    with Systemd() as manager:
        manager.stop(scope)
    cgroup.delete(5)
    subprocess.run(["systemctl", "stop", SLICE, "pywasm.slice"], check=False)


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(entry: Callable[[], None] = signal.pause, flags: int = 0) -> Child:
        children.append(clone(entry, flags))
        return children[-1]

    yield start
    for child in children:
        try:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            wait(child.pidfd)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(child.pidfd)


Start = Callable[..., Child]


def make(scope: Scope, pid: int, resources: Resources = LIMITS) -> Cgroup:
    with Systemd() as manager:
        properties = scope_properties([pid], slice=scope.slice, description="a test")
        limits = limit_properties(resources, unified=UNIFIED, version=manager.version())
        manager.start(scope, properties + limits)
    cgroup = Cgroup.for_path(scope.path)
    cgroup.create()
    cgroup.limit(resources)
    cgroup.attach(pid)
    return cgroup


def shown(scope: Scope, name: str) -> str:
    command = ["systemctl", "show", "--value", "-p", name, scope.unit]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def limits(cgroup: Cgroup) -> list[str]:
    if UNIFIED:
        path = cgroup.directory("")
        return [read(f"{path}/{file}") for file in ("memory.max", "pids.max", "cpu.max")]
    return [
        read(f"{cgroup.directory('memory')}/memory.limit_in_bytes"),
        read(f"{cgroup.directory('pids')}/pids.max"),
        read(f"{cgroup.directory('cpu')}/cpu.cfs_quota_us")
        + " "
        + read(f"{cgroup.directory('cpu')}/cpu.cfs_period_us"),
    ]


def test_scope(scope: Scope, start: Start) -> None:
    child = start()
    cgroup = make(scope, child.pid)
    assert cgroup.pids() == [child.pid]
    with open(f"/proc/{child.pid}/cgroup") as file:
        paths = {line.rstrip("\n").split(":", 2)[2] for line in file}
    assert paths == {f"/pywasm.slice/{SLICE}/{scope.unit}"}
    assert shown(scope, "Slice") == SLICE
    assert shown(scope, "Delegate") == "yes"
    assert shown(scope, "ActiveState") == "active"
    assert shown(scope, "TasksMax") == "20"
    assert shown(scope, "MemoryMax" if UNIFIED else "MemoryLimit") == str(64 << 20)
    assert limits(cgroup) == [str(64 << 20), "20", "50000 100000"]


def test_limits_survive_a_reload(scope: Scope, start: Start) -> None:
    cgroup = make(scope, start().pid)
    before = limits(cgroup)
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert limits(cgroup) == before


def test_devices(scope: Scope, start: Start) -> None:
    ready, go = os.pipe()

    def entry() -> None:
        os.read(ready, 1)
        os.close(os.open("/dev/null", os.O_RDWR))
        try:
            os.open("/dev/kmsg", os.O_RDONLY)
        except PermissionError:
            os._exit(7)

    child = start(entry)
    make(scope, child.pid)
    os.write(go, b"!")
    assert wait(child.pidfd) == 7
    os.close(ready)
    os.close(go)


def test_update(scope: Scope, start: Start) -> None:
    cgroup = make(scope, start().pid)
    change = Resources(
        memory=Memory(limit=128 << 20, swap=128 << 20), cpu=CPU(quota=20000), pids=Pids(limit=30)
    )
    with Systemd() as manager:
        version = manager.version()
        properties = limit_properties(change, unified=UNIFIED, version=version, update=True)
        manager.update(scope, properties)
    cgroup.limit(change, update=True)
    assert limits(cgroup) == [str(128 << 20), "30", "20000 100000"]
    assert shown(scope, "TasksMax") == "30"


def test_process_asks_for_itself(scope: Scope, start: Start) -> None:
    """From a PID namespace, where it does not know its number on the host."""

    def entry() -> None:
        assert os.getpid() == 1
        with Systemd() as manager:
            properties = scope_properties([0], slice=scope.slice, description="a test")
            manager.start(scope, properties)
        signal.pause()

    child = start(entry, CLONE_NEWPID)
    cgroup = Cgroup.for_path(scope.path)
    while not (cgroup.exists() and cgroup.pids()):  # the timeout ends it
        time.sleep(0.01)
    assert cgroup.pids() == [child.pid]


def test_the_end_of_a_process_is_the_end_of_its_scope(scope: Scope, start: Start) -> None:
    child = start()
    cgroup = make(scope, child.pid)
    cgroup.kill()
    assert wait(child.pidfd) == 128 + signal.SIGKILL
    with Systemd() as manager:
        manager.stop(scope)
        manager.stop(scope)
    cgroup.delete(5)
    assert not cgroup.exists()
    assert shown(scope, "LoadState") == "not-found"


def test_one_of_a_name(scope: Scope, start: Start) -> None:
    make(scope, start().pid)
    with pytest.raises(FileExistsError, match="systemd: "):
        make(scope, start().pid)
