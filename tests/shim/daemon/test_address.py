import json
import multiprocessing
import os
from pathlib import Path

import pytest

from proto.bootstrap_pb2 import BootstrapParams, BootstrapResult
from shim.daemon import address
from shim.daemon.invocation import Invocation


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


def test_release_spares_a_socket_in_use(tmp_path: Path) -> None:
    claim = address.claim(str(tmp_path), invocation(), "pod")
    assert claim.listener is not None
    address.release(claim.path, only_if_dead=True)
    assert os.path.exists(claim.path)
    claim.listener.close()
    address.release(claim.path, only_if_dead=True)
    assert not os.path.exists(claim.path)


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
