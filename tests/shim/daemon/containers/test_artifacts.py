"""Compilations as the shim has them: real compilers, at most some at a time, and none for ever."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from shim.compiler import claims
from shim.compiler import process as compiler
from shim.compiler.cgroup import PARENT
from shim.daemon.containers import artifacts as module
from shim.daemon.containers.artifacts import Artifacts
from shim.daemon.log import Logger
from shim.engines import engines
from shim.engines.base import ModuleError, TryAgainError
from shim.engines.cache import SHARED, Artifact, ArtifactCache, key, tenant
from shim.engines.snapshot import seal
from shim.engines.text import assembled
from shim.guest import control
from tests.shim.daemon.patience import until

OWNER = tenant("n/")
WASM = assembled(b'(module (func (export "_start")))')


class Place:
    """A cache, and an engine whose compiler is a function."""

    def __init__(self, directory: Path) -> None:
        os.mkfifo(directory / "log")
        self.log = os.open(directory / "log", os.O_RDONLY | os.O_NONBLOCK)
        # Two shims, as far as it concerns them: what they have in common is in that directory.
        self.artifacts, self.others = (
            Artifacts(
                str(directory / "state"),
                str(directory / "run"),
                "n",
                "",
                Logger(str(directory), debug=False),
            )
            for _ in range(2)
        )
        self.directory = directory / "state" / "artifacts"
        self.claims = directory / "run" / "compiling"

    def make(
        self,
        number: int,
        wasm: bytes = WASM,
        *,
        by: Artifacts | None = None,
        owner: int = OWNER,
        function: str = "_start",
    ) -> "asyncio.Task[Artifact]":
        async def made() -> Artifact:
            fd = os.memfd_create("module", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.write(fd, wasm)
            seal(fd)
            try:
                request = control.Compile("test", key_of(number), function)
                return await (by or self.artifacts).make(owner, request, fd)
            finally:
                os.close(fd)

        return asyncio.ensure_future(made())

    def kept(self, number: int) -> bool:
        return (self.directory / key_of(number).hex()).exists()

    def logged(self) -> str:
        return os.read(self.log, 1 << 16).decode()


def key_of(number: int) -> bytes:
    return key(bytes([number]) * 32, "")


def children(name: str, of: int) -> list[int]:
    """The children of a process that are called so."""
    try:
        found = Path(f"/proc/{of}/task/{of}/children").read_text().split()
        return [int(pid) for pid in found if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"]
    except FileNotFoundError:  # one has ended meanwhile
        return children(name, of) if Path(f"/proc/{of}").exists() else []


def foremen() -> list[int]:
    return children("pywasm-foreman", os.getpid())


def compilers() -> list[int]:
    return [pid for foreman in foremen() for pid in children("pywasm-compiler", foreman)]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))
    yield made
    await until(lambda: not foremen())
    await until(lambda: sorted(os.listdir("/proc/self/fd")) == before)
    assert [name for name in os.listdir(made.directory) if name.startswith(".")] == []
    assert os.listdir(made.claims) == []
    for shim in (made.artifacts, made.others):
        shim.close()
    os.close(made.log)


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


def slowly(wasm: bytes) -> bytes:
    time.sleep(0.5)
    return wasm * 2


def double(wasm: bytes) -> bytes:
    return wasm * 2


async def test_an_artifact_belongs_to_who_asked(place: Place, engine: Any) -> None:
    engine(double)
    made = await place.make(1)
    assert made.read() == WASM * 2
    assert os.fstat(made.fd).st_gid == OWNER
    made.close()


def test_tenants(tmp_path: Path) -> None:
    log = Logger(str(tmp_path), debug=False)
    k8s, other = (
        Artifacts(str(tmp_path / "state"), str(tmp_path), name, "", log) for name in ("k8s.io", "n")
    )
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


async def end_all(making: Sequence["asyncio.Task[Artifact]"]) -> None:
    """End the compilations that have begun, and wait for nothing else."""
    for each in making:
        each.cancel()
    results = await asyncio.gather(*making, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    for pid in compilers():
        os.kill(pid, signal.SIGKILL)


async def test_no_more_than_some_at_a_time(
    place: Place, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for them, of one tenant and in all; and whether they still wait or not."""
    monkeypatch.setattr(claims, "OF_ONE", 2)
    monkeypatch.setattr(claims, "AT_ONCE", 3)
    engine(sleep)
    making = [place.make(number, by=place.others) for number in range(6)]
    await until(lambda: len(compilers()) == 2)
    for each in making:
        each.cancel()
    making += [place.make(number) for number in range(6, 9)]
    await asyncio.sleep(0.1)
    assert len(foremen()) == 2
    making += [place.make(number, owner=OWNER + number) for number in range(9, 12)]
    await until(lambda: len(compilers()) == 3)
    for _ in range(50):
        await asyncio.sleep(0.01)
        assert len(foremen()) == len(os.listdir(place.claims)) == 3
    drafts = [name for name in os.listdir(place.directory) if name.startswith(".draft-")]
    assert len(drafts) == 3
    assert "waits to be compiled, behind others" in place.logged()
    await end_all(making)


async def test_who_waited_is_next(
    place: Place, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "OF_ONE", 1)
    engine(double)
    for made in await asyncio.gather(*(place.make(number) for number in range(5))):
        made.close()


async def test_who_gives_up_stops_nothing(place: Place, engine: Any) -> None:
    engine(slowly)
    making = place.make(1)
    await until(lambda: len(compilers()) == 1)
    (foreman,) = foremen()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    await until(lambda: place.kept(1))
    await until(lambda: not Path(f"/proc/{foreman}").exists())
    said = place.logged()
    assert f"msg=compiling artifact={key_of(1).hex()} engine=test bytes={len(WASM)}" in said
    assert f"msg=compiled artifact={key_of(1).hex()}" in said


async def test_a_foreman_has_nothing_of_its_shims(place: Place, engine: Any) -> None:
    """But the module, the cache, the claim, and who to tell."""
    engine(sleep)
    making = place.make(1)
    await until(lambda: len(compilers()) == 1)
    (foreman,) = foremen()
    fds = Path(f"/proc/{foreman}/fd")
    files = {os.readlink(fd) for fd in fds.iterdir() if int(fd.name) > 2}
    kinds = {file.partition(":")[0].partition(" ")[0] for file in files}
    own = {str(path) for path in (place.directory, place.claims, place.claims / key_of(1).hex())}
    draft = {kind for kind in kinds if "/.draft-" in kind or "/#" in kind}
    assert len(draft) == 1
    cgroups = {kind for kind in kinds if kind.startswith("/sys/fs/cgroup/")}
    log = str(place.directory.parent.parent / "log")
    sockets_and_pidfds = {"socket", "anon_inode"}
    memory = {"/memfd"}
    assert kinds - draft - cgroups == own | {log} | sockets_and_pidfds | memory
    await until(lambda: f":{PARENT}/foremen\n" in Path(f"/proc/{foreman}/cgroup").read_text())
    assert os.getsid(foreman) == foreman
    assert Path(f"/proc/{foreman}/cmdline").exists()
    await end_all([making])


async def test_two_shims_that_want_the_same(place: Place, engine: Any) -> None:
    engine(slowly)
    making = [place.make(1), place.make(1), place.make(1, by=place.others)]
    await until(lambda: len(compilers()) == 1)
    late = place.make(1, by=place.others, owner=OWNER + 1)
    most = 0
    while not place.kept(1):
        most = max(most, len(foremen()))
        await asyncio.sleep(0.005)
    assert most == 1
    for made in await asyncio.gather(*making, late):
        assert made.read() == WASM * 2
        made.close()
    assert place.logged().count("is being compiled already") == 3


async def test_who_wants_the_same_hears_why_there_is_nothing(place: Place, engine: Any) -> None:
    engine(sleep)
    making = [place.make(1), place.make(1, by=place.others)]
    await until(lambda: len(compilers()) == 1)
    os.kill(compilers()[0], signal.SIGKILL)
    for each in making:
        with pytest.raises(TryAgainError, match=r"^the compiler failed \(signal 9\)$"):
            await each


async def test_where_a_foreman_is_killed_the_next_one_does_it(place: Place, engine: Any) -> None:
    engine(slowly)
    first = place.make(1)
    await until(lambda: len(compilers()) == 1)
    (foreman,), (compiler_,) = foremen(), compilers()
    second = place.make(1, by=place.others)
    os.kill(foreman, signal.SIGKILL)
    with pytest.raises(TryAgainError, match="ended from outside"):
        await first
    (await second).close()
    await until(lambda: not Path(f"/proc/{compiler_}").exists())


async def test_what_is_wrong_with_one_function_is_of_no_concern_to_others(
    place: Place, engine: Any
) -> None:
    engine(slowly)
    wrong, right = place.make(1, function="none"), place.make(1, by=place.others)
    with pytest.raises(ModuleError, match="exports no function `none`"):
        await wrong
    (await right).close()


async def test_what_an_engine_refuses_is_kept(place: Place, engine: Any) -> None:
    def refuse(wasm: bytes) -> bytes:
        raise ModuleError("no such thing")

    engine(refuse)
    for shim in (place.artifacts, place.others):
        with pytest.raises(ModuleError, match=r"^no such thing$"):
            await place.make(1, by=shim)
    assert place.logged().count("msg=compiling") == 1


async def test_an_engine_that_is_not_there_leaves_no_claim(place: Place) -> None:
    with pytest.raises(ModuleError, match="no engine 'test' here"):
        await place.make(1)


async def test_an_artifact_out_of_all_proportion_to_its_module(place: Place, engine: Any) -> None:
    engine(lambda wasm: bytes(33 << 20))
    limit = (32 << 20) + 64 * len(WASM)
    with pytest.raises(ModuleError, match=f"its limit of {limit} bytes of artifact"):
        await place.make(1)
    larger = await place.make(2, WASM + b"\0\x80\x80\x40" + bytes(1 << 20))
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
    assert made.name in os.listdir(place.directory)
    assert os.fstat(made.fd).st_gid == OWNER
    made.close()
