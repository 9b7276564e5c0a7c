"""A node, its kubelet and pods for the tests of CRI.

They run with each containerd that the integration tests run with; or, where PYWASM_CRIO says where
that is, with CRI-O.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import pytest

from tests.cri import crio
from tests.cri.crio import CrioNode
from tests.cri.kubelet import Kubelet
from tests.cri.node import PAUSE, Node, pause_image
from tests.guests.build import build
from tests.integration import images
from tests.integration.containerd import eventually
from tests.integration.versions import bin_dirs, version_of

IMAGE = "localhost/guests:1"
BOTH = ("args_env", "bombs", "exit3", "files", "hello", "idle", "mounted", "spin", "stdio", "tty")
WASM = ("cwd_turner", "http_listen", "http_wasmedge", "probe")
NATIVE = ("http_native",)


class Kind(NamedTuple):
    """What runs in a pod of which handler. With runc it shows that the test itself is right."""

    handler: str
    suffix: str

    def program(self, name: str) -> str:
        """Where a guest is in the image."""
        return f"/{name}{self.suffix}"


KINDS = {
    "runc": Kind("runc", ""),
    "wasm": Kind("pywasm", ".wasm"),
    "native": Kind("pywasm", ""),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what CRI-O is not asked to pass."""
    for item in items if crio.DIRECTORY else ():
        name = item.nodeid.removeprefix("tests/cri/")
        for beginning, reason in crio.SKIPPED.items():
            if fnmatchcase(name, f"{beginning}*"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["runc", "pywasm"])
def handler(request: pytest.FixtureRequest) -> str:
    """The runtime handler of a pod."""
    return str(request.param)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """A container, and the pod it is in."""
    return KINDS[request.param]


def _programs() -> list[str]:
    """Where what is tested with is."""
    return [crio.DIRECTORY] if crio.DIRECTORY else bin_dirs()


def _name(programs: str) -> str:
    return "crio" if crio.DIRECTORY else version_of(programs)


@pytest.fixture(scope="session", params=_programs(), ids=_name)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node that has the images."""
    files = {f"{name}.wasm": images.File(build(name).read_bytes()) for name in BOTH + WASM}
    for name in BOTH + NATIVE:
        files[name] = images.File(build(name, native=True).read_bytes(), mode=0o755)
    files["content"] = images.File(b"the content\n")
    with CrioNode(request.param) if crio.DIRECTORY else Node(request.param or None) as node:
        node.add(pause_image())
        node.add(images.build(IMAGE, files, env=["FROM_IMAGE=yes"]))
        yield node


@pytest.fixture(scope="session")
def _connection(node: Node) -> Iterator[Kubelet]:
    connection = Kubelet(node)
    eventually(lambda: all(connection.has_image(image) for image in (PAUSE, IMAGE)))
    yield connection
    connection.close()


@pytest.fixture
def kubelet(node: Node, _connection: Kubelet) -> Iterator[Kubelet]:
    """The node's kubelet. After each test its pods are removed, and nothing is left of them."""
    yield _connection
    _connection.remove_all()
    left = [f"pod {pod.id}" for pod in _connection.list_pods()] or node.leftovers()
    if left:
        node.scrub()  # so that the next test does not fail for this one
    assert left == []
