import fcntl
import json
import multiprocessing
import os
import socket
import subprocess
from pathlib import Path

import pytest

from proto.bootstrap_pb2 import BootstrapParams, BootstrapResult
from shim.daemon import address
from shim.daemon.invocation import Invocation
from shim.linux.cgroups import Cgroup
from shim.linux.clone import CLONE_NEWNET, unshare


def invocation(id: str = "x", **more: object) -> Invocation:
    return Invocation(
        cwd="/",
        ttrpc_address="",
        max_version=0,
        state_directory="",
        config="",
        stdin=b"",
        id=id,
        namespace="n",
        containerd_address="/run/c.sock",
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(autouse=True)
def _nobody_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever has the socket be one who answers; test_joining.py has real answers."""
    monkeypatch.setattr(address, "join", lambda path, _: address._listening(path))


def test_second_start_of_a_group_finds_the_first(tmp_path: Path) -> None:
    first = address.claim(str(tmp_path), invocation("a"), "pod")
    second = address.claim(str(tmp_path), invocation("b"), "pod")
    assert first.listener is not None
    assert second.listener is None
    assert second.address == first.address
    first.listener.close()


def test_other_groups_have_other_addresses(tmp_path: Path) -> None:
    claims = [address.claim(str(tmp_path), invocation(), group) for group in ("a", "b")]
    assert claims[0].path != claims[1].path
    for claim in claims:
        assert claim.listener is not None
        claim.listener.close()


GROUPS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")


def test_a_group_is_what_annotations_name() -> None:
    assert address.group({}, "x") == "x"
    assert address.group({GROUPS[1]: "pod"}, "x") == "pod"
    assert address.group(dict(zip(GROUPS, ("a", "b"), strict=True)), "x") == "a"
    assert address.group({GROUPS[0]: "", GROUPS[1]: "b"}, "x") == "b"


@pytest.mark.parametrize("name", GROUPS)
def test_under_crio_nobody_names_another_shim(name: str) -> None:
    """There an annotation may be the pod's author's, whatever it is called."""
    crio = {"io.kubernetes.cri-o.ContainerType": "sandbox"}
    assert address.group(crio | {name: "another's"}, "x") == "x"


def test_a_dead_shims_socket_is_replaced(tmp_path: Path) -> None:
    first = address.claim(str(tmp_path), invocation(), "pod")
    assert first.listener is not None
    first.listener.close()
    second = address.claim(str(tmp_path), invocation(), "pod")
    assert second.path == first.path
    assert second.listener is not None
    second.listener.close()


def _claim(directory: str, barrier: object, results: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    claim = address.claim(directory, invocation(), "pod")
    results.put((claim.path, claim.listener is not None))  # type: ignore[attr-defined]
    barrier.wait()  # type: ignore[attr-defined]


def test_one_of_many_simultaneous_starts_gets_the_socket(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    count = 8
    barrier, results = context.Barrier(count), context.Queue()
    processes = [
        context.Process(target=_claim, args=(str(tmp_path), barrier, results)) for _ in range(count)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    assert len({path for path, _ in found}) == 1
    assert sorted(owner for _, owner in found) == [False] * (count - 1) + [True]


def test_a_socket_in_use_is_not_dead(tmp_path: Path) -> None:
    claim = address.claim(str(tmp_path), invocation(), "pod")
    assert claim.listener is not None
    address.release_dead(claim.path)
    assert os.path.exists(claim.path)
    claim.listener.close()
    address.release_dead(claim.path)
    assert not os.path.exists(claim.path)


def test_release_waits_for_nobody(tmp_path: Path) -> None:
    """Whoever has the lock may be stopped, and a shim's loop has others to serve."""
    claim = address.claim(str(tmp_path), invocation(), "pod", "/a/cgroup")
    assert claim.listener is not None
    directory = os.open(tmp_path / "s", os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    address.release(claim.path)
    assert os.listdir(directory) == []
    os.close(directory)
    claim.listener.close()


def test_refuses_a_directory_that_others_may_write_to(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o777)
    with pytest.raises(PermissionError, match="only its owner"):
        address.claim(str(tmp_path), invocation(), "pod")


def test_answers_each_generation_of_containerd_in_its_form() -> None:
    assert address.write_answer(invocation(), "unix:///a") == b"unix:///a"
    of_1_7 = invocation()
    of_1_7.max_version = 2
    assert json.loads(address.write_answer(of_1_7, "unix:///a")) == {
        "version": 2, "address": "unix:///a", "protocol": "ttrpc",
    }  # fmt: skip
    of_2_3 = invocation(bootstrap=BootstrapParams(instance_id="x", namespace="n"))
    result = BootstrapResult.FromString(address.write_answer(of_2_3, "unix:///a"))
    assert (result.version, result.address, result.protocol) == (3, "unix:///a", "ttrpc")


def killed(directory: Path, group: str, cgroups_path: str = "") -> str:
    """The socket of a shim that was killed."""
    claim = address.claim(str(directory), invocation(), group, cgroups_path)
    assert claim.listener is not None
    claim.listener.close()
    return claim.path


def test_a_sweep_takes_what_nobody_listens_on(tmp_path: Path) -> None:
    address.sweep(str(tmp_path))  # there is no such directory yet
    alive = address.claim(str(tmp_path), invocation(), "alive", "/nowhere")
    assert alive.listener is not None
    paths = {"a": "", "b": "/none", "c": ".."}
    dead = [killed(tmp_path, group, path) for group, path in paths.items()]
    assert all(map(os.path.exists, dead))
    address.sweep(str(tmp_path))
    here = {alive.path, f"{alive.path}.cgroup"}
    assert {str(path) for path in (tmp_path / "s").iterdir()} == here
    address.release(alive.path)
    assert os.listdir(tmp_path / "s") == []
    alive.listener.close()


def test_a_sweep_leaves_what_another_network_namespace_listens_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, over = context.Event(), context.Event()

    def serve() -> None:
        unshare(CLONE_NEWNET)
        claim = address.claim(str(tmp_path), invocation(), "pod")
        assert claim.listener is not None
        ready.set()
        over.wait(20)

    process = context.Process(target=serve)
    process.start()
    assert ready.wait(20)
    address.sweep(str(tmp_path))
    assert len(os.listdir(tmp_path / "s")) == 1
    over.set()
    process.join()
    address.sweep(str(tmp_path))
    assert os.listdir(tmp_path / "s") == []


def test_a_sweep_waits_for_who_is_about_to_listen(tmp_path: Path) -> None:
    """Bound and not listening, as one is under the lock alone, looks like dead."""
    (tmp_path / "s").mkdir(mode=0o700)
    context = multiprocessing.get_context("fork")
    go = context.Event()

    def sweep() -> None:
        go.wait(20)
        address.sweep(str(tmp_path))

    sweeping = context.Process(target=sweep)
    sweeping.start()  # before there is a lock for it to inherit
    with socket.socket(socket.AF_UNIX) as listener:
        with address._locked(str(tmp_path / "s")):
            listener.bind(str(tmp_path / "s" / "new"))
            go.set()
            call = Path(f"/proc/{sweeping.pid}/wchan")
            while "lock" not in call.read_text():
                assert sweeping.is_alive()
            listener.listen()
        sweeping.join()
        assert sweeping.exitcode == 0
        assert os.listdir(tmp_path / "s") == ["new"]


def test_a_sweep_takes_the_cgroup_along_when_it_is_empty(tmp_path: Path) -> None:
    path = f"/pywasm-test-{os.getpid()}"
    cgroup = Cgroup.for_path(path)
    cgroup.create()
    inside = subprocess.Popen(["sleep", "60"])
    try:
        cgroup.attach(inside.pid)
        socket_path = killed(tmp_path, "pod", path)
        address.sweep(str(tmp_path))
        assert cgroup.exists()
        assert os.path.exists(socket_path)
    finally:
        inside.kill()
        inside.wait()
    address.sweep(str(tmp_path))
    assert not cgroup.exists()
    assert os.listdir(tmp_path / "s") == []
