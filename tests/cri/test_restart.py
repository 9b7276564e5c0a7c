"""containerd ends and starts again while pods run; the kubelet goes on with them."""

from __future__ import annotations

import os
import signal

from tests.cri.conftest import IMAGE, Kind
from tests.cri.kubelet import EXITED, RUNNING, Kubelet
from tests.cri.node import Node
from tests.integration.containerd import eventually


def test_pods_are_found_again(kubelet: Kubelet, node: Node, kind: Kind) -> None:
    pod = kubelet.run_pod(kind.handler)
    idle, ending = (pod.run(IMAGE, kind.program("idle")) for _ in range(2))
    dying = kubelet.run_pod(kind.handler)
    pids, ended = (pod.pid, idle.pid), (ending.pid, dying.pid)
    node.end(signal.SIGKILL)
    for pid in ended:
        os.kill(pid, signal.SIGKILL)
    node.start()
    kubelet.reconnect()
    kubelet.until_ready()

    assert (pod.pid, idle.pid) == pids
    assert pod.ready()
    assert idle.status().state == RUNNING
    eventually(lambda: ending.status().state == EXITED)
    # containerd 1.7 forgets the status of what ended meanwhile, and says 255, "Unknown".
    assert ending.status().exit_code in (137, 255)
    eventually(lambda: not dying.ready())
    assert idle.exec_sync(kind.program("exit3"), "4")[0] == 4
    assert pod.run(IMAGE, kind.program("hello")).finish() == "hello from pywasm\n"
    idle.stop()
    assert idle.status().exit_code == 137


def test_a_pod_that_ends_after_a_restart_can_be_removed(
    kubelet: Kubelet, node: Node, kind: Kind
) -> None:
    """CRI-O waits no longer for what it has not started itself, and stops what it takes to run."""
    pod = kubelet.run_pod(kind.handler)
    pids = pod.run(IMAGE, kind.program("idle")).pid, pod.pid
    node.end(signal.SIGKILL)
    node.start()
    kubelet.reconnect()
    kubelet.until_ready()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    pod.stop()
    pod.remove()
    assert kubelet.list_pods() == []
