"""Compilations as the shim has them: real compilers, at most some at a time, and none for ever."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from resource import struct_rusage
from typing import Any

import pytest

from shim.compiler import process as compiler
from shim.daemon.containers import artifacts as module
from shim.daemon.containers.artifacts import Artifacts
from shim.daemon.log import Logger
from shim.engines import engines
from shim.engines.base import ModuleError
from shim.engines.cache import SHARED, Artifact, ArtifactCache, Refusal, key, tenant
from shim.engines.snapshot import seal
from shim.engines.text import assembled
from shim.guest import control
from tests.shim.daemon.patience import until

OWNER = tenant("n/")
WASM = assembled(b'(module (func (export "_start")))')


class Place:
    """A cache, and an engine whose compiler is a function."""

    def __init__(self, directory: Path) -> None:
        self.artifacts = Artifacts(
            str(directory / "state"), "n", "", Logger(str(directory), debug=False)
        )
        self.directory = directory / "state" / "artifacts"

    def make(self, number: int, wasm: bytes = WASM) -> "asyncio.Task[Artifact | Refusal]":
        async def made() -> Artifact | Refusal:
            fd = os.memfd_create("module", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.write(fd, wasm)
            seal(fd)
            try:
                request = control.Compile("test", key(bytes([number]) * 32, ""), "_start")
                return await self.artifacts.make(OWNER, request, fd)
            finally:
                os.close(fd)

        return asyncio.ensure_future(made())


def compilers() -> list[int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [
        int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "pywasm-compiler\n"
    ]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))
    yield made
    assert compilers() == []
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert [name for name in os.listdir(made.directory) if name.startswith(".")] == []
    made.artifacts.close()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[bytes], bytes]], None]:
    def be(compile: Callable[[bytes], bytes]) -> None:
        class Engine:
            name = "test"
            version = "1"
            host = engines()[0].host

        made: Any = Engine()
        made.compile = compile
        monkeypatch.setattr(module, "select", lambda name: made)

    return be


def sleep(wasm: bytes) -> bytes:
    time.sleep(60)
    return wasm


def double(wasm: bytes) -> bytes:
    return wasm * 2


async def test_an_artifact_belongs_to_who_asked(place: Place, engine: Any) -> None:
    engine(double)
    made = await place.make(1)
    assert isinstance(made, Artifact)
    assert made.read() == WASM * 2
    assert os.fstat(made.fd).st_gid == OWNER
    made.close()


def test_tenants(tmp_path: Path) -> None:
    log = Logger(str(tmp_path), debug=False)
    k8s, other = (Artifacts(str(tmp_path / "state"), name, "", log) for name in ("k8s.io", "n"))
    containerd = {"io.kubernetes.cri.sandbox-namespace": "default"}
    crio = {
        "io.kubernetes.cri-o.ContainerType": "container",
        "io.kubernetes.pod.namespace": "default",
    }
    assert k8s.owner(containerd) == k8s.owner(crio) == tenant("k8s.io/default")
    assert k8s.owner(containerd | {"io.kubernetes.pod.namespace": "x"}) == k8s.owner(containerd)
    # All annotations of a pod come with CRI-O, and its own last.
    assert k8s.owner({"io.kubernetes.cri.sandbox-namespace": "x"} | crio) == k8s.owner(crio)
    numbers = {k8s.owner(containerd), k8s.owner({}), other.owner(containerd), other.owner({})}
    assert len(numbers | {SHARED, 0}) == 6
    k8s.close()
    other.close()


@pytest.mark.parametrize("stopped", [False, True])
async def test_the_time_is_the_shims_to_limit(
    place: Place, engine: Any, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """One that had been stopped had been a Create that never ended."""
    limits = compiler.Limits(time=1)
    monkeypatch.setattr(compiler.Limits, "for_size", lambda self, size: limits)
    engine(sleep)
    making = place.make(1)
    await until(lambda: bool(compilers()))
    if stopped:
        os.kill(compilers()[0], signal.SIGSTOP)
    with pytest.raises(ModuleError, match=r"^compilation exceeded its limit of 1 s$"):
        await making


async def test_no_more_than_some_at_a_time(place: Place, engine: Any) -> None:
    engine(sleep)
    making = [place.make(number) for number in range(6)]
    await until(lambda: len(compilers()) == 2)
    for _ in range(50):
        await asyncio.sleep(0.002)
        assert len(compilers()) <= 2
    drafts = [name for name in os.listdir(place.directory) if name.startswith(".draft-")]
    assert len(drafts) == 2
    for each in making:
        each.cancel()
    results = await asyncio.gather(*making, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def test_who_gives_up_does_not_stop_the_loop(
    place: Place, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed compiler is reaped when it has ended; that takes as long as the kernel takes."""
    engine(sleep)
    making = asyncio.ensure_future(place.make(1))
    await until(lambda: len(compilers()) == 1)
    blocking = []
    really_wait4 = os.wait4

    def wait4(pid: int, options: int) -> tuple[int, int, struct_rusage]:
        blocking.append(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None)
        return really_wait4(pid, options)

    monkeypatch.setattr(os, "wait4", wait4)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert blocking == [False]
    assert compilers() == []


async def test_an_artifact_out_of_all_proportion_to_its_module(place: Place, engine: Any) -> None:
    engine(lambda wasm: bytes(33 << 20))
    refused = await place.make(1)
    assert isinstance(refused, Refusal)
    assert f"its limit of {(32 << 20) + 64 * len(WASM)} bytes of artifact" in refused.reason
    larger = await place.make(2, WASM + b"\0\x80\x80\x40" + bytes(1 << 20))
    assert isinstance(larger, Artifact)
    assert larger.length == 33 << 20
    larger.close()


async def test_where_there_is_no_room_for_a_draft_it_is_made_in_memory(
    place: Place, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine(double)
    monkeypatch.setattr(
        module,
        "ArtifactCache",
        lambda *args, **more: ArtifactCache(*args, **more, max_total=1 << 20),
    )
    made = await place.make(1)
    assert isinstance(made, Artifact)
    assert made.name in os.listdir(place.directory)
    assert os.fstat(made.fd).st_gid == OWNER
    made.close()
