"""Containers that take all they can get: the node, and who is next to them, stay well.

After each, the neighbour still counts and its shim answers, and so does a container that shares the
shim of the bomb, where there is one. Native bombs are in `tests/shim/guest/test_escapes.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from proto import events_pb2, mount_pb2
from proto.api import tasks_pb2
from proto.task_pb2 import Status
from shim.engines import select
from shim.linux import mounts
from tests.guests.build import build
from tests.integration import client as api
from tests.integration import specs
from tests.integration.conftest import Container, Containers
from tests.integration.containerd import PYWASM, Containerd, eventually
from tests.shim.compiler.test_process import SLOW

MIB = 1 << 20
PATIENCE = 10.0
"""Seconds within which a shim answers, and a neighbour gets on, whatever goes on."""

api._EVENTS.setdefault("containerd.events.TaskOOM", events_pb2.TaskOOM)


class Place:
    """Makes containers of `bombs.c`, beside neighbours that count."""

    def __init__(self, client: api.Client, containers: Containers, directory: Path) -> None:
        self.client, self._containers = client, containers
        self.shared, self._counts = directory / "bombs", directory / "counts"
        for path in (self.shared, self._counts):
            path.mkdir()
        (self.shared / "bombs.wasm").write_bytes(build("bombs").read_bytes())
        (self.shared / "one").touch()
        self._neighbours: list[Container] = []

    def bomb(
        self,
        *args: str,
        module: str = "bombs.wasm",
        resources: dict[str, Any] | None = None,
        rlimits: Sequence[dict[str, Any]] = (),
        extra: Sequence[dict[str, Any]] = (),
        pod: str = "",
    ) -> Container:
        """Make a container that is not created yet."""
        annotations = {"io.kubernetes.cri.sandbox-id": pod} if pod else {}
        spec = specs.usual(f"/bombs/{module}", *args, annotations=annotations)
        spec["mounts"] = [
            {"destination": "/bombs", "source": str(self.shared), "options": ["bind", "ro"]},
            {"destination": "/counts", "source": str(self._counts), "options": ["bind"]},
            *extra,
        ]
        spec["process"]["rlimits"] = list(rlimits)
        spec["linux"]["resources"] = resources or {}
        return self._containers.new(PYWASM, spec)

    def neighbour(self, pod: str = "") -> Container:
        """Start one that is to stay well."""
        number = str(len(self._neighbours))
        made = self.bomb("count", f"/counts/{number}", pod=pod)
        self._neighbours.append(made)
        made.run()
        return made

    def check(self) -> None:
        """Raise TimeoutError, or grpc.RpcError, if a neighbour is not well."""
        for number, neighbour in enumerate(self._neighbours):
            request = tasks_pb2.GetRequest(container_id=neighbour.name)
            answer = self.client.tasks.future("Get", request).result(timeout=PATIENCE)
            assert answer.process.status == Status.RUNNING
            file = self._counts / str(number)
            eventually(file.exists, PATIENCE)
            before = file.read_text()
            eventually(lambda f=file, b=before: f.read_text() != b, PATIENCE)  # type: ignore[misc]


@pytest.fixture
def place(client: api.Client, containers: Containers, tmp_path: Path) -> Iterator[Place]:
    """With one neighbour, that is well before and after."""
    made = Place(client, containers, tmp_path)
    made.neighbour()
    made.check()
    yield made
    made.check()


def said(container: Container) -> Callable[[], str]:
    """Give a container a FIFO for its stdout; the function returns what is in it, at its end."""
    container.fifos("stdout")
    fd = os.open(container.stdio["stdout"], os.O_RDONLY | os.O_NONBLOCK)

    def read() -> str:
        with open(fd, "rb") as file:
            return file.read().decode()

    return read


def test_memory(place: Place, events: api.Events) -> None:
    limit = {"memory": {"limit": 64 * MIB, "swap": 64 * MIB}}
    bomb = place.bomb("memory", "1024", resources=limit)
    bomb.run()
    assert place.client.wait(bomb.name) == 128 + signal.SIGKILL
    topics = [topic for topic, _ in events.until(bomb.name, "/tasks/exit")]
    assert topics.index("/tasks/oom") < topics.index("/tasks/exit")


def test_memory_of_the_module_alone(place: Place) -> None:
    """What it touches is counted, not what it might: the same bomb, of a size that fits."""
    bomb = place.bomb("memory", "16", resources={"memory": {"limit": 64 * MIB}})
    read = said(bomb)
    bomb.run()
    assert place.client.wait(bomb.name) == 0
    assert read() == "it had all of it\n"


def test_a_module_that_takes_minutes_to_compile(place: Place) -> None:
    """Its pod answers meanwhile; and who gives up on it, and tries again, finds it compiled."""
    place.neighbour(pod="pod")
    # What is hard for one engine is refused by, or easy for, the other: the first one has this.
    (place.shared / "slow.wasm").write_bytes(SLOW[select().name] + b"\0\4\1x" + os.urandom(2))
    bomb = place.bomb(module="slow.wasm", pod="pod")
    rootfs = place.client.prepare(bomb.name, bomb.image.chain_id)
    request = tasks_pb2.CreateTaskRequest(container_id=bomb.name, rootfs=rootfs)
    methods = tasks_pb2.DESCRIPTOR.services_by_name["Tasks"].methods_by_name
    stub = place.client.stub(methods["Create"])
    creating = stub.future(request, timeout=2, metadata=place.client.metadata)
    eventually(lambda: compilers(place.client.containerd))
    place.check()
    assert not creating.done()
    with pytest.raises(grpc.RpcError) as caught:
        creating.result()
    assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN)
    place.check()
    (compiler,) = compilers(place.client.containerd)
    again = place.bomb(module="slow.wasm", pod="pod")
    again.run()
    assert place.client.wait(again.name) == 0
    assert not os.path.exists(f"/proc/{compiler}")
    assert compilers(place.client.containerd) == []


def compilers(containerd: Containerd) -> list[int]:
    """Pids of compilers at work."""
    found = []
    for pid in containerd.processes():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == "pywasm-compiler\n":
                found.append(pid)
    return found


@pytest.mark.parametrize(("limit", "opened"), [(1024, False), (12_000, True)])
def test_open_files(place: Place, limit: int, opened: bool) -> None:
    rlimit = {"type": "RLIMIT_NOFILE", "soft": limit, "hard": limit}
    bomb = place.bomb("files", "10000", rlimits=[rlimit])
    read = said(bomb)
    bomb.run()
    assert place.client.wait(bomb.name) == 0
    count, _, reason = read().strip().partition(" ")
    if opened:
        assert (count, reason) == ("10000", "")
    else:
        assert int(count) < limit
        assert reason == "No file descriptors available"


def test_a_full_tmpfs(place: Place) -> None:
    options = ["size=1m", "mode=1777"]
    tmpfs = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options}
    bomb = place.bomb("disk", "/tmp/all", extra=[tmpfs])
    read = said(bomb)
    bomb.run()
    assert place.client.wait(bomb.name) == 0
    assert read() == f"{MIB} No space left on device\n"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    mounts.mount("small", str(path), "tmpfs", 0, "size=1m,mode=755")
    yield path
    mounts.umount(str(path), mounts.MNT_DETACH)


def test_a_full_rootfs(place: Place, small: Path) -> None:
    bomb = place.bomb("disk", "/all")
    read = said(bomb)
    (small / "upper").mkdir()
    (small / "work").mkdir()
    snapshot = place.client.prepare(bomb.name, bomb.image.chain_id)
    lower = next(o for m in snapshot for o in m.options if o.startswith("lowerdir="))
    options = [f"upperdir={small}/upper", f"workdir={small}/work", lower]
    overlay = mount_pb2.Mount(type="overlay", source="overlay", options=options)
    place.client.create(bomb.name, [overlay], **bomb.stdio)
    place.client.start(bomb.name)
    assert place.client.wait(bomb.name) == 0
    written, _, reason = read().strip().partition(" ")
    assert reason == "No space left on device"
    assert 0 < int(written) <= MIB
    place.client.delete(bomb.name)


def test_no_room_for_artifacts(place: Place) -> None:
    """A module that has never been compiled runs all the same, and the next time too."""
    state = place.client.containerd.cache_dir
    wasm = build("bombs").read_bytes()
    # A custom section, which is the last thing in it, makes it another module.
    (place.shared / "new.wasm").write_bytes(wasm + b"\0\x12\1x" + os.urandom(16))
    mounts.mount("full", state, "tmpfs", 0, "size=32k,mode=700")
    try:
        for _ in range(2):
            bomb = place.bomb("files", "1", module="new.wasm")
            read = said(bomb)
            bomb.run()
            assert place.client.wait(bomb.name) == 0
            assert read() == "1 \n"
            place.client.delete(bomb.name)
        kept = [path for path in Path(state).rglob("*") if path.is_file() and path.stat().st_size]
        assert kept == []
    finally:
        mounts.umount(state, mounts.MNT_DETACH)


def test_output_that_nobody_reads(place: Place) -> None:
    """It waits, and so does nobody else; nothing is kept for it but the FIFO."""
    place.neighbour(pod="pod")
    bomb = place.bomb("stream", pod="pod")
    bomb.fifos("stdout")
    fd = os.open(bomb.stdio["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    pid = bomb.run()
    eventually(lambda: state_of(pid) == "S")
    place.check()
    with open(fd, "rb", buffering=0) as file:
        assert len(file.read(4096) or b"") == 4096
        eventually(lambda: state_of(pid) == "S")
        place.check()
        place.client.kill(bomb.name)
        assert place.client.wait(bomb.name) == 128 + signal.SIGKILL
        rest = 0
        while chunk := file.read(1 << 16):
            rest += len(chunk)
    assert 0 < rest <= 2 << 16


def state_of(pid: int) -> str:
    """As ps shows it."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_tiny_writes(place: Place) -> None:
    bomb = place.bomb("tiny", "500000")
    bomb.fifos("stdout")
    fd = os.open(bomb.stdio["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    bomb.create()
    os.set_blocking(fd, True)
    place.client.start(bomb.name)
    count = 0
    with open(fd, "rb", buffering=0) as file:
        while chunk := file.read(1 << 16):
            count += len(chunk)
    assert count == 500_000
    assert place.client.wait(bomb.name) == 0
