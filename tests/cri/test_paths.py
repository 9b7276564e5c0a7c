"""What a pod's author can set, and a pod's program do, to have a path lead to the node."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.cri.conftest import IMAGE
from tests.cri.kubelet import NODE, POD, Kubelet
from tests.cri.node import Node

PROC = {"dev.pywasm.kernel-filesystems": "proc"}
SECRET = "of the node alone"


@pytest.fixture
def secret(node: Node) -> Path:
    path = Path(node.directory) / "secret"
    path.write_text(SECRET)
    return path


@pytest.mark.parametrize("user", [(0, 0), (65532, 65532)])
@pytest.mark.parametrize("pids", [POD, NODE])
def test_a_working_directory_that_is_a_link_of_the_kernel(
    kubelet: Kubelet, secret: Path, user: tuple[int, int], pids: int
) -> None:
    pod = kubelet.run_pod("pywasm", pid=pids, annotations=PROC)
    for cwd in ("/proc/1/root", "/proc/self/cwd", "/proc/self/fd/8"):
        with pytest.raises(grpc.RpcError, match=f"process.cwd: {cwd}: "):
            pod.run(IMAGE, "/probe.wasm", "read", f".{secret}", cwd=cwd, user=user)


@pytest.mark.parametrize("user", [(0, 0), (65532, 65532)])
def test_one_that_is_turned_to_each_exec(
    kubelet: Kubelet, tmp_path: Path, secret: Path, user: tuple[int, int]
) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "w").symlink_to(".")
    pod = kubelet.run_pod("pywasm", annotations=PROC)
    container = pod.run(
        *(IMAGE, "/cwd_turner.wasm", "/t", ".."),
        cwd="/t/w",
        mounts=[(str(tmp_path), "/t", False)],
        user=user,
        capabilities={"drop_capabilities": ["ALL"]} if user[0] else None,
    )

    def attempt(_: int) -> str:
        made = f".{secret.parent}/made"
        try:
            return container.exec_sync("/probe.wasm", "read", f".{secret}", "write", made)[1]
        except grpc.RpcError as error:
            return str(error.details())

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(attempt, range(40)))
    assert container.status().exit_code == 0
    assert not [words for words in said if SECRET in words or "ok" in words.split()]
    assert not (secret.parent / "made").exists()
