"""A node whose runtime `pywasm install` has registered, in a configuration that names none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shim.node.containerd_config import Runtime, install, load
from tests.cri.kubelet import Kubelet
from tests.cri.node import PAUSE, Node, pause_image
from tests.guests.build import build
from tests.integration import images
from tests.integration.containerd import eventually
from tests.integration.versions import bin_dirs, version_of

IMAGE = "localhost/hello:1"


class RegisteredNode(Node):
    """Without the runtimes of other tests, runc among them."""

    def configuration(self) -> str:
        """What its configuration file says."""
        text = super().configuration()
        path = Path(self.directory, "registered.toml")
        path.write_text(text[: text.index("    default_runtime_name =")])
        (change,) = install(load(str(path)), Runtime())
        assert change.text is not None
        return change.text


@pytest.fixture(scope="module", params=bin_dirs(), ids=version_of)
def kubelet(request: pytest.FixtureRequest) -> Iterator[Kubelet]:
    files = {
        "hello.wasm": images.File(build("hello").read_bytes()),
        "hello": images.File(build("hello", native=True).read_bytes(), mode=0o755),
    }
    with RegisteredNode(request.param or None) as node:
        for image in (pause_image(), images.build(IMAGE, files)):
            node.load(image.tar)
        connection = Kubelet(node)
        eventually(lambda: all(connection.has_image(image) for image in (PAUSE, IMAGE)))
        yield connection
        connection.remove_all()
        connection.close()
        assert node.leftovers() == []


@pytest.mark.parametrize(("handler", "program"), [("pywasm", "/hello.wasm"), ("runc", "/hello")])
def test_a_pod_runs_with_it_and_with_the_default(
    kubelet: Kubelet, handler: str, program: str
) -> None:
    pod = kubelet.run_pod(handler)
    assert pod.run(IMAGE, program).finish() == "hello from pywasm\n"


def test_annotations_of_a_pod_reach_the_shim(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod("pywasm", annotations={"dev.pywasm.no-such": "thing"})
    with pytest.raises(grpc.RpcError) as caught:
        pod.run(IMAGE, "/hello.wasm")
    assert "dev.pywasm.no-such: unknown" in str(caught.value.details())
