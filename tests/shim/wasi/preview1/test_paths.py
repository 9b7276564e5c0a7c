from __future__ import annotations

import fcntl
import os
import resource
import signal
import struct
from pathlib import Path

import pytest

from shim.wasi import filetypes, rights
from shim.wasi.preview1 import errno

from .conftest import PAGE, Guest

CREAT, DIRECTORY, EXCL, TRUNC = 1, 2, 4, 8
READ, WRITE = rights.FD_READ, rights.FD_WRITE
FOLLOW = 1
NOENT, ISDIR, LOOP, NOTEMPTY, PERM, XDEV = 44, 31, 32, 55, 63, 75


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """The guest's root, beside it something that is none of its business."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("secret")
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "file").write_text("text")
    (tmp_path / "d" / "inner").write_text("inner")
    (tmp_path / "link").symlink_to("d/inner")
    (tmp_path / "dirlink").symlink_to("d")
    (tmp_path / "absolute").symlink_to(outside / "secret")
    (tmp_path / "relative").symlink_to(f"../{outside.name}/secret")
    (tmp_path / "outdir").symlink_to(outside)
    (tmp_path / "chain").symlink_to("outdir/secret")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    return tmp_path


def stat(guest: Guest, path: str | bytes, lookup: int = 0) -> tuple[int, int, int]:
    """errno, filetype, size."""
    result = guest.room(64)
    error = guest("path_filestat_get", 0, lookup, *guest.path(path), result)
    _, _, kind, _, size = struct.unpack_from("<QQBxxxxxxxQQ", guest.memory, result)
    return error, kind, size


def act(guest: Guest, name: str, path: str | bytes) -> int:
    """Call one of the functions that take a descriptor and a path."""
    return guest(name, 0, *guest.path(path))


def rename(guest: Guest, old: str, new: str) -> int:
    return guest("path_rename", 0, *guest.path(old), 0, *guest.path(new))


def link(guest: Guest, old: str, new: str, lookup: int = 0) -> int:
    return guest("path_link", 0, lookup, *guest.path(old), 0, *guest.path(new))


def symlink(guest: Guest, target: str, path: str) -> int:
    return guest("path_symlink", *guest.path(target), 0, *guest.path(path))


def readlink(guest: Guest, path: str, room: int = 64) -> tuple[int, bytes]:
    buffer, result = guest.room(room), guest.room(4)
    error = guest("path_readlink", 0, *guest.path(path), buffer, room, result)
    return error, bytes(guest.memory[buffer : buffer + guest.u32(result)])


def set_times(guest: Guest, path: str, lookup: int = 0) -> int:
    return guest("path_filestat_set_times", 0, lookup, *guest.path(path), 5, 7, 1 | 4)


LEAVING = [
    "/",
    "//",
    "/etc/passwd",
    "..",
    "../",
    "../x",
    "d/../..",
    "d/../../x",
    "d/e/../../../x",
    "up/x",
    "up/",
    "outdir/secret",
    "outdir/",
    "d/../outdir/secret",
]
LEAVING_LINKS = ["absolute", "relative", "outdir", "chain", "up"]


@pytest.mark.parametrize("path", LEAVING)
def test_nothing_leaves_the_directory(guest: Guest, root: Path, path: str) -> None:
    before = os.stat(root.parent)
    for oflags in (0, CREAT, DIRECTORY):
        for lookup in (0, FOLLOW):
            assert guest.open(path, oflags=oflags, lookup=lookup)[0] in (
                errno.NOTCAPABLE,
                errno.NOTDIR,  # a symlink that is not to be followed, where a directory has to be
                LOOP,
                28,  # CREAT of a name that can only be a directory
                ISDIR,
            )
    for lookup in (0, FOLLOW):
        assert stat(guest, path, lookup)[0] == errno.NOTCAPABLE
        assert set_times(guest, path, lookup) == errno.NOTCAPABLE
    for name in ("path_create_directory", "path_remove_directory", "path_unlink_file"):
        assert act(guest, name, path) != 0
    assert rename(guest, path, "mine") != 0
    assert rename(guest, "file", path) != 0
    assert link(guest, path, "mine") != 0
    assert link(guest, "file", path) != 0
    assert symlink(guest, "file", path) != 0
    assert readlink(guest, path)[0] != 0
    assert os.stat(root.parent) == before


@pytest.mark.parametrize("path", LEAVING_LINKS)
def test_symlinks_that_point_outside(guest: Guest, root: Path, path: str) -> None:
    assert guest.open(path)[0] == errno.NOTCAPABLE
    assert guest.open(path, oflags=CREAT, base=rights.ALL)[0] in (errno.NOTCAPABLE, ISDIR)
    assert stat(guest, path, FOLLOW)[0] == errno.NOTCAPABLE
    assert set_times(guest, path, FOLLOW) == errno.NOTCAPABLE
    assert stat(guest, path)[:2] == (0, filetypes.SYMBOLIC_LINK)
    assert readlink(guest, path)[0] == 0


def test_a_symlink_swapped_while_opening(guest: Guest, root: Path) -> None:
    """Whatever the moment, it is the file inside or an error."""
    (root / "swapped").symlink_to("d/inner")
    swapper = os.fork()
    if swapper == 0:
        while True:
            for target in ("d/inner", str(root / "absolute"), "../x", "d/../absolute"):
                (root / "new").symlink_to(target)
                (root / "new").rename(root / "swapped")
    seen: set[int] = set()
    try:
        for turn in range(200_000):  # the two may take long turns on a busy machine
            if turn >= 2000 and {0, errno.NOTCAPABLE} <= seen:
                break
            guest._next = 1024
            error, fd = guest.open("swapped")
            seen.add(error)
            if error == 0:
                assert os.pread(guest.program.descriptors.get(fd).fd, 9, 0) == b"inner"
                guest("fd_close", fd)
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)
    assert {0, errno.NOTCAPABLE} <= seen <= {0, errno.NOTCAPABLE, errno.AGAIN}


def test_paths_within(guest: Guest, root: Path) -> None:
    for path in ("file", "./file", "d/../file", "d/e/../../file", "dirlink/../file", "d//../file"):
        assert stat(guest, path) == (0, filetypes.REGULAR_FILE, 4)
    for path in ("", "nothing", "d/nothing", "dangling/x"):
        assert stat(guest, path)[0] == NOENT
    for path in ("file/", "file/x", "link/"):
        assert stat(guest, path)[0] == errno.NOTDIR
    assert stat(guest, "loop", FOLLOW)[0] == LOOP
    assert stat(guest, ".")[:2] == stat(guest, "d/")[:2] == (0, filetypes.DIRECTORY)


@pytest.mark.parametrize("path", [b"file\0", b"\0", b"fi\0le"])
def test_nul_in_a_path(guest: Guest, root: Path, path: bytes) -> None:
    assert guest.open(path)[0] == errno.INVAL
    assert stat(guest, path)[0] == errno.INVAL
    assert act(guest, "path_unlink_file", path) == errno.INVAL
    assert symlink(guest, "a\0b", "new") == errno.INVAL


def test_long_paths(guest: Guest, root: Path) -> None:
    assert stat(guest, "a" * 255)[0] == NOENT
    assert stat(guest, "a" * 256)[0] == errno.NAMETOOLONG
    assert stat(guest, "./" * 2045 + "file")[0] == 0
    guest._next = 1024
    assert stat(guest, "a/" * 2048)[0] == errno.NAMETOOLONG
    guest._next = 1024
    assert stat(guest, "a" * 5000)[0] == errno.NAMETOOLONG
    address, _ = guest.path("file")
    assert guest("path_unlink_file", 0, address, 0xFFFFFFFF) == errno.NAMETOOLONG
    assert guest("path_unlink_file", 0, PAGE - 1, 2) == errno.FAULT


def test_names_are_bytes(guest: Guest, root: Path) -> None:
    assert guest.open(b"\xff\xfe", oflags=CREAT)[0] == 0
    assert os.path.exists(os.fsencode(root) + b"/\xff\xfe")


def test_opening(guest: Guest, root: Path) -> None:
    assert guest.open("nothing")[0] == NOENT
    assert guest.open("new", oflags=CREAT)[0] == 0
    assert guest.open("new", oflags=CREAT)[0] == 0
    assert guest.open("new", oflags=CREAT | EXCL)[0] == errno.EXIST
    assert guest.open("dangling", oflags=CREAT | EXCL)[0] == errno.EXIST
    assert guest.open("file", oflags=DIRECTORY)[0] == errno.NOTDIR
    assert guest.open("d", base=READ | WRITE)[0] == ISDIR
    assert guest.open("d", oflags=DIRECTORY, base=READ | WRITE)[0] == ISDIR
    assert guest.open("d", oflags=DIRECTORY)[0] == 0
    assert guest.open("link", lookup=0)[0] == LOOP
    assert guest.open("link")[0] == 0
    assert guest.open("dirlink", oflags=DIRECTORY, lookup=0)[0] == errno.NOTDIR
    assert guest.open("loop")[0] == LOOP
    assert guest.open("file", oflags=16)[0] == errno.INVAL
    assert guest.open("file", fdflags=32)[0] == errno.INVAL
    assert guest.open("file", oflags=TRUNC, base=READ | WRITE)[0] == 0
    assert (root / "file").read_bytes() == b""
    _, file = guest.open("file")
    assert guest.open("x", directory=file)[0] == errno.NOTDIR
    assert guest.open("x", directory=99)[0] == errno.BADF


@pytest.mark.parametrize(
    ("asked", "access"),
    [(0, os.O_RDONLY), (READ, os.O_RDONLY), (WRITE, os.O_WRONLY), (READ | WRITE, os.O_RDWR)],
)
def test_rights_decide_how_a_file_is_opened(
    guest: Guest, root: Path, asked: int, access: int
) -> None:
    _, fd = guest.open("file", base=asked)
    opened = guest.program.descriptors.get(fd)
    assert fcntl.fcntl(opened.fd, fcntl.F_GETFL) & os.O_ACCMODE == access
    assert opened.base == asked
    assert not os.get_inheritable(opened.fd)


def test_a_directory_passes_on_no_more_than_it_has(guest: Guest, root: Path) -> None:
    _, d = guest.open("d", oflags=DIRECTORY, inheriting=READ | rights.FD_SEEK)
    _, file = guest.open("inner", directory=d, base=rights.ALL)
    assert guest.program.descriptors.get(file).base == READ | rights.FD_SEEK
    _, e = guest.open("e", oflags=DIRECTORY, directory=d, base=rights.ALL)
    assert guest.program.descriptors.get(e).base == 0
    _, weak = guest.open("d", base=rights.PATH_OPEN)
    assert guest.open("new", oflags=CREAT, directory=weak)[0] == errno.NOTCAPABLE
    # Go's os.Root opens directories without the right to set sizes, and truncates below them.
    assert guest.open("inner", oflags=TRUNC, base=READ | WRITE, directory=weak)[0] == 0
    _, d = guest.open("d", base=rights.ALL)
    kept = guest.program.descriptors.get(d).base & ~rights.PATH_FILESTAT_SET_SIZE
    assert guest("fd_fdstat_set_rights", d, kept, 0) == 0
    truncated = guest.open("inner", oflags=TRUNC, base=READ | WRITE, directory=d)
    assert truncated[0] == errno.NOTCAPABLE
    assert guest.open("inner", directory=weak)[0] == 0
    assert guest("path_unlink_file", weak, *guest.path("inner")) == errno.NOTCAPABLE


def test_nothing_stays_open_after_a_failure(guest: Guest, root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in ("nothing", "d/nothing", "up/x", "file/x"):
        guest.open(path, oflags=EXCL)
        stat(guest, path)
        readlink(guest, path)
        for name in ("path_create_directory", "path_remove_directory", "path_unlink_file"):
            act(guest, name, path + "/y")
        rename(guest, path, "d/e/x/y")
        link(guest, "d/inner", path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_directories(guest: Guest, root: Path) -> None:
    assert act(guest, "path_create_directory", "new") == 0
    assert act(guest, "path_create_directory", "new") == errno.EXIST
    assert act(guest, "path_create_directory", "new/slash//") == 0
    assert act(guest, "path_create_directory", "a/b") == NOENT
    assert act(guest, "path_create_directory", "dangling") == errno.EXIST
    assert act(guest, "path_remove_directory", "new") == NOTEMPTY
    assert act(guest, "path_remove_directory", "new/slash/") == 0
    assert act(guest, "path_remove_directory", "new") == 0
    assert act(guest, "path_remove_directory", "new") == NOENT
    assert act(guest, "path_remove_directory", "file") == errno.NOTDIR
    assert act(guest, "path_remove_directory", "dirlink") == errno.NOTDIR
    assert act(guest, "path_remove_directory", "dirlink/") == errno.NOTDIR


def test_unlinking(guest: Guest, root: Path) -> None:
    assert act(guest, "path_unlink_file", "link/") == errno.NOTDIR
    assert act(guest, "path_unlink_file", "link") == 0
    assert (root / "d" / "inner").exists()
    assert act(guest, "path_unlink_file", "dirlink/inner") == 0
    assert not (root / "d" / "inner").exists()
    assert act(guest, "path_unlink_file", "d") == ISDIR
    assert act(guest, "path_unlink_file", "d/") == ISDIR
    assert act(guest, "path_unlink_file", "dirlink/") == errno.NOTDIR
    assert act(guest, "path_unlink_file", "file/") == errno.NOTDIR
    assert act(guest, "path_unlink_file", "file") == 0
    assert act(guest, "path_unlink_file", "file") == NOENT


def test_renaming(guest: Guest, root: Path) -> None:
    assert rename(guest, "file", "d/moved") == 0
    assert (root / "d" / "moved").read_text() == "text"
    assert rename(guest, "d/moved", "d/inner") == 0
    assert (root / "d" / "inner").read_text() == "text"
    assert rename(guest, "d/e/", "e") == 0
    assert rename(guest, "e", "d/e/") == 0
    assert rename(guest, "d", "d/e/d") == errno.INVAL
    assert rename(guest, "d/e", "link") == errno.NOTDIR
    assert rename(guest, "link", "d") == ISDIR
    assert rename(guest, "nothing", "x") == NOENT
    assert rename(guest, "absolute", "still-absolute") == 0
    assert (root / "still-absolute").is_symlink()


def test_hard_links(guest: Guest, root: Path) -> None:
    assert link(guest, "file", "d/same") == 0
    assert os.stat(root / "d" / "same").st_ino == os.stat(root / "file").st_ino
    assert link(guest, "file", "link") == errno.EXIST
    assert link(guest, "d", "x") == PERM
    assert link(guest, "file", "x/") == NOENT
    assert link(guest, "file", "x", FOLLOW) == errno.INVAL
    assert link(guest, "absolute", "x") == 0
    assert (root / "x").is_symlink()
    assert link(guest, "absolute/", "y") != 0


def test_symlinks(guest: Guest, root: Path) -> None:
    assert symlink(guest, "d/inner", "new") == 0
    assert readlink(guest, "new") == (0, b"d/inner")
    assert readlink(guest, "new", 3) == (0, b"d/i")
    assert readlink(guest, "new", 0) == (0, b"")
    assert symlink(guest, "x", "new") == errno.EXIST
    assert symlink(guest, "x", "y/") == NOENT
    assert symlink(guest, "/etc/passwd", "abs") == errno.NOTCAPABLE
    assert symlink(guest, "../../x", "d/dots") == 0  # what it points to is checked when followed
    assert guest.open("d/dots")[0] == errno.NOTCAPABLE
    assert readlink(guest, "file")[0] == errno.INVAL
    assert readlink(guest, "d")[0] == errno.INVAL
    assert readlink(guest, "nothing")[0] == NOENT


def test_times_of_a_symlink_and_of_what_it_points_to(guest: Guest, root: Path) -> None:
    assert set_times(guest, "link") == 0
    assert os.lstat(root / "link").st_mtime_ns == 7
    assert os.stat(root / "link").st_mtime_ns != 7
    assert set_times(guest, "link", FOLLOW) == 0
    assert os.stat(root / "d" / "inner").st_atime_ns == 5
    assert set_times(guest, "dirlink", FOLLOW) == 0
    assert os.stat(root / "d").st_mtime_ns == 7


def test_read_only(readonly: Guest, root: Path) -> None:
    guest = readonly
    assert guest.open("file")[0] == 0
    assert guest.open("file", base=READ | WRITE)[0] == errno.ROFS
    assert guest.open("file", oflags=TRUNC)[0] == errno.ROFS
    assert guest.open("new", oflags=CREAT)[0] == errno.ROFS
    assert guest.open("new", base=WRITE)[0] == NOENT
    assert guest.open("file", oflags=CREAT)[0] == 0
    assert guest.open("file", oflags=CREAT | EXCL)[0] == errno.EXIST
    assert guest.open("up/x", oflags=CREAT)[0] == errno.NOTCAPABLE
    _, d = guest.open("d", oflags=DIRECTORY)
    assert guest.open("new", directory=d, oflags=CREAT)[0] == errno.ROFS
    assert guest.open("inner", directory=d, base=WRITE)[0] == errno.ROFS
    for name in ("path_create_directory", "path_remove_directory", "path_unlink_file"):
        assert act(guest, name, "d/x") == errno.ROFS
    assert rename(guest, "file", "x") == errno.ROFS
    assert link(guest, "file", "x") == errno.ROFS
    assert symlink(guest, "file", "x") == errno.ROFS
    assert act(guest, "path_create_directory", "d") == errno.EXIST
    assert symlink(guest, "file", "link") == errno.EXIST
    assert set_times(guest, "file") == errno.ROFS
    assert stat(guest, "file") == (0, filetypes.REGULAR_FILE, 4)


def test_more_files_than_the_process_may_open(guest: Guest, root: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    opened = []
    try:
        for _ in range(300):
            guest._next = 1024
            error, fd = guest.open("file")
            if error:
                break
            opened.append(fd)
        assert error == 33  # EMFILE
        assert len(opened) > 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in opened:
            guest("fd_close", fd)


@pytest.mark.parametrize("extra", [0, EXCL, TRUNC])
def test_a_directory_is_not_created_by_opening(guest: Guest, root: Path, extra: int) -> None:
    for path in ("new", "d", "file"):
        assert guest.open(path, oflags=CREAT | DIRECTORY | extra)[0] == errno.INVAL
    assert not (root / "new").exists()


def test_a_pipe_in_the_tree(guest: Guest, root: Path) -> None:
    """Opening one blocks, as everywhere, unless the guest asks it not to."""
    os.mkfifo(root / "fifo")
    nonblock = 4
    assert guest.open("fifo", base=WRITE, fdflags=nonblock)[0] == 60  # ENXIO: nobody reads
    error, reader = guest.open("fifo", base=READ, fdflags=nonblock)
    assert error == 0
    assert guest.open("fifo", base=WRITE, fdflags=nonblock)[0] == 0
    opened = guest.program.descriptors.get(reader)
    assert opened.kind == filetypes.FIFO
    assert not opened.base & rights.FD_SEEK


def test_what_is_special_is_not_read_only(readonly: Guest, root: Path) -> None:
    """Writing to a device or a pipe changes nothing in the filesystem it lies in."""
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    for path in ("fifo", "null"):
        for oflags in (0, CREAT, TRUNC):
            assert readonly.open(path, base=READ | WRITE, oflags=oflags)[0] == 0
        assert readonly.open(path, base=READ | WRITE, oflags=CREAT | EXCL)[0] == errno.EXIST
    assert readonly.open("d", oflags=TRUNC)[0] == errno.ROFS
    assert readonly.open("link", base=READ | WRITE, lookup=0)[0] == LOOP


def test_no_more_descriptors_than_the_limit(guest: Guest, root: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        opened = []
        while True:
            guest._next = 1024
            error, fd = guest.open("file")
            if error:
                break
            opened.append(fd)
        assert error == 33  # EMFILE
        assert opened == list(range(1, len(opened) + 1))
        assert guest("fd_close", opened[7]) == 0
        assert guest.open("file") == (0, opened[7])
        for fd in opened:
            guest("fd_close", fd)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert guest.open("file") == (0, 1)
