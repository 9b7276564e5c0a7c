"""A containerd, an image and a client for the integration tests.

They run with the containerd on PATH, or with each of those in the directories that
PYWASM_CONTAINERD names, separated by colons (an empty one is PATH).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.guests.build import SOURCES, build
from tests.integration import client as api
from tests.integration import images, modules
from tests.integration.containerd import PYWASM, RUNC, Containerd
from tests.integration.versions import bin_dirs, version_of

IMAGE = "localhost/guests:1"
GUESTS = ("hello", "args_env", "cat", "exit3", "trap", "spin", "sleep", "files", "stdio", "idle")
NATIVE = ("hello", "args_env", "cat", "exit3", "spin", "sleep", "stdio", "idle")


@pytest.fixture(scope="session")
def image() -> images.Image:
    """Every guest as /NAME.wasm, most also natively as /NAME; what cannot run is below /bad."""
    files = {f"{name}.wasm": images.File(build(name).read_bytes()) for name in GUESTS}
    for name in NATIVE:
        files[name] = images.File(build(name, native=True).read_bytes(), mode=0o755)
    hello = files["hello.wasm"].data
    files["simd.wat"] = images.File((SOURCES / "simd.wat").read_bytes())
    files["bad/text.wasm"] = images.File(b"this is a text\n")
    files["bad/truncated.wasm"] = images.File(hello[: len(hello) // 2])
    files["bad/empty.wasm"] = images.File(modules.EMPTY)
    files["bad/import.wasm"] = images.File(modules.importing("env", "no_such_function"))
    files["bad/directory.wasm/file"] = images.File(b"")
    return images.build(IMAGE, files, entrypoint=["/hello.wasm"], env=["FROM_IMAGE=yes"])


@pytest.fixture(scope="session", params=bin_dirs(), ids=version_of)
def containerd(request: pytest.FixtureRequest, image: images.Image) -> Iterator[Containerd]:
    """A containerd that has the image."""
    with Containerd(request.param or None) as daemon:
        daemon.load(image.tar)
        yield daemon


@pytest.fixture(scope="session")
def client(containerd: Containerd) -> Iterator[api.Client]:
    """Its gRPC API."""
    connection = api.Client(containerd)
    yield connection
    connection.close()


@pytest.fixture
def events(client: api.Client) -> Iterator[api.Events]:
    """Its events from now on."""
    subscription = api.Events(client)
    yield subscription
    subscription.close()


@pytest.fixture(params=[PYWASM, RUNC], ids=["pywasm", "runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    """Ours; and the reference, which shows that a test asks for what containerd expects."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: no process, mount, cgroup, socket, bundle or FIFO of a container."""
    daemon: Containerd | None = None
    if "containerd" in request.fixturenames:
        daemon = request.getfixturevalue("containerd")
    yield
    if daemon is not None:
        left = daemon.leftovers()
        if left:
            daemon.scrub()  # so that the next test does not fail for this one
        assert left == []


def program(runtime: str, name: str) -> str:
    """Where the guest `name` is in the image, for a runtime."""
    return f"/{name}.wasm" if runtime == PYWASM else f"/{name}"


@dataclass
class Container:
    """A container made through the API, with FIFOs for its stdio where asked for."""

    client: api.Client
    image: images.Image
    name: str
    runtime: str
    stdio: dict[str, str] = field(default_factory=dict)

    def create(self) -> int:
        """Create its task; return the pid."""
        mounts = self.client.prepare(self.name, self.image.chain_id)
        return self.client.create(self.name, mounts, **self.stdio)

    def run(self) -> int:
        """Create and start its task; return the pid."""
        pid = self.create()
        self.client.start(self.name)
        return pid

    def fifos(self, *names: str) -> None:
        """Make FIFOs for these of `stdin`, `stdout`, `stderr`."""
        for name in names:
            path = f"{self.client.containerd.directory}/{self.name}-{name}"
            os.mkfifo(path)
            self.stdio[name] = path


@pytest.fixture
def containers(client: api.Client, image: images.Image) -> Iterator[Containers]:
    """Makes containers through the API, and removes them."""
    maker = Containers(client, image)
    yield maker
    maker.remove()


class Containers:
    """Makes containers through the API, and removes them."""

    def __init__(self, client: api.Client, image: images.Image) -> None:
        self._client = client
        self._image = image
        self._made: list[Container] = []

    def new(self, runtime: str, spec: api.Spec) -> Container:
        """Record a container; `spec` is a document, or the bytes to take for one."""
        name = self._client.containerd.new_name()
        if isinstance(spec, dict) and "linux" in spec:
            spec["linux"]["cgroupsPath"] = f"/{self._client.containerd.namespace}/{name}"
        self._client.create_container(name, spec, runtime)
        container = Container(self._client, self._image, name, runtime)
        self._made.append(container)
        return container

    def remove(self) -> None:
        """Kill and delete all that were made, with their snapshots and FIFOs."""
        for container in self._made:
            api.discard(self._client, container.name)
            for path in container.stdio.values():
                os.unlink(path)
