"""Pods that serve HTTP on addresses of their own, to other pods and to the kubelet's probes."""

from __future__ import annotations

import http.client
import time

import pytest

from tests.cri.conftest import IMAGE, KINDS
from tests.cri.kubelet import Kubelet, Pod
from tests.cri.node import Node

LISTEN = {"dev.pywasm.listen": "tcp://0.0.0.0:8080"}
BODY = {"http_listen.wasm": "the content\n", "http_wasmedge.wasm": "from WasmEdge\n"}


def serve(kubelet: Kubelet, program: str) -> tuple[Pod, str]:
    """Run a pod that serves on port 8080; return it, and what it answers."""
    if program == "native":
        pod = kubelet.run_pod("pywasm")
        pod.run(IMAGE, "/http_native", "8080")
        return pod, "from native\n"
    if program == "runc":
        pod = kubelet.run_pod("runc")
        pod.run(IMAGE, "/http_native", "8080")
        return pod, "from native\n"
    listening = program == "http_listen.wasm"
    pod = kubelet.run_pod("pywasm", annotations=LISTEN if listening else None)
    pod.run(IMAGE, f"/{program}", *([] if listening else ["8080"])).until_says("listening on")
    return pod, BODY[program]


def probe(node: Node, address: str, path: str) -> tuple[int, str]:
    """What a probe by HTTP gets; the server may not listen yet."""
    for attempt in range(400):
        try:
            with node.connect(address, 8080) as sock:
                connection = http.client.HTTPConnection(address, 8080)
                connection.sock = sock
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()
        except ConnectionRefusedError:
            if attempt == 399:
                raise
            time.sleep(0.02)
    raise AssertionError


@pytest.mark.parametrize(
    ("asking_kind", "program"),
    [
        ("runc", "runc"),
        ("runc", "http_wasmedge.wasm"),
        ("native", "http_listen.wasm"),
        ("wasm", "native"),
        ("wasm", "http_listen.wasm"),
        ("wasm", "http_wasmedge.wasm"),
    ],
)
def test_from_pod_to_pod(kubelet: Kubelet, asking_kind: str, program: str) -> None:
    kind = KINDS[asking_kind]
    server, body = serve(kubelet, program)
    client = kubelet.run_pod(kind.handler)
    assert client.address != server.address
    if kind.suffix:
        asking = client.run(IMAGE, "/http_wasmedge.wasm", server.address, "8080", "/content")
    else:
        asking = client.run(IMAGE, "/http_native", server.address, "8080")
    assert asking.finish().endswith(body)


@pytest.mark.parametrize("program", ["runc", "native", "http_listen.wasm", "http_wasmedge.wasm"])
def test_probe(kubelet: Kubelet, node: Node, program: str) -> None:
    pod, body = serve(kubelet, program)
    for _ in range(2):
        assert probe(node, pod.address, "/content") == (200, body)
    if program == "http_listen.wasm":
        assert probe(node, pod.address, "/none")[0] == 404


def test_a_sidecar(kubelet: Kubelet) -> None:
    """Over the loopback that a pod's containers share: a wasm client, a native server."""
    pod = kubelet.run_pod("pywasm")
    pod.run(IMAGE, "/http_native", "8080")
    pod.run(IMAGE, "/http_native", "127.0.0.1", "8080").finish()  # so that it listens
    asking = pod.run(IMAGE, "/http_wasmedge.wasm", "127.0.0.1", "8080", "/content")
    assert "from native\n" in asking.finish()
