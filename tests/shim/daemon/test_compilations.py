"""What becomes of a compilation when those who wanted it have gone: real shims, real engines."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from proto import task_v2_pb2 as api
from shim.compiler.cgroup import PARENT
from shim.engines import engines
from shim.linux.cgroups import hierarchies
from shim.ttrpc import Client, RpcError
from tests.shim.compiler.test_process import ADD, function_of
from tests.shim.daemon.patience import until
from tests.shim.task_api import Container, Ended, Shim, call, end, processes


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path)
    # Never the same twice, and seconds long.
    module = function_of(ADD, 40_000) + b"\0\x12\1x" + os.urandom(16)
    (started.rootfs / "slow.wasm").write_bytes(module)
    yield started
    await started.close()


def named(shim: Shim, name: str) -> list[int]:
    """The processes of that name."""
    found = []
    for pid in processes(shim.env):
        try:
            comm = Path(f"/proc/{pid}/comm").read_text()
        except OSError:
            continue  # it has ended meanwhile
        if comm == f"{name}\n":
            found.append(pid)
    return found


def making(shim: Shim) -> list[int]:
    """The foremen."""
    return named(shim, "pywasm-foreman")


async def begin(shim: Shim, id: str) -> tuple[Client, asyncio.Task[Empty]]:
    """Have a container with the slow module created, until that is being compiled."""
    # One engine: where a compilation has failed the other one would be next.
    shim.bundle(id, "/slow.wasm", annotations={"dev.pywasm.engine": engines()[0].name})
    client = await shim.start(id)
    creating = asyncio.create_task(
        call(client, "Create", shim.create_request(id), Empty, timeout=60)
    )
    await until(lambda: bool(named(shim, "pywasm-compiler")))
    return client, creating


def cgroups_of(foreman: int) -> set[str]:
    """What is left of those of a foreman's compiler, in any hierarchy."""
    walks = [os.walk(tree.mount + PARENT) for tree in hierarchies()]
    names = {name for walk in walks for _, directories, _ in walk for name in directories}
    return {name for name in names if name.startswith(f"{foreman}-")}


async def nothing_is_left(shim: Shim, foreman: int) -> None:
    """Wait for its end, after which there is but the artifact."""
    await until(lambda: not Path(f"/proc/{foreman}").exists())
    assert named(shim, "pywasm-compiler") == []
    assert cgroups_of(foreman) == set()
    assert os.listdir(shim.directory / "run" / "compiling") == []
    kept = os.listdir(shim.directory / "state" / "artifacts")
    assert [name for name in kept if name.startswith(".")] == []


async def test_it_goes_on_without_its_shim_and_the_next_one_waits_for_it(shim: Shim) -> None:
    """As when a kubelet gives up after two minutes, and removes the pod."""
    _, creating = await begin(shim, "x")
    (foreman,), (first,) = making(shim), named(shim, "pywasm-shim")
    os.kill(first, signal.SIGKILL)
    with pytest.raises((RpcError, ConnectionError, EOFError)):
        await creating
    await until(lambda: not Path(f"/proc/{first}").exists())
    assert making(shim) == [foreman]

    shim.bundle("y", "/slow.wasm")
    container = await Container.create(shim, "y")
    assert await container.run() == Ended(0, "", "")
    await nothing_is_left(shim, foreman)
    await end(container.client, "y")
    # Nobody has compiled it a second time.
    assert making(shim) == []


async def test_who_gives_up_within_a_pod_finds_it_later(shim: Shim) -> None:
    """The guest is killed, as containerd has it done, and the shim goes on."""
    client, creating = await begin(shim, "x")
    (foreman,) = making(shim)
    connected = await call(client, "Connect", api.ConnectRequest(id="x"), api.ConnectResponse)
    children = f"/proc/{connected.shim_pid}/task/{connected.shim_pid}/children"
    (guest,) = {int(pid) for pid in Path(children).read_text().split()} - {foreman}
    os.kill(guest, signal.SIGKILL)
    with pytest.raises(RpcError, match="the guest ended while it was set up"):
        await creating
    assert making(shim) == [foreman]
    await nothing_is_left(shim, foreman)
    await call(client, "Create", shim.create_request("x"), Empty)
    assert making(shim) == []
    await end(client, "x")


async def test_two_that_want_the_same_at_once(shim: Shim) -> None:
    (_, first), (foreman,) = await begin(shim, "x"), making(shim)
    _, second = await begin(shim, "y")
    assert making(shim) == [foreman]
    await asyncio.gather(first, second)
    await nothing_is_left(shim, foreman)


async def test_a_foreman_that_is_killed_leaves_nothing_for_long(shim: Shim) -> None:
    _, creating = await begin(shim, "x")
    (foreman,) = making(shim)
    os.kill(foreman, signal.SIGKILL)
    with pytest.raises(RpcError, match=r"UNAVAILABLE: /slow.wasm: the compilation was ended"):
        await creating
    await until(lambda: not named(shim, "pywasm-compiler"))
    _, again = await begin(shim, "y")
    (second,) = making(shim)
    await again
    await nothing_is_left(shim, second)
    assert cgroups_of(foreman) == set()
