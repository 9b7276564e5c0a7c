"""Hostile guests in real containers: none gets out, none harms the shim or its neighbours.

All containers of an engine are of one pod: a shim that one of them breaks or keeps busy is missed
at once by `Yard.is_well`, which every test ends with.

Each guest is jailed twice: `/` of the guest is its rootfs, which the kernel sees to, and `/jail` is
a directory mounted in it, which an annotation has chosen. Since the calls below go through the
descriptor of the jail, and what is outside of that is within the kernel's reach, it is WASI itself
that has to say no.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import stat
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proto import task_v2_pb2 as api
from proto.task_pb2 import Status
from shim.ttrpc import Client, Code, RpcError
from tests.guests.assemble import END, HEADER, leb
from tests.installed import ENGINES
from tests.shim.task_api import POD, Container, Ended, Shim, call

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "SECRET, and of a length of its own"
READ = 2  # the right fd_read
NAMES = {
    0: "ok",
    8: "BADF",
    20: "EXIST",
    21: "FAULT",
    22: "FBIG",
    25: "ILSEQ",
    28: "INVAL",
    29: "IO",
    31: "ISDIR",
    32: "LOOP",
    33: "MFILE",
    37: "NAMETOOLONG",
    44: "NOENT",
    48: "NOMEM",
    54: "NOTDIR",
    55: "NOTEMPTY",
    57: "NOTSOCK",
    58: "NOTSUP",
    60: "NXIO",
    61: "OVERFLOW",
    63: "PERM",
    70: "SPIPE",
    76: "NOTCAPABLE",
}


class Yard:
    """A pod for guests that misbehave, and one that does not."""

    def __init__(self, shim: Shim, engine: str) -> None:
        self.shim, self.engine = shim, engine
        self._count = 0
        self._shim_pid = 0
        self._client: Client | None = None
        (shim.rootfs / "secret").write_text(SECRET)
        (shim.directory / "secret").write_text(SECRET)
        (shim.rootfs / "jail").mkdir()
        self._before = self._outside()

    async def begin(self) -> None:
        """Start the neighbour."""
        self.neighbour = await self.create(self.jail(), "/idle.wasm")
        self._client = self.neighbour.client
        await self.neighbour.start()
        self._shim_pid = await self._ask_shim()

    def jail(self) -> Path:
        """Make a directory with a file, a directory and many ways out."""
        self._count += 1
        jail = self.shim.directory / f"jail-{self._count}"
        (jail / "sub").mkdir(parents=True)
        (jail / "inside").write_text("inside")
        for name, target in (
            ("link", "inside"),
            ("sub/up", "../inside"),
            ("absolute", "/secret"),
            ("relative", "../secret"),
            ("chain", "chain-2"),
            ("chain-2", "sub/chain-3"),
            ("sub/chain-3", "../../secret"),
            ("dangling", "nowhere"),
            ("dangling-outside", "../nowhere"),
            ("directory", ".."),
            ("root", "/"),
            ("host", str(self.shim.directory / "secret")),
            ("process", "/proc/self/root/secret"),
            ("itself", "itself"),
            ("ring", "ring-2"),
            ("ring-2", "ring"),
            ("long-0", "inside"),
        ):
            (jail / name).symlink_to(target)
        for number in range(1, 60):
            (jail / f"long-{number}").symlink_to(f"long-{number - 1}")
        return jail

    async def create(
        self,
        jail: Path,
        *args: str,
        env: Sequence[str] = (),
        mounts: Sequence[dict[str, Any]] = (),
        rlimits: Sequence[dict[str, Any]] = (),
        chosen: bool = True,
        **request: Any,
    ) -> Container:
        """Create a container that has the jail; `chosen`, by an annotation."""
        self._count += 1
        id = f"container-{self._count}"
        mount = {"destination": "/jail", "source": str(jail), "options": ["rbind", "rw"]}
        annotations = POD | {"dev.pywasm.engine": self.engine}
        if chosen:
            annotations["dev.pywasm.preopens"] = "/jail=/jail"
        self.shim.bundle(
            id,
            annotations=annotations,
            mounts=[mount, *mounts],
            process={
                "args": list(args),
                "env": list(env),
                "cwd": "/",
                "rlimits": list(rlimits),
            },
        )
        return await Container.create(self.shim, id, self._client, **request)

    async def do(self, *deed: str, jail: Path | None = None) -> Ended:
        """Run a deed of hostile_deeds.c to its end."""
        container = await self.create(jail or self.jail(), "/hostile_deeds.wasm", *deed)
        return await container.run()

    async def calls(self, jail: Path, *lines: str) -> list[tuple[str, int]]:
        """Make calls in one guest (see hostile_calls.c); return the errors and results."""
        container = await self.create(jail, "/hostile_calls.wasm", *lines, env=["NAME=value"])
        ended = await container.run()
        assert (ended.status, ended.stderr) == (0, "")
        answers = [line.split() for line in ended.stdout.splitlines()]
        return [(NAMES.get(int(error), error), int(result)) for error, result in answers]

    async def check(self, jail: Path, table: Sequence[tuple[str, str]]) -> None:
        """Make calls; each is to be answered with the error beside it."""
        answers = await self.calls(jail, *(line for line, _ in table))
        wrong = [
            f"{line}: expected {error}, got {got}"
            for (line, error), (got, _) in zip(table, answers, strict=True)
            if got != error
        ]
        assert not wrong, "\n".join(wrong)

    async def is_well(self) -> bool:
        """Whether the shim and the neighbour are as they were, and nothing has changed outside."""
        assert await self._ask_shim() == self._shim_pid
        assert await self.neighbour.status() == Status.RUNNING
        return self._outside() == self._before

    async def _ask_shim(self) -> int:
        request = api.ConnectRequest(id=self.neighbour.id)
        answer = await call(self.neighbour.client, "Connect", request, api.ConnectResponse)
        return answer.shim_pid

    def _outside(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for path in (*self.shim.rootfs.iterdir(), self.shim.directory / "secret"):
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_nlink)
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ENGINES)
async def pod(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Yard]:
    """One for all tests of an engine."""
    guests = ("idle", "hello", "hostile_calls", "hostile_deeds")
    shim = Shim(tmp_path_factory.mktemp(request.param), guests)
    made = Yard(shim, request.param)
    try:
        await made.begin()
        yield made
        await made.neighbour.kill(15)
        assert (await made.neighbour.ended()).status == 128 + 15
    finally:
        await shim.close()


@pytest_asyncio.fixture(loop_scope="module")
async def yard(pod: Yard) -> AsyncIterator[Yard]:
    """The same, looked at after each test."""
    yield pod
    assert await pod.is_well()


WAYS_OUT = (
    "..",
    "../secret",
    "../../../../secret",
    "./../secret",
    "sub/../../secret",
    "sub/..//.././secret",
    "/",
    "/secret",
    "//secret",
    "/jail/inside",
    "/proc/self/root/secret",
    "absolute",
    "relative",
    "chain",
    "dangling-outside",
    "directory",
    "directory/secret",
    "root/secret",
    "root/jail/inside",
    "host",
    "process",
    "sub/chain-3",
)


async def test_no_path_leads_out(yard: Yard) -> None:
    jail = yard.jail()
    host = f"{yard.shim.directory}/secret"
    table = []
    for path in (*WAYS_OUT, host, f"../../..{host}"):
        for oflags in (0, 1, 1 | 4, 2, 8):  # and create, create anew, a directory, truncate
            if oflags != 1 | 4 or not (jail / path).is_symlink():  # O_EXCL does not follow
                table.append((f"path_open 4 1 ={path} {oflags} {READ} 0 0 &", "NOTCAPABLE"))
        table.append((f"path_filestat_get 4 1 ={path} &", "NOTCAPABLE"))
        table.append((f"path_filestat_set_times 4 1 ={path} 0 0 10", "NOTCAPABLE"))
    await yard.check(jail, table)


async def test_no_name_is_made_or_removed_outside(yard: Yard) -> None:
    jail = yard.jail()
    table = []
    for path in ("../new", "/new", "directory/new", "root/new", "sub/../../new", "//new"):
        table += [
            (f"path_create_directory 4 ={path}", "NOTCAPABLE"),
            (f"path_symlink =inside 4 ={path}", "NOTCAPABLE"),
            (f"path_link 4 0 =inside 4 ={path}", "NOTCAPABLE"),
            (f"path_rename 4 =inside 4 ={path}", "NOTCAPABLE"),
        ]
    for path in ("../secret", "/secret", "directory/secret", "root/secret", "sub/../../secret"):
        table += [
            (f"path_unlink_file 4 ={path}", "NOTCAPABLE"),
            (f"path_remove_directory 4 ={path}", "NOTCAPABLE"),
            (f"path_readlink 4 ={path} & 100 &", "NOTCAPABLE"),
            (f"path_link 4 0 ={path} 4 =new", "NOTCAPABLE"),
            (f"path_rename 4 ={path} 4 =new", "NOTCAPABLE"),
            (f"path_rename 4 =inside 4 ={path}", "NOTCAPABLE"),
        ]
    # Between two descriptors each path has to stay below its own.
    table += [
        ("path_link 4 0 =../secret 3 =new", "NOTCAPABLE"),
        ("path_rename 3 =../secret 4 =new", "NOTCAPABLE"),
    ]
    await yard.check(jail, table)
    assert (jail / "inside").read_text() == "inside"
    assert not (jail / "new").exists()


async def test_symlinks(yard: Yard) -> None:
    jail = yard.jail()
    table = [
        (f"path_open 4 1 =link 0 {READ} 0 0 &", "ok"),
        (f"path_open 4 1 =sub/up 0 {READ} 0 0 &", "ok"),
        (f"path_open 4 1 =sub/../sub/up 0 {READ} 0 0 &", "ok"),
        (f"path_open 4 0 =link 0 {READ} 0 0 &", "LOOP"),  # not to be followed
        (f"path_open 4 0 =relative 0 {READ} 0 0 &", "LOOP"),
        (f"path_open 4 1 =dangling 0 {READ} 0 0 &", "NOENT"),
        (f"path_open 4 1 =itself 0 {READ} 0 0 &", "LOOP"),
        (f"path_open 4 1 =ring 0 {READ} 0 0 &", "LOOP"),
        (f"path_open 4 1 =ring/x 0 {READ} 0 0 &", "LOOP"),
        (f"path_open 4 1 =long-39 0 {READ} 0 0 &", "ok"),  # 40, as on Linux
        (f"path_open 4 1 =long-40 0 {READ} 0 0 &", "LOOP"),
        ("path_filestat_get 4 1 =ring &", "LOOP"),
        ("path_filestat_get 4 0 =ring &", "ok"),
        # A new way out is refused where it is made, or else where it is used.
        ("path_symlink =/secret 4 =new", "NOTCAPABLE"),
        ("path_symlink =../secret 4 =new-2", "ok"),
        (f"path_open 4 1 =new-2 0 {READ} 0 0 &", "NOTCAPABLE"),
        # A hard link names the symlink itself, never what it points to.
        ("path_link 4 0 =relative 4 =hard", "ok"),
        (f"path_open 4 1 =hard 0 {READ} 0 0 &", "NOTCAPABLE"),
        ("path_link 4 1 =relative 4 =hard-2", "INVAL"),
        ("path_rename 4 =relative 4 =renamed", "ok"),
        (f"path_open 4 1 =renamed 0 {READ} 0 0 &", "NOTCAPABLE"),
        ("path_unlink_file 4 =renamed", "ok"),
    ]
    await yard.check(jail, table)
    assert os.readlink(jail / "hard") == "../secret"


async def test_hard_links_that_were_made_outside_are_files_like_any_other(yard: Yard) -> None:
    # Whoever made the rootfs meant the guest to have it: there is nothing to tell them apart by.
    jail = yard.jail()
    outside = yard.shim.directory / "shared"
    outside.write_text("shared")
    os.link(outside, jail / "hard")
    await yard.check(jail, [(f"path_open 4 1 =hard 0 {READ} 0 0 &", "ok")])
    outside.unlink()


async def test_odd_names(yard: Yard) -> None:
    name, path = "n" * 255, "a/" * 2047
    table = [
        (f"path_open 4 1 =inside%00 0 {READ} 0 0 &", "INVAL"),
        (f"path_open 4 1 =%00inside 0 {READ} 0 0 &", "INVAL"),
        ("path_create_directory 4 =a%00b", "INVAL"),
        ("path_rename 4 =inside 4 =in%00side", "INVAL"),
        ("path_symlink =in%00side 4 =new", "INVAL"),
        ("path_unlink_file 4 =inside%00", "INVAL"),
        ("path_filestat_get 4 1 =inside%00/../.. &", "INVAL"),
        (f"path_open 4 1 = 0 {READ} 0 0 &", "NOENT"),
        ("path_create_directory 4 =", "NOENT"),
        ("path_filestat_get 4 1 = &", "NOENT"),
        (f"path_open 4 1 ={name} 1 {READ} 0 0 &", "ok"),
        (f"path_open 4 1 ={name}n 1 {READ} 0 0 &", "NAMETOOLONG"),
        (f"path_open 4 1 ={'n' * 4096} 1 {READ} 0 0 &", "NAMETOOLONG"),
        (f"path_open 4 1 ={path}a 0 {READ} 0 0 &", "NOENT"),  # 4095 bytes
        (f"path_open 4 1 ={path}aa 0 {READ} 0 0 &", "NAMETOOLONG"),
        (f"path_open 4 1 ={'../' * 1365}x 0 {READ} 0 0 &", "NAMETOOLONG"),
        (f"path_open 4 1 ={'x' * 20000} 0 {READ} 0 0 &", "NAMETOOLONG"),
        # Preview 1 wants UTF-8, but Linux has names of bytes, and files with such names.
        (f"path_open 4 1 =%ff%fe 0 {READ} 0 0 &", "NOENT"),
        ("path_create_directory 4 =%0a%1b[31m", "ok"),
        (f"path_open 4 1 =inside/ 0 {READ} 0 0 &", "NOTDIR"),
        (f"path_open 4 1 =inside/.. 0 {READ} 0 0 &", "NOTDIR"),
    ]
    await yard.check(yard.jail(), table)


async def test_memory_that_is_not_there(yard: Yard) -> None:
    everything = 0xFFFFFFFF
    table = [(f"path_open 4 1 =inside 0 {0x1FFFFFFF} 0 0 &", "ok")]
    for function, tail in (
        ("fd_read", ""),
        ("fd_write", ""),
        ("fd_pread", "0 "),
        ("fd_pwrite", "0 "),
    ):
        table += [
            (f"{function} $ {iovecs} {tail}&", error)
            for iovecs, error in (
                ("[end:1", "FAULT"),
                ("[end-1:2", "FAULT"),
                (f"[{everything}:1", "FAULT"),
                (f"[{0xFFFFFFF0}:{0x20}", "FAULT"),  # beyond 2^32, where it would be small again
                (f"[&:{everything}", "FAULT"),
                (f"[{everything}:{everything}", "FAULT"),
                # Not in memory: the array itself.
                ("end 1", "FAULT"),
                ("end-4 1", "FAULT"),
                (f"{0xFFFFFFF8} 1", "FAULT"),
                (f"{0xFFFFFFF8} 2", "FAULT"),
                (f"& {1 << 29}", "FAULT"),  # times 8 is 2^32
                (f"& {(1 << 29) + 1}", "FAULT"),
                (f"& {1 << 31}", "FAULT"),
                (f"& {everything}", "FAULT"),
            )
        ]
    table += [
        (line, "FAULT")
        for line in (
            "fd_read $ [&:1 end",
            "fd_read $ [&:1 end-3",
            f"fd_read $ [&:1 {everything}",
            "args_get end-4 &",
            "args_get & end-3",
            f"args_get {everything} {everything}",
            "args_sizes_get end &",
            "args_sizes_get & end-3",
            "environ_get end &",
            "environ_get & end-3",
            "environ_sizes_get end-3 &",
            "clock_time_get 0 0 end-4",
            "clock_res_get 0 end",
            "random_get end-1 2",
            f"random_get 0 {everything}",
            f"random_get {everything} {everything}",
            "fd_fdstat_get 1 end-8",
            "fd_filestat_get $ end-32",
            "fd_seek $ 0 1 end-4",
            "fd_tell $ end-4",
            "fd_prestat_get 4 end-4",
            "fd_prestat_dir_name 4 end-2 5",
            "fd_readdir 4 end-8 16 0 &",
            "fd_readdir 4 & 16 0 end",
            f"path_open 4 1 end-2 6 0 {READ} 0 0 &",
            f"path_open 4 1 {everything} 1 0 {READ} 0 0 &",
            f"path_open 4 1 =inside 0 {READ} 0 0 end-2",
            "path_filestat_get 4 1 =inside end-32",
            "path_filestat_get 4 1 end 1 &",
            "path_readlink 4 =link end-1 100 &",
            "path_readlink 4 =link & 100 end",
            "path_create_directory 4 end-1 2",
            "path_unlink_file 4 end-1 2",
            "path_rename 4 =inside 4 end-1 2",
            "path_symlink end-1 2 4 =new",
            "path_link 4 0 =inside 4 end-1 2",
            "poll_oneoff end-40 & 1 &",
        )
    ]
    table += [
        (f"poll_oneoff & & {everything} &", "FAULT"),
        (f"poll_oneoff & & {0x05555556} &", "FAULT"),  # times 48 is 2^32 and a little
        (f"poll_oneoff & & {1 << 31} &", "FAULT"),
        # Longer than the memory, and than any path.
        (f"path_open 4 1 & {everything} 0 {READ} 0 0 &", "NAMETOOLONG"),
        (f"path_create_directory 4 ={'x' * 5000}", "NAMETOOLONG"),
        (f"fd_readdir 4 0 {everything} 0 &", "FAULT"),
        # Nothing at all, at an address that is one, just.
        ("random_get end 0", "ok"),
        ("fd_write $ [end:0 &", "ok"),
        ("fd_read $ [end:0 &", "ok"),
        ("fd_write $ [&:0,&:0,&:0 &", "ok"),
        ("fd_write $ & 0 &", "ok"),
        ("fd_prestat_dir_name 4 & 2", "NAMETOOLONG"),
        ("path_readlink 4 =link & 0 &", "ok"),
        ("poll_oneoff & & 0 &", "INVAL"),
    ]
    await yard.check(yard.jail(), table)


def subscription(kind: int, number: int, timeout: int = 0) -> str:
    """One subscription: type of event, clock or descriptor, nanoseconds."""
    data = struct.pack("<QBxxxxxxxIxxxxQQHxxxxxx", 1, kind, number, timeout, 0, 0)
    return "#" + "".join(f"%{byte:02x}" for byte in data)


async def test_subscriptions_to_what_there_is_not(yard: Yard) -> None:
    clock, readable, writable = range(3)
    table = [
        # What is wrong with one is said in its event.
        (f"poll_oneoff {subscription(9, 0)} & 1 &", "ok"),
        (f"poll_oneoff {subscription(255, 1 << 31)} & 1 &", "ok"),
        (f"poll_oneoff {subscription(clock, 77)} & 1 &", "ok"),
        (f"poll_oneoff {subscription(readable, 0xFFFFFFFF)} & 1 &", "ok"),
        (f"poll_oneoff {subscription(writable, 5)} & 1 &", "ok"),
        (f"poll_oneoff {subscription(readable, 4)} & 1 &", "ok"),
        (f"poll_oneoff {subscription(clock, 0)} end-16 1 &", "FAULT"),
        (f"poll_oneoff {subscription(clock, 0)} & 1 end", "FAULT"),
        (f"poll_oneoff {subscription(clock, 1)} & 1 &", "ok"),
    ]
    await yard.check(yard.jail(), table)


async def test_iovecs_that_overlap(yard: Yard) -> None:
    answers = await yard.calls(
        yard.jail(),
        f"path_open 4 1 =inside 0 {READ} 0 0 &",
        "fd_read $ [&:2,&:2,&:2 end-8",
    )
    assert answers[1] == ("ok", int.from_bytes(b"de", "little"))  # the last one wins


async def test_offsets_beyond_what_there_is(yard: Yard) -> None:
    table = [(f"path_open 4 1 =inside 0 {0x1FFFFFFF} 0 0 &", "ok")]
    for offset in (1 << 32, 1 << 40):
        table += [
            (f"fd_pread $ [&:8 {offset} &", "ok"),  # of nothing
            (f"fd_seek $ {offset} 0 &", "ok"),
            ("fd_read $ [&:8 &", "ok"),
        ]
    for offset in (1 << 63, (1 << 64) - 8, (1 << 64) - 1):
        table += [
            (f"fd_pread $ [&:8 {offset} &", "INVAL"),
            (f"fd_pwrite $ [&:8 {offset} &", "INVAL"),
            (f"fd_seek $ {offset} 0 &", "INVAL"),
            (f"fd_filestat_set_size $ {offset}", "INVAL"),
            (f"fd_allocate $ 0 {offset}", "INVAL"),
            (f"fd_allocate $ {offset} 1", "INVAL"),
        ]
    table += [
        (f"fd_pread $ [&:8 {(1 << 63) - 1} &", "INVAL"),
        (f"fd_pwrite $ [&:8 {(1 << 63) - 1} &", "INVAL"),
        ("fd_seek $ 0 3 &", "INVAL"),
        (f"fd_seek $ 0 {0xFFFFFFFF} &", "INVAL"),
        ("fd_advise $ 0 0 9", "INVAL"),
        ("fd_filestat_set_times $ 0 0 3", "INVAL"),
        ("clock_time_get 77 0 &", "INVAL"),
        ("clock_res_get -1 &", "INVAL"),
        (f"path_open 4 1 =inside {1 << 20} {READ} 0 0 &", "INVAL"),
        (f"path_open 4 1 =inside 0 {READ} 0 {1 << 10} &", "INVAL"),
    ]
    await yard.check(yard.jail(), table)


async def test_directory_streams_from_anywhere(yard: Yard) -> None:
    jail = yard.jail()
    answers = await yard.calls(jail, *(f"fd_readdir 4 end-64 {size} 0 &" for size in range(25)))
    # Cut off where the buffer ends, which is within the first entry, its name included.
    assert answers == [("ok", size) for size in range(25)]
    cookies = (1 << 20, (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 64) - 1)
    answers = await yard.calls(jail, *(f"fd_readdir 4 end-512 512 {n} &" for n in cookies))
    # Where a number leads that was not given out is for the filesystem to say; within the buffer.
    assert all(error in ("ok", "INVAL") and used <= 512 for error, used in answers)
    # Changed by the reader itself, and by us meanwhile.
    container = await yard.create(jail, "/hostile_deeds.wasm", "stream", "100")
    await container.start()
    running = asyncio.ensure_future(container.ended())
    while not running.done():
        for number in range(20):
            (jail / f"new-{number}-of-ours").mkdir()
            (jail / f"new-{number}-of-ours").rmdir()
        await asyncio.sleep(0.001)
    ended = running.result()
    assert (ended.status, ended.stderr) == (0, "")
    found = dict(line.split() for line in ended.stdout.splitlines())
    assert set(found.values()) == {"0"}


async def test_descriptors_that_are_not_there(yard: Yard) -> None:
    table = []
    for fd in (5, 1000, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
        table += [
            (f"{line}", "BADF")
            for line in (
                f"fd_advise {fd} 0 0 0",
                f"fd_allocate {fd} 0 1",
                f"fd_close {fd}",
                f"fd_datasync {fd}",
                f"fd_fdstat_get {fd} &",
                f"fd_fdstat_set_flags {fd} 0",
                f"fd_fdstat_set_rights {fd} 0 0",
                f"fd_filestat_get {fd} &",
                f"fd_filestat_set_size {fd} 0",
                f"fd_filestat_set_times {fd} 0 0 0",
                f"fd_pread {fd} [&:1 0 &",
                f"fd_prestat_get {fd} &",
                f"fd_prestat_dir_name {fd} & 1",
                f"fd_pwrite {fd} [&:1 0 &",
                f"fd_read {fd} [&:1 &",
                f"fd_readdir {fd} & 64 0 &",
                f"fd_renumber {fd} 1",
                f"fd_renumber 1 {fd}",
                f"fd_seek {fd} 0 0 &",
                f"fd_sync {fd}",
                f"fd_tell {fd} &",
                f"fd_write {fd} [&:1 &",
                f"path_create_directory {fd} =x",
                f"path_filestat_get {fd} 0 =x &",
                f"path_link {fd} 0 =x 4 =y",
                f"path_link 4 0 =inside {fd} =y",
                f"path_open {fd} 0 =x 0 0 0 0 &",
                f"path_readlink {fd} =x & 9 &",
                f"path_remove_directory {fd} =x",
                f"path_rename {fd} =x 4 =y",
                f"path_rename 4 =inside {fd} =y",
                f"path_symlink =x {fd} =y",
                f"path_unlink_file {fd} =x",
                f"sock_accept {fd} 0 &",
                f"sock_recv {fd} [&:1 0 & &",
                f"sock_send {fd} [&:1 0 &",
                f"sock_shutdown {fd} 1",
            )
        ]
    table += [
        ("path_open 1 0 =inside 0 2 0 0 &", "NOTDIR"),
        ("fd_readdir 1 & 64 0 &", "NOTDIR"),
        ("sock_recv 0 [&:1 0 & &", "NOTSOCK"),
        ("sock_send 4 [&:1 0 &", "NOTSOCK"),
        ("fd_read 1 [&:1 &", "BADF"),
        ("fd_write 0 [&:1 &", "BADF"),
    ]
    await yard.check(yard.jail(), table)


async def test_special_files(yard: Yard) -> None:
    jail = yard.jail()
    os.mkfifo(jail / "fifo")
    os.mknod(jail / "socket", stat.S_IFSOCK | 0o666)
    os.mknod(jail / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(jail / "nobody", stat.S_IFCHR | 0o666, os.makedev(60, 77))  # of local, unused drivers
    os.mknod(jail / "disk", stat.S_IFBLK | 0o666, os.makedev(60, 77))
    table = [
        (f"path_filestat_get 4 0 ={name} &", "ok") for name in ("fifo", "socket", "null", "disk")
    ]
    table += [
        ("path_open 4 1 =fifo 0 0x42 0 4 &", "ok"),
        ("fd_seek $ 0 0 &", "SPIPE"),
        ("fd_pread $ [&:1 0 &", "SPIPE"),
        ("fd_filestat_set_size $ 5", "NOTCAPABLE"),
        ("path_open 4 1 =socket 0 2 0 0 &", "NXIO"),
        ("path_open 4 1 =nobody 0 2 0 0 &", "NXIO"),
        ("path_open 4 1 =disk 0 2 0 0 &", "NXIO"),
        ("path_open 4 1 =null 0 0x42 0 0 &", "ok"),
        ("fd_write $ [0:65536 &", "ok"),
        ("path_open 4 1 =socket 2 2 0 0 &", "NOTDIR"),
        ("path_open 4 1 =null/.. 0 2 0 0 &", "NOTDIR"),
        ("path_unlink_file 4 =fifo", "ok"),
        ("path_unlink_file 4 =socket", "ok"),
        ("path_unlink_file 4 =null", "ok"),
    ]
    await yard.check(jail, table)


async def test_a_fifo_that_nobody_writes_to_blocks_its_reader_alone(yard: Yard) -> None:
    jail = yard.jail()
    os.mkfifo(jail / "fifo")
    line = "path_open 4 1 =fifo 0 2 0 0 &"
    container = await yard.create(jail, "/hostile_calls.wasm", "random_get & 4", line)
    await container.start()
    await container.stdout.line()
    await asyncio.sleep(0.02)
    assert await container.status() == Status.RUNNING
    assert await yard.is_well()
    await container.kill(15)
    assert (await container.ended()).status == 128 + 15


@contextlib.asynccontextmanager
async def running(container: Container) -> AsyncIterator[Container]:
    """Start a container that does not end by itself, and end it."""
    await container.start()
    try:
        yield container
    finally:
        await container.kill()
        await container.ended()


async def test_a_directory_swapped_for_a_way_out_while_it_is_used(yard: Yard) -> None:
    jail = yard.jail()
    async with running(await yard.create(jail, "/hostile_deeds.wasm", "swap")) as swapper:
        assert await swapper.stdout.line() == "swapping"
        ended = await yard.do("through", "3000", jail=jail)
    assert ended == (0, "outside 0\n", "")


async def test_a_directory_swapped_from_the_host(yard: Yard) -> None:
    jail = yard.jail()
    (jail / "target").mkdir()
    (jail / "target" / "secret").write_text("inside")
    (jail / "out").symlink_to("../../..")
    swapped = jail / "target", jail / "out", jail / "in"

    def swap(target: Path, out: Path, aside: Path) -> None:
        for source, destination in (
            (target, aside),
            (out, target),
            (target, out),
            (aside, target),
        ):
            source.rename(destination)

    container = await yard.create(jail, "/hostile_deeds.wasm", "through", "3000")
    await container.start()
    ended = asyncio.ensure_future(container.ended())
    while not ended.done():
        for _ in range(50):
            swap(*swapped)
        await asyncio.sleep(0)
    assert ended.result() == (0, "outside 0\n", "")


async def test_a_directory_moved_out_of_a_mount_by_the_host(yard: Yard) -> None:
    """Where nothing confines a path but the container's root, as the kernel keeps it."""
    jail, outside = yard.jail(), yard.shim.directory / "outside"
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    (jail / "sub" / "secret").write_text("inside")
    (jail / "sub" / "deep").mkdir()
    container = await yard.create(jail, "/hostile_deeds.wasm", "above", "3000", chosen=False)
    await container.start()
    ended = asyncio.ensure_future(container.ended())
    while not ended.done():
        for _ in range(50):
            (jail / "sub" / "deep").rename(outside / "deep")
            (outside / "deep").rename(jail / "sub" / "deep")
        await asyncio.sleep(0)
    assert ended.result() == (0, "outside 0\n", "")
    (outside / "secret").unlink()
    outside.rmdir()


async def test_all_the_files_it_can_open(yard: Yard) -> None:
    limit = {"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}
    container = await yard.create(yard.jail(), "/hostile_deeds.wasm", "many", rlimits=[limit])
    async with running(container) as greedy:
        count, error = map(int, (await greedy.stdout.line()).split())
        assert 900 < count < 1024
        assert NAMES[error] == "MFILE"
        # It holds them, and others are as free as before.
        assert await yard.is_well()
        assert (await (await yard.create(yard.jail(), "/hello.wasm")).run()).status == 0


async def test_output_that_nobody_reads(yard: Yard) -> None:
    fifo = yard.shim.directory / "unread"
    os.mkfifo(fifo)
    container = await yard.create(yard.jail(), "/hostile_deeds.wasm", "fill", stdout=str(fifo))
    container.stdout.close()
    await container.start()
    await asyncio.sleep(0.05)
    assert await container.status() == Status.RUNNING
    assert await yard.is_well()
    await container.kill(15)
    assert (await container.ended()).status == 128 + 15
    fifo.unlink()


async def test_without_any_descriptor_it_goes_on(yard: Yard) -> None:
    assert await yard.do("give-up") == (42, "", "")


async def test_a_stack_that_ends(yard: Yard) -> None:
    ended = await yard.do("recurse")
    assert ended.status == 134
    assert ended.stderr.startswith("pywasm: wasm trap: ")
    assert "Traceback" not in ended.stderr


async def test_a_memory_that_ends(yard: Yard) -> None:
    ended = await yard.do("grow")
    pages, *answers = ended.stdout.splitlines()
    assert pages in ("65536 pages", "65535 pages")
    assert answers == ["last byte 0", "and one more 21", "all of it 21"]
    assert (ended.status, ended.stderr) == (0, "")


async def test_only_what_is_granted_is_visible(yard: Yard) -> None:
    assert "PATH" in os.environ  # and the shim's own PYWASM_RUN: there is something to leak
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
        {"destination": "/data", "type": "tmpfs", "source": "tmpfs"},
    ]
    ended = await (
        await yard.create(
            yard.jail(), "/hostile_deeds.wasm", "visible", env=["GIVEN=1"], mounts=mounts
        )
    ).run()
    (yard.shim.rootfs / "data").rmdir()
    assert (ended.status, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert [line for line in lines if line.startswith("descriptor")] == [
        "descriptor 0 ",
        "descriptor 1 ",
        "descriptor 2 ",
        "descriptor 3 /",
        "descriptor 4 /jail",
        "descriptor 5 /data",
    ]
    assert [line for line in lines if line.startswith("variable")] == ["variable GIVEN=1"]
    entries = {line.removeprefix("entry ") for line in lines if line.startswith("entry")}
    assert entries == {".", "..", "data", *os.listdir(yard.shim.rootfs)}


def section(number: int, content: bytes) -> bytes:
    return bytes([number]) + leb(len(content)) + content


@functools.cache
def bomb(kind: str) -> bytes:
    """A module that has more of something than anybody needs."""
    many = 1_000_001
    function, export = b"\1\0", b"\1\6_start\0\0"
    code = b"\2\0" + END
    imports = b""
    if kind == "functions":
        function, code = leb(many) + b"\0" * many, code * many
    elif kind == "exports":
        export = leb(many) + b"\7%07d\0\0" * many % tuple(range(many))
    elif kind == "imports":
        imports = section(2, leb(many) + b"\1a\1f\0\0" * many)
    else:
        depth = 10_000
        body = b"\0" + b"\2\x40" * depth + END * (depth + 1)
        code = leb(len(body)) + body
    count = leb(many) if kind == "functions" else b"\1"
    sections = ((3, function), (7, export), (10, count + code))
    types = section(1, b"\1\x60\0\0")
    return HEADER + types + imports + b"".join(section(*pair) for pair in sections)


@pytest.mark.parametrize("kind", ["functions", "exports", "imports", "blocks"])
async def test_modules_that_are_too_much(yard: Yard, kind: str) -> None:
    jail = yard.jail()
    (jail / "bomb.wasm").write_bytes(bomb(kind))
    creating = asyncio.ensure_future(yard.create(jail, "/jail/bomb.wasm"))
    while not creating.done():
        assert await yard.is_well()
        await asyncio.sleep(0.02)
    if kind == "blocks":
        assert await creating.result().run() == (0, "", "")
    else:
        with pytest.raises(RpcError) as caught:
            creating.result()
        assert caught.value.code == Code.INVALID_ARGUMENT
        assert "/jail/bomb.wasm: " in caught.value.message
        assert "\n" not in caught.value.message
