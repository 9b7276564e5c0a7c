"""Pods: their life, their namespaces, what several containers of one share."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from proto.api import cri_pb2 as cri
from tests.cri import crio
from tests.cri.conftest import IMAGE, KINDS, Kind
from tests.cri.kubelet import CONTAINER, EXITED, NODE, POD, RUNNING, Container, Kubelet
from tests.cri.node import Node
from tests.integration.containerd import eventually, parent_of


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def inside(pid: int, kind: str, *command: str) -> str:
    """Run a command of the machine in one namespace of a process."""
    entering = ["nsenter", f"--{kind}=/proc/{pid}/ns/{kind}"]
    return subprocess.run([*entering, *command], check=True, capture_output=True).stdout.decode()


def test_life(kubelet: Kubelet, handler: str) -> None:
    pod = kubelet.run_pod(handler, labels={"app": "life"}, annotations={"note": "yes"})
    status = pod.status()
    assert status.state == cri.SANDBOX_READY
    assert status.metadata.name == pod.config.metadata.name
    assert status.runtime_handler == ("" if crio.DIRECTORY else handler)
    assert status.labels["app"] == "life"
    assert dict(status.annotations) == {"note": "yes"}
    assert status.network.ip.startswith("198.51.100.")
    assert [found.id for found in kubelet.list_pods(app="life")] == [pod.id]
    assert kubelet.list_pods(app="other") == []
    assert os.path.exists(f"/proc/{pod.pid}")

    sandbox = pod.pid
    pod.stop()
    assert pod.status().state == cri.SANDBOX_NOTREADY
    assert not os.path.exists(f"/proc/{sandbox}")
    pod.stop()  # which the kubelet may do again
    pod.remove()
    assert kubelet.list_pods() == []
    pod.remove()
    with pytest.raises(grpc.RpcError) as error:
        pod.status()
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_pod_is_stopped_with_its_containers(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    container = pod.run(IMAGE, kind.program("idle"))
    created = pod.create(IMAGE, kind.program("idle"))
    assert {found.id: found.state for found in kubelet.list_containers(pod.id)} == {
        container.id: RUNNING,
        created.id: cri.CONTAINER_CREATED,
    }
    pod.stop()
    assert container.status().state == EXITED
    assert container.status().exit_code == 137
    pod.remove()
    assert kubelet.list_containers() == []


def test_it_is_removed_by_force(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    pod.run(IMAGE, kind.program("idle"))
    pod.remove()
    assert kubelet.list_pods() == []


def test_a_sandbox_that_dies(kubelet: Kubelet, handler: str) -> None:
    """The kubelet learns of it, and makes the pod anew."""
    pod = kubelet.run_pod(handler)
    os.kill(pod.pid, 9)
    eventually(lambda: not pod.ready())
    pod.remove()


def test_a_shim_that_dies(kubelet: Kubelet) -> None:
    """It takes its pod with it, the native containers, too, but no other.

    Without a reference: after runc's shim its socket stays, and containerd may think of a container
    that it runs.
    """
    pod, other = kubelet.run_pod("pywasm"), kubelet.run_pod("pywasm")
    containers = [pod.run(IMAGE, program) for program in ("/idle", "/idle.wasm")]
    pids = [pod.pid, *(container.pid for container in containers)]
    os.kill(parent_of(pod.pid), 9)
    eventually(lambda: not pod.ready())
    for container in containers:
        assert container.wait().exit_code in {137, 255}
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    pod.remove()
    assert other.ready()


def test_many_containers_at_once(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: pod.run(IMAGE, kind.program("exit3"), str(n)), range(16)))
        assert [container.wait().exit_code for container in made] == list(range(16))
        list(pool.map(Container.remove, made))
    assert kubelet.list_containers() == []


def test_it_is_stopped_in_the_middle_of_things(
    kubelet: Kubelet, tmp_path: Path, kind: Kind
) -> None:
    """Of commands, of somebody who is attached."""
    pod = kubelet.run_pod(kind.handler)
    container = pod.run(
        IMAGE, kind.program("tty"), stdin=True, mounts=[(f"{tmp_path}", "/data", False)]
    )
    container.until_says("tty")
    with (
        container.attach() as attached,
        container.exec(kind.program("tty")) as streaming,
        ThreadPoolExecutor(1) as pool,
    ):
        streaming.until(b"tty")
        syncing = pool.submit(container.exec_sync, kind.program("bombs"), "count", "/data/count")
        eventually((tmp_path / "count").exists)
        pod.stop()
        assert syncing.result(20)[0] == 137
        assert streaming.finish() == 137
        assert attached.finish() == 0


def test_a_container_to_debug_another(kubelet: Kubelet) -> None:
    """As `kubectl debug --target` makes: a native one that sees the processes of a wasm one."""
    pod = kubelet.run_pod("pywasm")
    target = pod.run(IMAGE, "/idle.wasm")
    debugger = pod.run(IMAGE, "/idle", target=target)
    assert namespace(debugger.pid, "pid") == namespace(target.pid, "pid")
    assert namespace(debugger.pid, "mnt") != namespace(target.pid, "mnt")
    debugger.stop()
    assert target.status().state == RUNNING


def test_one_shim(kubelet: Kubelet, node: Node) -> None:
    """Whatever its containers are, and however they end."""
    pod = kubelet.run_pod("pywasm")
    wasm = pod.run(IMAGE, "/idle.wasm")
    native = pod.run(IMAGE, "/idle")
    shim = parent_of(pod.pid)
    assert {parent_of(wasm.pid), parent_of(native.pid)} == {shim}
    others = set(node.processes()) - {shim, pod.pid, wasm.pid, native.pid}
    assert not others, node.processes()

    for container in (wasm, native):
        container.stop()
        container.remove()
    for program in ("/hello.wasm", "/hello"):
        assert pod.run(IMAGE, program).finish() == "hello from pywasm\n"
    assert parent_of(pod.pid) == shim


def test_what_containers_share(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler, hostname="somewhere")
    first, second = (pod.run(IMAGE, kind.program("idle")).pid for _ in range(2))
    sandbox = pod.pid
    for shared in ("net", "ipc", "uts"):
        found = {namespace(pid, shared) for pid in (first, second, sandbox)}
        assert len(found) == 1, shared
        assert found != {namespace(os.getpid(), shared)}
    for own in ("pid", "mnt"):
        assert len({namespace(pid, own) for pid in (first, second, sandbox, os.getpid())}) == 4, own
    assert inside(first, "uts", "uname", "-n") == "somewhere\n"
    assert pod.address in inside(first, "net", "ip", "-4", "address")


def test_a_wasm_and_a_native_container_share(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod("pywasm")
    wasm, native = (pod.run(IMAGE, program).pid for program in ("/idle.wasm", "/idle"))
    for shared in ("net", "ipc", "uts"):
        assert namespace(wasm, shared) == namespace(native, shared), shared
    assert namespace(wasm, "pid") != namespace(native, "pid")


def test_processes_in_one_namespace(kubelet: Kubelet, kind: Kind) -> None:
    """Of `shareProcessNamespace`: the sandbox is its first process, and outlives the others."""
    pod = kubelet.run_pod(kind.handler, pid=POD)
    first, second = (pod.run(IMAGE, kind.program("idle")) for _ in range(2))
    assert len({namespace(pid, "pid") for pid in (first.pid, second.pid, pod.pid)}) == 1
    assert namespace(pod.pid, "pid") != namespace(os.getpid(), "pid")
    with open(f"/proc/{pod.pid}/status") as file:
        (inner,) = (line.split()[-1] for line in file if line.startswith("NSpid:"))
    assert inner == "1"
    first.stop()
    assert first.status().state == EXITED
    assert second.status().state == RUNNING
    assert pod.ready()


def test_of_the_node(kubelet: Kubelet, node: Node, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler, network=NODE, pid=NODE, ipc=NODE)
    container = pod.run(IMAGE, kind.program("idle"))
    for pid in (pod.pid, container.pid):
        assert namespace(pid, "net") == node.network
        for kept in node.kept_namespaces:
            assert namespace(pid, kept) == namespace(os.getpid(), kept), kept
        assert namespace(pid, "mnt") != namespace(os.getpid(), "mnt")
    container.stop()
    assert container.status().state == EXITED


def test_sysctls(kubelet: Kubelet, kind: Kind) -> None:
    pod = kubelet.run_pod(
        kind.handler,
        sysctls={"net.ipv4.ip_local_port_range": "20000 20999", "kernel.shm_rmid_forced": "1"},
    )
    pid = pod.run(IMAGE, kind.program("idle")).pid
    ports = inside(pid, "net", "cat", "/proc/sys/net/ipv4/ip_local_port_range")
    assert ports.split() == ["20000", "20999"]
    assert inside(pid, "ipc", "cat", "/proc/sys/kernel/shm_rmid_forced") == "1\n"


def test_a_sysctl_that_there_is_not(kubelet: Kubelet, handler: str) -> None:
    with pytest.raises(grpc.RpcError, match="no_such_thing"):
        kubelet.run_pod(handler, sysctls={"kernel.no_such_thing": "1"})


def test_cgroup(kubelet: Kubelet, node: Node, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler, cgroup="/pod-x")
    container = pod.run(IMAGE, kind.program("idle"))
    for pid, name in ((pod.pid, pod.id), (container.pid, container.id)):
        with open(f"/proc/{pid}/cgroup") as file:
            paths = {line.rstrip("\n").split(":")[2] for line in file}
        assert f"/{node.group}/pod-x/{node.cgroup_prefix}{name}" in paths


def test_ten_at_once(kubelet: Kubelet, handler: str) -> None:
    kind = KINDS["runc" if handler == "runc" else "wasm"]

    def live(number: int) -> tuple[str, str]:
        pod = kubelet.run_pod(handler)
        container = pod.run(IMAGE, kind.program("args_env"), env={"NUMBER": str(number)})
        output = container.finish()
        assert f"env: NUMBER={number}\n" in output
        address = pod.address
        pod.stop()
        pod.remove()
        return pod.id, address

    with ThreadPoolExecutor(10) as pool:
        lives = list(pool.map(live, range(10)))
    assert len({id for id, _ in lives}) == 10
    assert kubelet.list_pods() == []


def test_pods_with_namespaces_of_their_own(kubelet: Kubelet, handler: str) -> None:
    pods = [kubelet.run_pod(handler, ipc=POD, pid=CONTAINER) for _ in range(2)]
    for kind in ("net", "ipc", "uts", "pid", "mnt"):
        assert len({namespace(pod.pid, kind) for pod in pods}) == 2, kind
    assert len({pod.address for pod in pods}) == 2
