"""Guests that do not keep to the protocol: real processes, at a real channel."""

import array
import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest

from shim.daemon.containers.artifacts import Artifacts
from shim.daemon.containers.child import Child, GuestError
from shim.daemon.log import Logger
from shim.engines.cache import ArtifactCache, key, write_artifact, write_filter
from shim.engines.snapshot import seal
from shim.guest import control
from shim.guest.arrival import arrive
from shim.linux import clone
from tests.shim.daemon.patience import until

Life: TypeAlias = Callable[[socket.socket], object]

FILTER, CODE, NEW = (key(bytes([number]) * 32, "") for number in range(3))
READY = control.Ready("none", "")


class Place:
    """Where the guests are made: this process is their shim."""

    def __init__(self, directory: Path) -> None:
        os.mkfifo(directory / "log")
        self.log_file = os.open(directory / "log", os.O_RDONLY | os.O_NONBLOCK)
        self.log = Logger(str(directory), debug=False)
        self.artifacts = Artifacts(
            str(directory / "state"), str(directory / "run"), "n", "", self.log
        )
        self.cache = directory / "state" / "artifacts"

    def close(self) -> None:
        self.artifacts.close()
        os.close(self.log_file)
        os.close(self.log._fd)

    def logged(self) -> str:
        try:
            return os.read(self.log_file, 1 << 16).decode()
        except BlockingIOError:
            return ""

    def stored(self) -> dict[str, tuple[bytes, int]]:
        return {
            path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in self.cache.iterdir()
        }

    def guest(self, life: Life, *, comes_to_others: bool = False) -> "Guest":
        ours, theirs = control.pair()

        def entry() -> None:
            ours.close()
            life(theirs)

        with theirs:
            child = clone.clone(entry)
        made = Guest(child, ours, self.artifacts, 0, self.log, comes_to_others=comes_to_others)
        made.watch()
        return made


class Guest(Child):
    async def prepare(self) -> control.Ready:
        return await self._prepare(control.Prepare([]), [])


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    made.artifacts.keep(0, FILTER, file(FILTER, write_filter, b"deny"))
    directory = os.open(made.cache, os.O_RDONLY)
    ArtifactCache(directory).store(CODE, file(CODE, write_artifact, b"code")).close()
    os.close(directory)
    before, descriptors = made.stored(), os.listdir("/proc/self/fd")
    yield made
    assert made.stored() == before
    assert sorted(os.listdir("/proc/self/fd")) == sorted(descriptors)
    made.close()


def file(name: bytes, write: Callable[[int, bytes, bytes], None], content: bytes = b"mine") -> int:
    fd = os.memfd_create("mine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    write(fd, name, content)
    seal(fd)
    return fd


def raw(channel: socket.socket, data: bytes, fds: list[int]) -> None:
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([data], rights)


def forever(channel: socket.socket) -> None:
    while True:
        signal.pause()


def saying(say: Life) -> Life:
    """A guest that says something and stays."""

    def life(channel: socket.socket) -> None:
        say(channel)
        forever(channel)

    return life


REQUESTS: dict[str, Life] = {
    "Keep": lambda c: control.send(c, control.Keep(FILTER), [file(FILTER, write_filter)]),
    "Keep of code": lambda c: control.send(c, control.Keep(CODE), [file(CODE, write_artifact)]),
    "Keep of something new": lambda c: control.send(
        c, control.Keep(NEW), [file(NEW, write_artifact)]
    ),
    "Compile": lambda c: control.send(
        c, control.Compile("wasmer", NEW, "_start"), [file(NEW, write_artifact)]
    ),
    "Touch": lambda c: control.send(c, control.Touch(CODE, verified=True)),
    "Native": lambda c: control.send(c, control.Native(), [os.open("/", os.O_PATH)]),
    "Isolated": lambda c: control.send(c, control.Isolated()),
    "Sealed": lambda c: control.send(c, control.Sealed()),
    "Started": lambda c: control.send(c, control.Started()),
    "Prepare": lambda c: control.send(c, control.Prepare([]), [0, 1, 2]),
}


@pytest.mark.parametrize("what", REQUESTS)
async def test_who_is_sealed_asks_for_nothing(place: Place, what: str) -> None:
    def life(channel: socket.socket) -> None:
        control.receive(channel)
        control.send(channel, control.Sealed())
        REQUESTS[what](channel)
        control.send(channel, READY)
        forever(channel)

    guest = place.guest(life)
    with pytest.raises(GuestError, match=f"broke the protocol .{what.split(maxsplit=1)[0]} with"):
        await guest.prepare()
    assert await asyncio.wait_for(guest.exited, 10) == 128 + signal.SIGKILL
    assert "a guest broke the protocol and is killed" in place.logged()
    await guest.discard()


@pytest.mark.parametrize(
    ("whom", "comes_to_others"),
    [(os.getppid, True), (os.getpid, True), (os.getpid, False)],
    ids=["of another", "of itself", "of one that comes to nobody"],
)
async def test_a_process_that_is_no_sibling_of_the_guest(
    place: Place, whom: Callable[[], int], comes_to_others: bool
) -> None:
    """To be taken for the guest, and to be killed when that is."""

    def life(channel: socket.socket) -> None:
        control.receive(channel)
        control.send(channel, control.Sealed())
        control.send(channel, control.Arrived(), [os.pidfd_open(whom())])
        forever(channel)

    guest = place.guest(life, comes_to_others=comes_to_others)
    pid, fds = guest.pid, set(os.listdir("/proc/self/fd"))
    with pytest.raises(GuestError, match=r"broke the protocol .Arrived with"):
        await guest.prepare()
    assert await asyncio.wait_for(guest.exited, 10) == 128 + signal.SIGKILL
    assert guest.pid == pid
    assert set(os.listdir("/proc/self/fd")) <= fds
    await guest.discard()


async def test_a_guest_arrives_once(place: Place) -> None:
    def life(channel: socket.socket) -> None:
        control.receive(channel)
        control.send(channel, control.Sealed())
        arrive(channel)
        arrive(channel)
        forever(channel)

    guest = place.guest(life, comes_to_others=True)
    pid = guest.pid
    with pytest.raises(GuestError, match=r"broke the protocol .Arrived with"):
        await guest.prepare()
    assert guest.pid != pid
    await until(lambda: not os.path.exists(f"/proc/{pid}"))
    assert await asyncio.wait_for(guest.exited, 10) == 128 + signal.SIGKILL
    await guest.discard()
    reap_one()  # the other, whom nobody wants


def reap_one() -> None:
    assert os.waitid(os.P_ALL, 0, os.WEXITED) is not None


NEVER = ("Started", "Prepare", "Native", "Isolated")  # the last two not of any guest


@pytest.mark.parametrize("what", NEVER)
async def test_what_is_not_for_a_guest_to_say(place: Place, what: str) -> None:
    guest = place.guest(saying(REQUESTS[what]))
    with pytest.raises(GuestError, match=f"broke the protocol .{what} with"):
        await guest.prepare()
    assert await asyncio.wait_for(guest.exited, 10) == 128 + signal.SIGKILL
    await guest.discard()


async def test_ready_comes_after_sealed(place: Place) -> None:
    guest = place.guest(saying(lambda channel: control.send(channel, READY)))
    with pytest.raises(GuestError, match=r"broke the protocol .Ready with"):
        await guest.prepare()
    await guest.discard()


@pytest.mark.parametrize("write", [write_filter, write_artifact])
async def test_nothing_that_is_kept_is_replaced(
    place: Place, write: Callable[[int, bytes, bytes], None]
) -> None:
    """Not even by one who may still ask."""

    def life(channel: socket.socket) -> None:
        control.send(channel, control.Keep(FILTER), [file(FILTER, write)])
        control.send(channel, control.Sealed())
        control.send(channel, READY)
        forever(channel)

    guest = place.guest(life)
    assert await guest.prepare() == READY
    await guest.discard()


async def test_a_filter_does_not_get_into_the_place_of_code(place: Place) -> None:
    def life(channel: socket.socket) -> None:
        control.send(channel, control.Keep(CODE), [file(CODE, write_filter)])
        control.send(channel, control.Sealed())
        control.send(channel, READY)
        forever(channel)

    before = place.stored()
    guest = place.guest(life)
    assert await guest.prepare() == READY
    await guest.discard()
    (name,) = place.stored().keys() - before.keys()
    (place.cache / name).unlink()


async def test_only_a_filter_is_kept_and_only_one(place: Place) -> None:
    def life(channel: socket.socket) -> None:
        control.send(channel, control.Keep(NEW), [file(NEW, write_artifact)])
        control.send(channel, control.Keep(NEW), [file(NEW, write_filter)])
        forever(channel)

    guest = place.guest(life)
    with pytest.raises(GuestError, match=r"broke the protocol .Keep with 1"):
        await guest.prepare()
    assert "made for another" in place.logged()
    await guest.discard()


KEEP = msgspec.msgpack.encode(control.Keep(NEW))
MALFORMED: dict[str, tuple[bytes, int, str]] = {
    "no message": (b"\xff\xff", 3, "no message"),
    "too long": (bytes(300_000), 3, "more than 262144 bytes"),
    "Keep of nothing": (KEEP, 0, "Keep with 0 descriptors"),
    "Keep of two": (KEEP, 2, "Keep with 2 descriptors"),
    "Compile of nothing": (
        msgspec.msgpack.encode(control.Compile("wasmer", NEW, "_start")),
        0,
        "Compile with 0 descriptors",
    ),
    "descriptors for nothing": (
        msgspec.msgpack.encode(control.Touch(CODE, False)),
        2,
        "Touch with 2 descriptors",
    ),
    "too many descriptors": (KEEP, 100, "more than 4 descriptors"),
    "a path for a key": (
        msgspec.msgpack.encode(control.Touch(b"../../../../etc/passwd", True)),
        0,
        "no message",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed(place: Place, what: str) -> None:
    data, descriptors, error = MALFORMED[what]
    guest = place.guest(saying(lambda channel: raw(channel, data, [0] * descriptors)))
    with pytest.raises(GuestError, match=error):
        await guest.prepare()
    assert await asyncio.wait_for(guest.exited, 10) == 128 + signal.SIGKILL
    await guest.discard()


async def test_a_channel_that_somebody_else_holds_ends_with_the_guest(place: Place) -> None:
    """Otherwise a Create would wait for as long as that one likes."""
    report, pid_file = os.pipe()

    def life(channel: socket.socket) -> None:
        child = os.fork()
        if child == 0:
            forever(channel)
        os.write(pid_file, b"%d" % child)

    guest = place.guest(life)
    with pytest.raises(GuestError, match=r"ended while it was set up .status 0"):
        await asyncio.wait_for(guest.prepare(), 20)
    os.kill(int(os.read(report, 20)), signal.SIGKILL)
    os.close(report)
    os.close(pid_file)
    await guest.discard()


async def test_a_flood_stays_with_the_kernel(place: Place) -> None:
    """After Ready nobody listens until Start."""
    report, count = os.pipe()

    def life(channel: socket.socket) -> None:
        control.receive(channel)
        control.send(channel, control.Sealed())
        control.send(channel, READY)
        channel.setblocking(False)
        sent = 0
        try:
            while True:
                raw(channel, KEEP, [0, 0])
                sent += 1
        except BlockingIOError:
            os.write(count, b"%d" % sent)
        forever(channel)

    guest = place.guest(life)
    assert await guest.prepare() == READY
    before = len(os.listdir("/proc/self/fd"))
    sent = int(await asyncio.get_running_loop().run_in_executor(None, os.read, report, 20))
    await asyncio.sleep(0)
    assert 0 < sent < 5000
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(GuestError, match=r"broke the protocol .Keep with 2"):
        await guest.start(hooked=True)
    await guest.discard()
    os.close(report)
    os.close(count)


async def test_a_guest_that_ends_while_its_start_is_waited_for(place: Place) -> None:
    def life(channel: socket.socket) -> None:
        control.send(channel, control.Sealed())
        control.send(channel, READY)
        forever(channel)

    guest = place.guest(life)
    await guest.prepare()
    starting = asyncio.ensure_future(guest.start(hooked=True))
    await asyncio.sleep(0.01)
    await guest.discard()
    with pytest.raises(GuestError, match=r"ended while it was set up .status 137"):
        await asyncio.wait_for(starting, 10)


async def test_an_orderly_life(place: Place) -> None:
    def life(channel: socket.socket) -> None:
        control.receive(channel)
        control.send(channel, control.Touch(CODE, verified=False))
        control.send(channel, control.Sealed())
        control.send(channel, READY)
        assert isinstance(control.receive(channel)[0], control.Start)
        control.send(channel, control.Started())

    guest = place.guest(life)
    assert await guest.prepare() == READY
    await guest.start(hooked=True)
    assert await guest.exited == 0
    await guest.discard()
    assert place.logged() == ""
