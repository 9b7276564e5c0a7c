"""Who finds out what a container is, and what that leaves for its runtime."""

import os
import shutil
import struct
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from proto import task_v2_pb2 as api
from proto.mount_pb2 import Mount
from shim.linux.cgroups import trees
from shim.linux.libc import LIBC
from shim.ttrpc import Code, RpcError
from tests.guests.build import build
from tests.shim.daemon.containers.test_native import HANDLER, create, left, mountinfo, spec, waiting
from tests.shim.daemon.patience import until
from tests.shim.task_api import POD, Container, Shim, call

_IN_CREATE, _EVENT = 0x100, struct.Struct("iIII")

only_v2 = all(tree.is_v2 for tree in trees.hierarchies())


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("exit3", "hello"))
    for name in ("hello", "idle"):
        shutil.copy(build(name, native=True), started.rootfs / name)
    for name in ("proc", "dev", "volume"):
        (started.rootfs / name).mkdir()
    yield started
    await started.close()
    assert not [line for line in mountinfo() if str(tmp_path) in line]


class Births:
    """Counts how often a directory of some name is made in others."""

    def __init__(self, places: list[str]) -> None:
        self._fd = LIBC.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        for place in places:
            assert LIBC.inotify_add_watch(self._fd, os.fsencode(place), _IN_CREATE) >= 0

    def count(self, name: str) -> list[int]:
        """How often in each place; once only, and then it watches no more."""
        counts: dict[int, int] = {}
        try:
            while data := os.read(self._fd, 1 << 16):
                while data:
                    number, _, _, length = _EVENT.unpack_from(data)
                    found = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                    data = data[_EVENT.size + length :]
                    counts[number] = counts.get(number, 0) + (os.fsdecode(found) == name)
        except BlockingIOError:
            pass
        os.close(self._fd)
        return list(counts.values())


@pytest.mark.skipif(only_v2, reason="a guest is born in a v2 cgroup")
@pytest.mark.parametrize("handler", ["auto", "native"])
async def test_whoever_finds_it_native_has_made_no_cgroup(shim: Shim, handler: str) -> None:
    path = f"/pywasm-test-{uuid.uuid4().hex[:12]}"
    births = Births([tree.mount for tree in trees.hierarchies()])
    container = await create(
        shim, "x", "/hello", annotations={HANDLER: handler}, linux={"cgroupsPath": path}
    )
    assert (await container.run()).stdout == "hello from pywasm\n"
    assert set(births.count(path[1:])) == {1}  # the runtime's own
    assert left(shim, "x") == []


Fill = Callable[[Path, Path], object]


def native_in_the_volume(rootfs: Path, volume: Path) -> None:
    shutil.copy(rootfs / "hello", volume / "run")


def module_in_the_volume(rootfs: Path, volume: Path) -> None:
    shutil.copy(rootfs / "exit3.wasm", volume / "run")


def module_over_native(rootfs: Path, volume: Path) -> None:
    module_in_the_volume(rootfs, volume)
    shutil.copy(rootfs / "hello", rootfs / "volume" / "run")


def module_before_native(rootfs: Path, volume: Path) -> None:
    module_in_the_volume(rootfs, volume)
    shutil.copy(rootfs / "hello", rootfs / "run")


def link_to_what_is_covered(rootfs: Path, volume: Path) -> None:
    module_over_native(rootfs, volume)
    (rootfs / "run").symlink_to("/volume/run")


@pytest.mark.parametrize(
    ("fill", "program", "outcome"),
    [
        (native_in_the_volume, "/volume/run", (0, "hello from pywasm\n")),
        (module_in_the_volume, "/volume/run", (3, "")),
        (module_over_native, "/volume/run", (3, "")),
        (module_before_native, "run", (3, "")),
        (module_before_native, "/run", (0, "hello from pywasm\n")),
        (link_to_what_is_covered, "/run", (3, "")),
    ],
)
async def test_a_volume_has_its_say(
    shim: Shim, fill: Fill, program: str, outcome: tuple[int, str]
) -> None:
    volume = shim.directory / "volume"
    volume.mkdir()
    fill(shim.rootfs, volume)
    document: dict[str, Any] = spec(program, process={"env": ["PATH=/volume:/"]})
    document["mounts"].append(
        {"destination": "/volume/", "type": "bind", "source": str(volume), "options": ["rbind"]}
    )
    shim.bundle("x", **document)
    ended = await (await Container.create(shim, "x")).run()
    assert (ended.status, ended.stdout) == outcome
    assert left(shim, "x") == []


@pytest.mark.parametrize("handler", ["auto", "native"])
async def test_an_overlay_is_mounted_once_and_let_go_of_in_a_pod(shim: Shim, handler: str) -> None:
    holder = await waiting(shim, "pause", "/idle", annotations=POD)
    answer = await call(holder.client, "Connect", api.ConnectRequest(), api.ConnectResponse)
    descriptors = f"/proc/{answer.shim_pid}/fd"
    before = len(os.listdir(descriptors))
    upper, work = shim.directory / "upper", shim.directory / "work"
    upper.mkdir()
    work.mkdir()
    layers = [f"lowerdir={shim.rootfs}", f"upperdir={upper}", f"workdir={work}"]
    overlay = Mount(type="overlay", source="overlay", options=layers)
    for number in range(3):
        id = f"n{number}"
        shim.bundle(id, **spec("/hello", annotations=POD | {HANDLER: handler}))
        container = await Container.create(shim, id, holder.client, rootfs=[overlay])
        assert sum(f" {shim.directory}/{id}/rootfs " in line for line in mountinfo()) == 1
        assert (await container.run()).stdout == "hello from pywasm\n"
        assert left(shim, id) == []
    await until(lambda: len(os.listdir(descriptors)) == before)
    await holder.kill()
    await holder.ended()


def call_program(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def make_device(image: Path, rootfs: Path) -> str:
    """A loop device with an ext4 that has the content of `rootfs`."""
    with image.open("wb") as file:
        file.truncate(8 << 20)
    call_program("mkfs.ext4", "-q", "-d", str(rootfs), str(image))
    return call_program("losetup", "--find", "--show", str(image))


@pytest.mark.skipif(
    not os.path.exists("/dev/loop-control") or shutil.which("mkfs.ext4") is None,
    reason="there are no loop devices, or there is nothing to format them",
)
@pytest.mark.parametrize(
    ("program", "handler"), [("/hello", "auto"), ("/hello", "native"), ("/hello.wasm", "auto")]
)
async def test_a_rootfs_on_a_device(shim: Shim, program: str, handler: str) -> None:
    """It is mounted where that may take its time, and nothing holds it after Delete."""
    device = make_device(shim.directory / "image", shim.rootfs)
    try:
        shim.bundle("x", **spec(program, annotations={HANDLER: handler}))
        rootfs = [Mount(type="ext4", source=device)]
        container = await Container.create(shim, "x", rootfs=rootfs)
        assert (await container.run()).stdout == "hello from pywasm\n"
        # Others' mount namespaces may have been copied from ours in between.
        await until(lambda: not os.path.exists(f"/sys/fs/ext4/{os.path.basename(device)}"))
    finally:
        call_program("losetup", "--detach", device)


@pytest.mark.parametrize(
    ("rootfs", "code", "reason"),
    [
        (Mount(type="nothing", source="none"), Code.UNKNOWN, "rootfs: mount nothing"),
        (Mount(type="overlay", source="o", options=["lowerdir=/none"]), Code.UNKNOWN, "rootfs: "),
        (
            Mount(type="tmpfs", source="t", options=["uidmap=0:0:1", "gidmap=0:0:1"]),
            Code.INVALID_ARGUMENT,
            "a tmpfs is not mounted with ids mapped",
        ),
    ],
)
@pytest.mark.parametrize("handler", ["auto", "native"])
async def test_a_rootfs_that_cannot_be_mounted(
    shim: Shim, handler: str, rootfs: Mount, code: Code, reason: str
) -> None:
    shim.bundle("x", **spec("/hello", annotations={HANDLER: handler}))
    with pytest.raises(RpcError) as raised:
        await Container.create(shim, "x", rootfs=[rootfs])
    assert raised.value.code == code
    assert reason in raised.value.message
    assert left(shim, "x") == []
