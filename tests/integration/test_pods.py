"""Containers of one pod share a shim; containers of different pods do not.

The shim is the parent of a container's first process.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from tests.integration import specs
from tests.integration.client import Client
from tests.integration.conftest import Container, Containers, program
from tests.integration.containerd import PYWASM, Containerd, parent_of


def in_pod(containers: Containers, runtime: str, pod: str, guest: str = "idle") -> Container:
    annotations = {"io.kubernetes.cri.sandbox-id": pod}
    return containers.new(runtime, specs.usual(program(runtime, guest), annotations=annotations))


def test_a_pod_has_one_shim(client: Client, containers: Containers, runtime: str) -> None:
    first = in_pod(containers, runtime, "pod-a")
    second = in_pod(containers, runtime, "pod-a")
    third = in_pod(containers, runtime, "pod-b")
    alone = containers.new(runtime, specs.usual(program(runtime, "idle")))
    shims = [parent_of(container.run()) for container in (first, second, third, alone)]
    assert shims[0] == shims[1]
    assert len(set(shims)) == 3

    # The end of one container, and of its task, is not the end of the pod.
    client.kill(first.name)
    assert client.wait(first.name) == 137
    client.delete(first.name)
    assert parent_of(client.state(second.name).pid) == shims[0]
    again = in_pod(containers, runtime, "pod-a", "hello")
    again.run()
    assert client.wait(again.name) == 0
    client.delete(again.name)


def test_starts_at_the_same_moment(
    client: Client, containers: Containers, containerd: Containerd
) -> None:
    made = [in_pod(containers, PYWASM, "pod-c") for _ in range(8)]
    with ThreadPoolExecutor(len(made)) as pool:
        pids = list(pool.map(Container.run, made))
    assert len(set(pids)) == len(made)
    assert len({parent_of(pid) for pid in pids}) == 1
    shims = set(containerd.processes()) - set(pids)
    assert len(shims) == 1, containerd.processes()


def test_without_a_zygote(client: Client, containers: Containers, containerd: Containerd) -> None:
    """Starts at the same moment also agree on who brings up the zygote."""
    containerd.end_zygote()
    made = [containers.new(PYWASM, specs.usual("/idle.wasm")) for _ in range(4)]
    with ThreadPoolExecutor(len(made)) as pool:
        pids = list(pool.map(Container.run, made))
    assert len(containerd.zygotes()) == 1
    assert len({parent_of(pid) for pid in pids}) == len(made)

    # It takes nothing with it.
    containerd.end_zygote()
    for container, pid in zip(made, pids, strict=True):
        assert os.path.exists(f"/proc/{pid}")
        client.kill(container.name)
        assert client.wait(container.name) == 137
        client.delete(container.name)
