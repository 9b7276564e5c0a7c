"""Containers that serve HTTP, and a client in another network namespace than theirs."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import grpc
import pytest

from tests.guests.build import build
from tests.integration import specs
from tests.integration.client import Client
from tests.integration.conftest import Container, Containers
from tests.integration.containerd import PYWASM

SERVER, CLIENT = "192.0.2.1", "192.0.2.2"  # RFC 5737: addresses of no real network

FETCH = """
import sys, time, urllib.request
for _ in range(400):  # it may not listen yet
    try:
        sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())
        break
    except OSError as error:
        time.sleep(0.05)
else:
    raise error
"""


class Networks(NamedTuple):
    """Names of two network namespaces with a wire between them."""

    server: str
    client: str

    def fetch(self, url: str) -> str:
        """Return what is at this URL for a program in the client's network."""
        python = [sys.executable, "-ISc", FETCH, url]
        command = ["ip", "netns", "exec", self.client, *python]
        return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.decode()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=20)


@pytest.fixture
def networks() -> Iterator[Networks]:
    names = Networks(*(f"pywasm-{secrets.token_hex(4)}" for _ in range(2)))
    try:
        for name in names:
            ip("netns", "add", name)
        ends = ("name", "eth0", "netns", names.server), ("name", "eth0", "netns", names.client)
        ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for name, address in zip(names, (SERVER, CLIENT), strict=True):
            ip("-netns", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-netns", name, "link", "set", "eth0", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, timeout=20)


def serving(
    guest: str, *args: str, network: str = "", annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A spec that runs this guest, which no image has, as an ordinary user in a network."""
    wasm = build(guest)
    spec = specs.usual("/guest.wasm", *args, user=(1000, 1000), annotations=annotations)
    bind = {"type": "bind", "options": ["bind", "ro"]}
    spec["mounts"].append({"destination": "/guest.wasm", "source": str(wasm), **bind})
    if network:
        for namespace in spec["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = f"/run/netns/{network}"
    return spec


def end(client: Client, container: Container) -> int:
    client.kill(container.name)
    status = client.wait(container.name)
    client.delete(container.name)
    return status


def ignores(pid: int, signum: signal.Signals) -> bool:
    with open(f"/proc/{pid}/status") as file:
        (mask,) = (int(line.split()[1], 16) for line in file if line.startswith("SigIgn:"))
    return bool(mask >> (signum - 1) & 1)


def test_a_listener_that_the_container_is_given(
    client: Client, containers: Containers, networks: Networks
) -> None:
    """It is the shim that listens, and before Start."""
    listen = {"dev.pywasm.listen": f"tcp://0.0.0.0:8000,tcp://{SERVER}:8080"}
    spec = serving("http_listen", network=networks.server, annotations=listen)
    # Content below the root, which the guest's libc finds behind two listeners.
    spec["mounts"].append(
        {
            "destination": "/content",
            "source": __file__,
            "type": "bind",
            "options": ["bind", "ro"],
        }
    )
    container = containers.new(PYWASM, spec)
    pid = container.run()
    assert ignores(pid, signal.SIGPIPE)  # so that writing to a peer that has gone is an error
    for port in (8000, 8080, 8000):
        assert str(__doc__) in networks.fetch(f"http://{SERVER}:{port}/content")
    assert end(client, container) == 137


def test_a_server_written_for_wasmedge(
    client: Client, containers: Containers, networks: Networks
) -> None:
    container = containers.new(
        PYWASM, serving("http_wasmedge", "8080", "2", network=networks.server)
    )
    container.run()
    for _ in range(2):
        assert networks.fetch(f"http://{SERVER}:8080/") == "from WasmEdge\n"
    assert client.wait(container.name) == 0
    client.delete(container.name)


def test_containers_of_one_network(
    client: Client, containers: Containers, networks: Networks
) -> None:
    """As in a pod: they meet on its loopback, and only one can have a port."""
    ip("-netns", networks.server, "link", "set", "lo", "up")
    listen = {"dev.pywasm.listen": "tcp://127.0.0.1:8080"}
    server = containers.new(
        PYWASM, serving("http_listen", network=networks.server, annotations=listen)
    )
    server.run()
    asking = containers.new(
        PYWASM,
        serving("http_wasmedge", "localhost", "8080", "/none", network=networks.server),
    )
    asking.run()
    assert client.wait(asking.name) == 0
    client.delete(asking.name)
    second = containers.new(
        PYWASM, serving("http_listen", network=networks.server, annotations=listen)
    )
    with pytest.raises(grpc.RpcError, match=r"dev\.pywasm\.listen.*127\.0\.0\.1.*8080.*in use"):
        second.create()
    assert end(client, server) == 137


def test_a_container_without_a_network(client: Client, containers: Containers) -> None:
    off = {"dev.pywasm.network": "off"}
    container = containers.new(PYWASM, serving("http_wasmedge", "8080", annotations=off))
    container.run()
    assert client.wait(container.name) == 1
    client.delete(container.name)
