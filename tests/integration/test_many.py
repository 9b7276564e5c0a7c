"""Two hundred containers that are alive at once, and nothing of them afterwards."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration import specs
from tests.integration.client import Client
from tests.integration.conftest import Container, Containers
from tests.integration.containerd import PYWASM, Containerd, parent_of
from tests.integration.versions import bin_dirs

LIVES = 200
AT_ONCE = 16  # calls; the containers are all there at once


@pytest.mark.parametrize("pod", ["", "crowd"])
def test_parallel_lives(
    client: Client, containers: Containers, containerd: Containerd, pod: str
) -> None:
    """With one containerd: what it does here is the same in all versions."""
    if (containerd.bin_dir or "") != bin_dirs()[0]:
        pytest.skip("takes long")
    annotations = {"io.kubernetes.cri.sandbox-id": pod} if pod else {}
    made = [
        containers.new(PYWASM, specs.usual("/idle.wasm", annotations=annotations))
        for _ in range(LIVES)
    ]

    def finish(container: Container) -> int:
        client.kill(container.name)
        status = client.wait(container.name)
        assert client.delete(container.name) == status
        return status

    with ThreadPoolExecutor(AT_ONCE) as pool:
        pids = list(pool.map(Container.run, made))
        assert len(set(pids)) == LIVES
        assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
        assert len({parent_of(pid) for pid in pids}) == (1 if pod else LIVES)
        assert set(pool.map(finish, made)) == {137}
