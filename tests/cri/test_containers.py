"""Containers of a pod: what they are given, how they end, what they use."""

from __future__ import annotations

import os
import time
from pathlib import Path

import grpc
import pytest

from proto.api import cri_pb2 as cri
from tests.cri.conftest import IMAGE, Kind
from tests.cri.kubelet import EXITED, RUNNING, Container, Kubelet
from tests.cri.node import Node
from tests.integration.containerd import eventually


def cgroup_file(pid: int, controller: str, v1: str, v2: str) -> str:
    """What a file of a process's cgroup says: on cgroup v1 `v1`, on v2 `v2`."""
    with open(f"/proc/{pid}/cgroup") as file:
        groups = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    for fields in mounts:
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        if kind == "cgroup" and controller in options.split(","):
            name = next(names for names in groups if controller in names.split(","))
            return Path(f"{fields[4]}{groups[name]}/{v1}").read_text()
    (mount,) = (fields[4] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2")
    return Path(f"{mount}{groups['']}/{v2}").read_text()


def test_arguments_and_environment(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler, hostname="h")
    program = kind.program("args_env")
    output = pod.run(IMAGE, program, "a b", "", "ü", env={"X": "1=2", "FROM_IMAGE": "no"}).finish()
    lines = output.splitlines()
    assert lines[:4] == [f"arg 0: {program}", "arg 1: a b", "arg 2: ", "arg 3: ü"]
    assert {"env: X=1=2", "env: FROM_IMAGE=no", "env: HOSTNAME=h"} <= set(lines)


def test_mounts_and_user(kubelet: Kubelet, tmp_path: Path, kind: Kind) -> None:
    """A volume that belongs to user 1000 alone."""
    volume = tmp_path / "volume"
    volume.mkdir(0o700)
    os.chown(volume, 1000, 1000)
    command = kind.program("files"), "/data"
    pod = kubelet.run_pod(kind.handler)

    owner = pod.run(IMAGE, *command, mounts=[(f"{volume}", "/data", False)], user=(1000, 1000))
    assert "ok rename\n" in owner.finish()
    stranger = pod.run(IMAGE, *command, mounts=[(f"{volume}", "/data", False)], user=(1001, 1000))
    assert stranger.wait().exit_code
    reader = pod.run(IMAGE, *command, mounts=[(f"{volume}", "/data", True)], user=(1000, 1000))
    assert reader.wait().exit_code
    assert "FAIL create: " in reader.output()
    assert list(volume.iterdir()) == []


def test_credentials(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    container = pod.run(
        IMAGE,
        kind.program("idle"),
        user=(1000, 1001),
        groups=[1002],
        no_new_privs=True,
        seccomp=cri.SecurityProfile(profile_type="RuntimeDefault"),
    )
    container.until_says("idle")  # runc's own process comes before it
    with open(f"/proc/{container.pid}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["1001"] * 4
    assert "1002" in status["Groups"].split()
    assert int(status["CapEff"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_what_the_kubelet_mounts_into_every_container(
    kubelet: Kubelet, node: Node, tmp_path: Path, kind: Kind
) -> None:
    """Single files, also in /dev, where a termination message goes; and a service account."""
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    (tmp_path / "message").touch()
    (tmp_path / "message").chmod(0o666)
    (tmp_path / "account").mkdir()
    (tmp_path / "account" / "token").write_text("the token\n")
    pod = kubelet.run_pod(kind.handler)
    container = pod.run(
        IMAGE,
        kind.program("mounted"),
        *("/etc/hosts", f"{account}/token", "/dev/termination-log"),
        mounts=[
            (f"{tmp_path}/hosts", "/etc/hosts", False),
            (f"{tmp_path}/message", "/dev/termination-log", False),
            (f"{tmp_path}/account", account, True),
        ],
        user=(1000, 1000),
        readonly_rootfs=True,
    )
    assert container.finish() == "127.0.0.1 localhost\nthe token\n"
    assert (tmp_path / "message").read_text() == "done\n"


def test_privileged(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler, privileged=True)
    container = pod.run(IMAGE, kind.program("idle"), privileged=True)
    container.until_says("idle")
    with open(f"/proc/{container.pid}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    assert status["Seccomp"] == "0"
    container.stop()


def test_exit_status(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    made = {code: pod.run(IMAGE, kind.program("exit3"), str(code)) for code in (0, 3, 255)}
    for code, container in made.items():
        status = container.wait()
        assert status.exit_code == code
        assert status.reason == ("Error" if code else "Completed")
        assert status.created_at < status.finished_at
    assert pod.ready()


def test_again(kubelet: Kubelet, kind: Kind) -> None:
    """As the kubelet restarts a container: the old one is removed after the new one has started."""
    pod = kubelet.run_pod(kind.handler)
    before = pod.run(IMAGE, kind.program("exit3"))
    before.wait()
    for _ in range(3):
        after = pod.run(IMAGE, kind.program("exit3"))
        before.remove()
        assert after.wait().exit_code == 3
        before = after
    assert [found.id for found in kubelet.list_containers()] == [before.id]


@pytest.mark.parametrize("program", ["idle", "spin"])
def test_it_ends_when_it_is_told_to(kubelet: Kubelet, program: str) -> None:
    """Long before the grace period does. A native one without a handler cannot, being PID 1."""
    pod = kubelet.run_pod("pywasm")
    container = pod.run(IMAGE, f"/{program}.wasm")
    container.until_says({"idle": "idle", "spin": "spinning"}[program])
    begin = time.monotonic()
    container.stop(grace=30)
    assert time.monotonic() - begin < 1  # what was promised, and what a hanging one takes 30 for
    status = container.status()
    assert (status.state, status.exit_code) == (EXITED, 143)


def test_it_is_killed_in_the_end(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    container = pod.run(IMAGE, kind.program("idle"))
    container.stop(grace=0)
    assert container.status().exit_code == 137


def test_out_of_memory(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    container = pod.run(IMAGE, kind.program("bombs"), "memory", "200", memory=64 << 20)
    status = container.wait()
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    assert pod.ready()
    assert pod.run(IMAGE, kind.program("hello")).finish() == "hello from pywasm\n"


@pytest.mark.parametrize("what", ["/nowhere", "/nowhere.wasm", "/content"])
def test_what_cannot_be_executed(kubelet: Kubelet, handler: str, what: str) -> None:
    pod = kubelet.run_pod(handler)
    with pytest.raises(grpc.RpcError, match=what) as error:
        pod.run(IMAGE, what)
    print(error.value.details())
    for found in kubelet.list_containers(pod.id):  # with CRI-O there is none
        status = Container(pod, "", found.id).status()
        assert status.state == EXITED
        assert status.exit_code != 0
        assert what in status.message
    assert pod.ready()


def test_statistics(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    busy, idle = (pod.run(IMAGE, kind.program(name)) for name in ("spin", "idle"))
    busy.until_says("spinning")
    eventually(lambda: busy.stats().cpu.usage_core_nano_seconds.value > 20_000_000)
    stats = busy.stats()
    assert stats.attributes.id == busy.id
    assert stats.memory.working_set_bytes.value > 0
    request = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter(pod_sandbox_id=pod.id))
    listed = kubelet.runtime.ListContainerStats(request).stats
    assert {found.attributes.id for found in listed} == {busy.id, idle.id}


def test_statistics_of_a_pod(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler, cgroup="/pod-y")
    busy = pod.run(IMAGE, kind.program("spin"))
    busy.until_says("spinning")
    eventually(lambda: pod.stats().linux.cpu.usage_core_nano_seconds.value > 20_000_000)
    stats = pod.stats()
    assert stats.attributes.id == pod.id
    assert stats.linux.memory.working_set_bytes.value > 0
    assert stats.linux.network.default_interface.name == "eth0"
    assert [found.attributes.id for found in stats.linux.containers] == [busy.id]


def test_resources(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    container = pod.run(IMAGE, kind.program("idle"), memory=64 << 20)
    pid = container.pid
    limit = "memory", "memory.limit_in_bytes", "memory.max"
    assert int(cgroup_file(pid, *limit)) == 64 << 20
    container.update(memory_limit_in_bytes=96 << 20, cpu_quota=50_000, cpu_period=100_000)
    assert int(cgroup_file(pid, *limit)) == 96 << 20
    assert cgroup_file(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    assert container.status().state == RUNNING


def test_annotations(kubelet: Kubelet) -> None:
    """Those of the pod, where the runtime is configured to pass them on; and of the container."""
    pod = kubelet.run_pod("pywasm", annotations={"dev.pywasm.rootfs": "off"})
    with pytest.raises(grpc.RpcError, match=r"dev\.pywasm\.engine"):
        pod.run(IMAGE, "/hello.wasm", annotations={"dev.pywasm.engine": "no such"})
    files = pod.run(IMAGE, "/files.wasm", "/")
    assert files.wait().exit_code == 99
