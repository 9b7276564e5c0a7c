"""A node whose runtime `pywasm install` has registered, in a configuration that names none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shim.node import containerd, doctor, registration
from shim.node.containerd_config import ConfigurationError, Runtime, install, load
from tests.cri.kubelet import Kubelet
from tests.cri.node import PAUSE, Node, pause_image
from tests.guests.build import build
from tests.integration import images
from tests.integration.containerd import eventually
from tests.integration.versions import bin_dirs, version_of

IMAGE = "localhost/hello:1"


class BareNode(Node):
    """Without the runtimes of other tests, runc among them; and as somebody has changed it."""

    def __enter__(self) -> BareNode:
        return self

    @property
    def config(self) -> Path:
        """The configuration file."""
        return Path(self.directory, "config.toml")

    def configuration(self) -> str:
        """What its configuration file says."""
        if self.config.exists():
            return self.config.read_text()
        text = super().configuration()
        return text[: text.index("    default_runtime_name =")]


class RegisteredNode(BareNode):
    """With ours."""

    def configuration(self) -> str:
        """What its configuration file says."""
        path = Path(self.directory, "registered.toml")
        path.write_text(super().configuration())
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


@pytest.fixture(params=bin_dirs(), ids=version_of)
def bare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[BareNode]:
    with BareNode(request.param or None) as node:
        Kubelet(node).close()  # which waits until it is ready
        os.mkdir(f"{node.directory}/bin")
        path = f"{node.directory}/bin:{node.env['PATH']}"
        monkeypatch.setattr(containerd, "search_path", lambda _pid: path)
        monkeypatch.setattr(doctor, "KUBELETS", (node.directory,))
        monkeypatch.setenv("PYWASM_RUN", node.run_dir)
        monkeypatch.setenv("PYWASM_STATE", node.cache_dir)
        yield node


def test_it_counts_what_the_containerd_that_runs_knows(
    bare: BareNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarted = []

    def restart(unit: str) -> None:
        restarted.append(unit)
        bare.end()
        bare.start()

    def report() -> str:
        said: list[str] = []
        doctor.report(at, "pywasm", said.append)
        return "\n".join(said)

    monkeypatch.setattr(containerd, "restart", restart)
    binary = os.path.join(bare.bin_dir or "/usr/bin", "containerd")
    at = registration.Node(str(bare.config), f"{bare.directory}/bin", binary)
    with_restart = at._replace(unit="a-unit")
    said: list[str] = []
    assert "FAIL  " + str(bare.config) in report()

    # Whoever registered it did not live to restart containerd.
    registration.register(at, Runtime(), said.append)
    stale = 'does not know runtime "pywasm": it has to be restarted'
    assert said[-1].endswith(stale)
    assert f"FAIL  the containerd that runs (pid {bare._pid}) {stale}" in report()
    with pytest.raises(ConfigurationError, match=stale):
        registration.register(at, Runtime(), said.append, verify=True)
    assert restarted == []

    registration.register(with_restart, Runtime(), said.append)
    assert restarted == ["a-unit"]
    registration.register(with_restart, Runtime(), said.append, verify=True)
    assert restarted == ["a-unit"]
    assert f'ok    the containerd that runs (pid {bare._pid}) knows runtime "pywasm"' in report()

    # An older installation's table.
    other = Runtime(options={"SystemdCgroup": True})
    registration.register(at, other, said.append)
    assert "FAIL" in report()
    assert 'knows runtime "pywasm" as it was before' in report()
    registration.register(with_restart, other, said.append)
    assert restarted == ["a-unit"] * 2
    registration.register(with_restart, Runtime(), said.append)
    assert restarted == ["a-unit"] * 3
    assert "FAIL" not in report()
    assert "SystemdCgroup" not in bare.config.read_text()


def test_a_containerd_without_kubernetes_is_a_warning(bare: BareNode) -> None:
    at = registration.Node(str(bare.config), containerd=f"{bare.bin_dir or '/usr/bin'}/containerd")
    plugin = '"io.containerd.grpc.v1.cri"'
    text = bare.config.read_text()
    bare.config.write_text(
        text.replace("disabled_plugins = [", f"disabled_plugins = [\n  {plugin},")
    )
    said: list[str] = []
    doctor.report(at, "pywasm", said.append)
    (line,) = [line for line in said if "disabled_plugins" in line]
    assert line.startswith("warn  for ctr, nerdctl and Docker alone: ")
    with pytest.raises(ConfigurationError, match="disabled_plugins"):
        registration.register(at, Runtime(), said.append, verify=True)
