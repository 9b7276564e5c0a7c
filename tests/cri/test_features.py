"""What the kubelet is told that a runtime class can do, from what the runtime says of itself."""

from __future__ import annotations

import pytest

from proto.api import cri_pb2 as cri
from tests.cri import crio
from tests.cri.kubelet import Kubelet
from tests.cri.node import Node
from tests.integration.versions import version_of


def test_of_a_handler(kubelet: Kubelet, node: Node) -> None:
    """As far as native containers go, it is what runc can."""
    found = kubelet.runtime.Status(cri.StatusRequest()).runtime_handlers
    handlers = {handler.name: handler.features for handler in found}
    if not crio.DIRECTORY and version_of(node.bin_dir or "").split(".") < ["2", "3"]:
        pytest.skip("this containerd asks no runtime but runc")
    assert handlers["pywasm"].recursive_read_only_mounts
    assert handlers["pywasm"] == handlers["runc"]
