"""Pods that the shim holds itself: containerd's "shim" sandboxer, which is there since 2.0.

And in 1.7, where the variable ENABLE_CRI_SANDBOXES is set.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import grpc
import pytest

from proto.api import cri_pb2 as cri
from tests.cri.conftest import IMAGE
from tests.cri.kubelet import EXITED, NODE, POD, RUNNING, Kubelet
from tests.cri.node import Node
from tests.integration.containerd import eventually, parent_of
from tests.integration.versions import version_of

SHIM = "pywasm-shim"
PROGRAMS = ("/idle.wasm", "/idle")


@pytest.fixture(autouse=True)
def version(node: Node) -> tuple[int, ...]:
    """Of the containerd; only those that have the sandboxer go on."""
    found = tuple(int(number) for number in version_of(node.bin_dir or "").split("."))
    if found < ((1, 7) if os.environ.get("ENABLE_CRI_SANDBOXES") else (2, 0)):
        pytest.skip("this containerd does not let a shim hold pods")
    return found


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_no_container_is_made_for_a_pod(kubelet: Kubelet, node: Node) -> None:
    pod = kubelet.run_pod(SHIM, hostname="somewhere")
    assert pod.ready()
    eventually(lambda: name_of(pod.pid) == "pywasm-sandbox")
    assert name_of(parent_of(pod.pid)) == "pywasm-shim"
    eventually(lambda: len(node.processes()) == 2)
    for kind in ("containers", "tasks", "snapshots"):
        assert pod.id not in node.checked(kind, "list")
    assert pod.address
    sandbox = pod.pid
    pod.stop()
    assert pod.status().state == cri.SANDBOX_NOTREADY
    assert not os.path.exists(f"/proc/{sandbox}")
    pod.remove()
    eventually(lambda: not node.processes())


def test_what_its_containers_are_given(kubelet: Kubelet, node: Node) -> None:
    pod = kubelet.run_pod(SHIM, hostname="somewhere")
    first, second = (pod.run(IMAGE, program) for program in PROGRAMS)
    for container in (first, second):
        root = Path(f"/proc/{container.pid}/root")
        assert (root / "etc/hostname").read_text() == "somewhere\n"
        assert (root / "etc/hosts").read_text() == Path("/etc/hosts").read_text()
        assert (root / "etc/resolv.conf").read_text() == Path("/etc/resolv.conf").read_text()
        for shared in ("net", "ipc", "uts"):
            own = os.readlink(f"/proc/{container.pid}/ns/{shared}")
            assert own == os.readlink(f"/proc/{pod.pid}/ns/{shared}"), shared
    (shm_1, shm_2) = (Path(f"/proc/{c.pid}/root/dev/shm/note") for c in (first, second))
    shm_1.write_text("for the other")
    assert shm_2.read_text() == "for the other"
    assert parent_of(first.pid) == parent_of(second.pid) == parent_of(pod.pid)
    # containerd finds the shim without executing the launcher for it.
    task = f"{node.directory}/state/io.containerd.runtime.v2.task/k8s.io/{first.id}"
    assert Path(task, "sandbox").read_text() == pod.id
    assert not os.path.exists(f"{task}/shim-binary-path")


def test_the_life_of_its_containers(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod(SHIM)
    for program in ("/hello.wasm", "/hello"):
        assert pod.run(IMAGE, program).finish() == "hello from pywasm\n"
    for program in ("/exit3.wasm", "/exit3"):
        assert pod.run(IMAGE, program).wait().exit_code == 3
    for program, other in zip(PROGRAMS, ("/exit3.wasm", "/exit3"), strict=True):
        container = pod.run(IMAGE, program)
        assert container.exec_sync(other, "4")[0] == 4
        assert container.stats().memory.usage_bytes.value > 0
        container.stop()
        assert container.status().exit_code == 137
        container.remove()
    assert pod.ready()
    stats = pod.stats().linux
    assert stats.memory.usage_bytes.value > 0
    assert stats.network.default_interface.name == "eth0"


def test_it_is_stopped_with_its_containers(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod(SHIM)
    containers = [pod.run(IMAGE, program) for program in PROGRAMS]
    created = pod.create(IMAGE, "/idle.wasm")
    pod.stop()
    for container in containers:
        assert container.status().state == EXITED
        assert container.status().exit_code == 137
    created.remove()
    pod.remove()


def test_processes_in_one_namespace(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod(SHIM, pid=POD)
    pids = [pod.run(IMAGE, program).pid for program in PROGRAMS]
    assert len({os.readlink(f"/proc/{pid}/ns/pid") for pid in (*pids, pod.pid)}) == 1


def test_of_the_node(kubelet: Kubelet, node: Node, version: tuple[int, ...]) -> None:
    if version < (2, 3):
        pytest.skip("containerd panics: a pod without a network of its own has no spec")
    pod = kubelet.run_pod(SHIM, network=NODE, pid=NODE, ipc=NODE)
    container = pod.run(IMAGE, "/idle.wasm")
    for pid in (pod.pid, container.pid):
        assert os.readlink(f"/proc/{pid}/ns/net") == node.network
        for kept in ("ipc", "pid", "uts"):
            assert os.readlink(f"/proc/{pid}/ns/{kept}") == os.readlink(f"/proc/self/ns/{kept}")


def test_sysctls(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod(SHIM, sysctls={"net.ipv4.ip_default_ttl": "33"})
    pid = pod.run(IMAGE, "/idle.wasm").pid
    read = ["nsenter", "-n", "-t", str(pid), "cat", "/proc/sys/net/ipv4/ip_default_ttl"]
    assert subprocess.check_output(read) == b"33\n"


def test_restart_of_containerd(kubelet: Kubelet, node: Node) -> None:
    pod = kubelet.run_pod(SHIM)
    idle = [pod.run(IMAGE, program) for program in PROGRAMS]
    pids = [container.pid for container in idle]
    node.end(signal.SIGKILL)
    node.start()
    kubelet.reconnect()
    kubelet.until_ready()
    assert pod.ready()
    assert [container.pid for container in idle] == pids
    assert all(container.status().state == RUNNING for container in idle)
    assert pod.run(IMAGE, "/hello.wasm").finish() == "hello from pywasm\n"
    idle[0].stop()
    assert idle[0].status().exit_code == 137
    pod.stop()
    assert pod.status().state == cri.SANDBOX_NOTREADY


def test_the_sandbox_dies(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod(SHIM)
    pod.run(IMAGE, "/idle.wasm")
    os.kill(pod.pid, signal.SIGKILL)
    eventually(lambda: not pod.ready())
    pod.remove()


def test_the_shim_dies(kubelet: Kubelet, node: Node) -> None:
    """And with it all of its pod, native containers too, for which nobody asks otherwise."""
    pod = kubelet.run_pod(SHIM)
    containers = [pod.run(IMAGE, program) for program in PROGRAMS]
    os.kill(parent_of(pod.pid), signal.SIGKILL)

    def known_to_be_over() -> bool:
        try:
            return not pod.ready()
        except grpc.RpcError:
            return False  # until containerd has cleaned up, it asks the shim

    eventually(known_to_be_over)
    eventually(lambda: all(c.status().state == EXITED for c in containers))
    eventually(lambda: not node.processes())
    pod.remove()


def test_annotations_of_its_containers(kubelet: Kubelet) -> None:
    """They are not the sandbox's, and may be of one container alone."""
    pod = kubelet.run_pod(
        SHIM,
        annotations={
            "dev.pywasm.listen/c1": "tcp://0.0.0.0:8080",
            "dev.pywasm.time-limit/c2": "100ms",
        },
    )
    listening = pod.run(IMAGE, "/idle.wasm")
    sockets = ["nsenter", "-n", "-t", str(listening.pid), "cat", "/proc/net/tcp"]
    assert b"00000000:1F90 00000000:0000 0A" in subprocess.check_output(sockets)
    assert pod.run(IMAGE, "/idle.wasm").wait().exit_code == 137
    assert pod.run(IMAGE, "/hello.wasm").finish() == "hello from pywasm\n"
    assert listening.status().state == RUNNING


def test_a_pod_that_cannot_be_made(kubelet: Kubelet, node: Node) -> None:
    with pytest.raises(grpc.RpcError, match=r"linux\.sysctl"):
        kubelet.run_pod(SHIM, sysctls={"vm.swappiness": "1"})
    eventually(lambda: not node.processes())
