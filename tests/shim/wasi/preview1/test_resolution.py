from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from shim.wasi import filetypes, rights
from shim.wasi.descriptors import Descriptor
from shim.wasi.preview1 import errno
from tests.guests.build import build
from tests.installed import ENGINES

from .conftest import Guest, InContainer

CREAT, DIRECTORY, EXCL = 1, 2, 4
NOENT = 44


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The guest's `/`, which has an `/app` that it starts in."""
    app = tmp_path / "app"
    (app / "sub").mkdir(parents=True)
    (app / "data").write_text("app")
    (app / "sub" / "inner").write_text("inner")
    (app / "up").symlink_to("../only")
    (app / "out").symlink_to("../../secret")
    (app / "dangling").symlink_to("nothing")
    (tmp_path / "data").write_text("root")
    (tmp_path / "only").write_text("root")
    (tmp_path / "dangling").write_text("root")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "old").touch()
    return tmp_path


@pytest.fixture
def started(guest: Guest, root: Path) -> Guest:
    """A guest in `/app`."""
    fd = os.open(root / "app", os.O_PATH | os.O_DIRECTORY)
    kind = filetypes.DIRECTORY
    guest.program.descriptors.get(0).cwd = Descriptor(
        fd, kind, rights.DIRECTORY, rights.ALL, preopen=b"/app"
    )
    return guest


def content(guest: Guest, path: str, directory: int = 0) -> bytes | int:
    """What a file holds, or the errno of opening it."""
    error, fd = guest.open(path, directory=directory)
    if error:
        return error
    try:
        return os.pread(guest.program.descriptors.get(fd).fd, 64, 0)
    finally:
        guest("fd_close", fd)


def act(guest: Guest, name: str, path: str) -> int:
    return guest(name, 0, *guest.path(path))


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("data", b"app"),
        ("./data", b"app"),
        ("sub/../data", b"app"),
        ("app/data", b"app"),
        ("only", b"root"),
        ("./only", NOENT),
        ("../only", b"root"),
        ("sub/../../only", b"root"),
        ("../app/sub/inner", b"inner"),
        ("up", b"root"),
        ("../nothing", NOENT),
        ("nothing", NOENT),
        ("dangling", NOENT),  # a name there hides one in `/`, wherever it leads
        ("data/x", errno.NOTDIR),
        ("../../secret", errno.NOTCAPABLE),
        ("out", errno.NOTCAPABLE),
        ("/data", errno.NOTCAPABLE),  # libc has removed the slash, from what comes from a program
        ("", NOENT),
    ],
)
def test_looking_up(started: Guest, root: Path, path: str, found: bytes | int) -> None:
    (root.parent / "secret").write_text("secret")
    assert content(started, path) == found
    result = started.room(64)
    error = started("path_filestat_get", 0, 1, *started.path(path), result)
    assert error == (0 if isinstance(found, bytes) else found)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("new", "app/new"),
        ("./new", "app/new"),
        ("./tmp", "app/tmp"),
        ("sub/new", "app/sub/new"),
        ("tmp/new", "tmp/new"),
        ("app/new", "app/new"),
        ("../new", "new"),
        ("../tmp/new", "tmp/new"),
    ],
)
def test_creating(started: Guest, root: Path, path: str, place: str) -> None:
    assert started.open(path, oflags=CREAT | EXCL, base=rights.ALL)[0] == 0
    assert (root / place).is_file()
    (root / place).unlink()
    assert act(started, "path_create_directory", path) == 0
    assert (root / place).is_dir()
    assert act(started, "path_remove_directory", path) == 0
    assert started("path_symlink", *started.path("x"), 0, *started.path(path)) == 0
    assert (root / place).is_symlink()
    assert act(started, "path_unlink_file", path) == 0
    assert started("path_link", 0, 0, *started.path("data"), 0, *started.path(path)) == 0
    assert (root / place).read_text() == "app"
    assert started("path_rename", 0, *started.path("only"), 0, *started.path(path)) == 0
    assert (root / place).read_text() == "root"
    assert not (root / "only").exists()


def test_creating_what_exists(started: Guest, root: Path) -> None:
    assert started.open("only", oflags=CREAT, base=rights.ALL)[0] == 0
    assert started.open("only", oflags=CREAT | EXCL)[0] == errno.EXIST
    assert act(started, "path_create_directory", "tmp") == errno.EXIST
    assert sorted(os.listdir(root / "app")) == ["dangling", "data", "out", "sub", "up"]
    assert act(started, "path_create_directory", "no/where") == NOENT


def test_the_directory_itself(started: Guest, root: Path) -> None:
    for path in (".", "./", "sub/.."):
        error, fd = started.open(path, oflags=DIRECTORY)
        assert error == 0
        opened = os.fstat(started.program.descriptors.get(fd).fd)
        assert opened.st_ino == os.stat(root / "app").st_ino
        assert content(started, "data", fd) == b"app"
        assert content(started, "only", fd) == NOENT
    error, fd = started.open("..", oflags=DIRECTORY)
    assert error == 0
    assert content(started, "only", fd) == b"root"


def test_only_the_root_has_one(started: Guest, root: Path) -> None:
    other = started.program.descriptors.add(
        Descriptor(
            os.open(root / "tmp", os.O_RDONLY),
            filetypes.DIRECTORY,
            rights.DIRECTORY,
            rights.ALL,
            preopen=b"/tmp",
        )
    )
    assert content(started, "data", other) == NOENT
    assert content(started, "old", other) == b""


def test_each_has_its_own_rights(started: Guest, root: Path) -> None:
    slash = started.program.descriptors.get(0)
    assert slash.cwd is not None
    slash.cwd.readonly = True
    assert started.open("new", oflags=CREAT)[0] == errno.ROFS
    assert started.open("data", base=rights.ALL)[0] == errno.ROFS
    assert act(started, "path_create_directory", "d") == errno.ROFS
    assert act(started, "path_unlink_file", "data") == errno.ROFS
    assert started("path_rename", 0, *started.path("only"), 0, *started.path("x")) == errno.ROFS
    assert started.open("only", base=rights.ALL)[0] == 0
    assert act(started, "path_unlink_file", "tmp/old") == 0
    slash.cwd.readonly, slash.readonly = False, True
    assert started.open("new", oflags=CREAT)[0] == 0
    assert started.open("only", base=rights.ALL)[0] == errno.ROFS
    assert act(started, "path_create_directory", "tmp/d") == errno.ROFS
    assert act(started, "path_create_directory", "../d") == errno.ROFS


def test_it_is_closed_with_the_root(started: Guest, root: Path) -> None:
    cwd = started.program.descriptors.get(0).cwd
    assert cwd is not None
    before = len(os.listdir("/proc/self/fd"))
    for path in ("data", "only", "../only", "nothing", "out"):
        content(started, path)
    assert len(os.listdir("/proc/self/fd")) == before
    assert started("fd_close", 0) == 0
    with pytest.raises(OSError):
        os.fstat(cwd.fd)


def test_names_swapped_while_looking(started: Guest, root: Path) -> None:
    """Whatever the moment: a file of the one place or of the other, or an error."""
    (root.parent / "secret").write_text("secret")
    swapper = os.fork()
    if swapper == 0:
        while True:
            for target in ("data", "../only", "../../secret", "/data"):
                (root / "app" / "fresh").symlink_to(target)
                (root / "app" / "fresh").rename(root / "app" / "swapped")
            (root / "app" / "swapped").unlink()
    seen: set[bytes | int] = set()
    try:
        for turn in range(200_000):  # the two may take long turns on a busy machine
            if turn >= 2000 and {b"app", errno.NOTCAPABLE} <= seen:
                break
            started._next = 1024
            seen.add(content(started, "swapped"))
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)
    assert {b"app", errno.NOTCAPABLE} <= seen
    assert seen <= {b"app", b"root", errno.NOTCAPABLE, NOENT, errno.AGAIN}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_program(engine: str, root: Path) -> None:
    """What a program sees, and what is there when it has ended."""
    from shim import engines
    from shim.engines.base import Grants, Preopen

    wasm = build("cwd").read_bytes()
    selected = engines.select(engine)
    (root.parent / "secret").write_text("secret")
    artifact = root.parent / "artifact"
    for work in ("compile", "run"):
        child = os.fork()
        if child == 0:
            try:
                if work == "compile":
                    artifact.write_bytes(selected.compile(wasm))
                    os._exit(0)
                module = selected.load(artifact.read_bytes())
                module.check()
                os.chroot(root)
                slash, app = (
                    Preopen(name, os.open(name, os.O_PATH | os.O_DIRECTORY))
                    for name in ("/", "/app")
                )
                module.run(Grants([b"cwd"], [], [slash], app))
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    there = {
        path: (root / path).read_text() for path in ("app/new", "app/tmp.txt", "tmp/new", "only")
    }
    assert there == {"app/new": "new", "app/tmp.txt": "new", "tmp/new": "new", "only": "changed"}
    assert (root / "tmp" / "d" / "e").is_dir()
    assert (root / "app" / "d" / "old").is_file()
    assert not (root / "app" / "sub").exists()
    assert (root / "data").read_text() == "root"


ROOT, VOLUME, STRICT = 3, 4, 5


class TestNotConfined:
    """From the preopens of a container, paths lead anywhere in its root."""

    @pytest.fixture(autouse=True)
    def _tree(self, tmp_path: Path, in_container: InContainer) -> None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "vol" / "sub").mkdir()
        (tmp_path / "etc" / "x").write_text("etc")
        (tmp_path / "vol" / "x").write_text("vol")
        for link, target in {
            "absolute": "/etc/x",
            "up": "../etc/x",
            "far": "../../../../etc/x",
            "etc": "/etc",
            "sub/up": "../x",
        }.items():
            (tmp_path / "vol" / link).symlink_to(target)

    @pytest.mark.parametrize(
        "path", ["absolute", "up", "far", "etc/x", "../etc/x", "../../etc/x", "sub/../../etc/x"]
    )
    def test_it_may_be_left(self, in_container: InContainer, path: str) -> None:
        def entry(guest: Guest) -> None:
            assert content(guest, path, VOLUME) == b"etc"
            assert content(guest, f"vol/{path}", ROOT) == b"etc"
            assert content(guest, path, STRICT) == errno.NOTCAPABLE

        in_container(entry)

    def test_a_directory_that_the_program_opened_is_left_by_symlinks_alone(
        self, in_container: InContainer
    ) -> None:
        def entry(guest: Guest) -> None:
            for preopen, path in ((VOLUME, "."), (ROOT, "vol"), (VOLUME, "../vol"), (STRICT, ".")):
                error, vol = guest.open(path, directory=preopen, oflags=DIRECTORY)
                assert error == 0
                assert content(guest, "x", vol) == b"vol"
                assert content(guest, "sub/up", vol) == b"vol"
                error, sub = guest.open("sub", directory=vol, oflags=DIRECTORY)
                assert error == 0
                for held, words, links, found in (
                    (
                        vol,
                        ("../etc/x", "/etc/x", "etc/../vol/x"),
                        ("absolute", "up", "far"),
                        b"etc",
                    ),
                    (sub, ("../x", "../../etc/x", "/etc/x", "up/.."), ("up",), b"vol"),
                ):
                    assert {content(guest, path, held) for path in words} <= {errno.NOTCAPABLE}
                    expected = errno.NOTCAPABLE if preopen == STRICT else found
                    assert {content(guest, path, held) for path in links} == {expected}
                    made = guest("path_symlink", *guest.path("/etc"), held, *guest.path("l"))
                    assert made == errno.NOTCAPABLE

        in_container(entry)

    def test_rights_are_those_of_the_directory_that_is_named(
        self, in_container: InContainer
    ) -> None:
        def entry(guest: Guest) -> None:
            kept = rights.DIRECTORY & ~rights.PATH_UNLINK_FILE
            assert guest("fd_fdstat_set_rights", VOLUME, kept, rights.FD_READ) == 0
            unlink = ("path_unlink_file", VOLUME, *guest.path("../etc/x"))
            assert guest(*unlink) == errno.NOTCAPABLE
            error, fd = guest.open("../etc/x", directory=VOLUME, base=rights.ALL)
            assert error == 0
            assert guest.program.descriptors.get(fd).base == rights.FD_READ

        in_container(entry)

    def test_what_a_link_points_to_may_be_absolute(
        self, in_container: InContainer, tmp_path: Path
    ) -> None:
        def entry(guest: Guest) -> None:
            for preopen, error in ((VOLUME, 0), (STRICT, errno.NOTCAPABLE)):
                name = guest.path(f"new{preopen}")
                assert guest("path_symlink", *guest.path("/etc/x"), preopen, *name) == error
            assert content(guest, "new4", VOLUME) == b"etc"

        in_container(entry)
        assert os.readlink(tmp_path / "vol" / "new4") == "/etc/x"

    @pytest.mark.parametrize("confined", [True, False])
    def test_from_a_working_directory(
        self, in_container: InContainer, tmp_path: Path, confined: bool
    ) -> None:
        (tmp_path / "log").symlink_to("/vol/log")

        def entry(guest: Guest) -> None:
            slash = guest.program.descriptors.get(ROOT)
            fd = os.open("/vol", os.O_PATH)
            slash.cwd = Descriptor(
                fd,
                filetypes.DIRECTORY,
                rights.DIRECTORY,
                rights.ALL,
                confined=confined,
                readonly=confined,
                preopen=b"/vol",
            )
            for path in ("absolute", "up", "far", "../etc/x", "etc/x", "../../etc/x"):
                assert content(guest, path, ROOT) == b"etc"
            assert content(guest, "x", ROOT) == b"vol"
            assert content(guest, "../x", ROOT) == NOENT
            # Not a file of the working directory beside the link of that name in `/`.
            assert guest.open("log", directory=ROOT, oflags=CREAT, base=rights.ALL)[0] == 0
            created = guest.open("y", directory=ROOT, oflags=CREAT, base=rights.ALL)[0]
            assert created == (errno.ROFS if confined else 0)

        in_container(entry)
        assert (tmp_path / "log").is_symlink()
        assert (tmp_path / "vol" / "log").is_file()
