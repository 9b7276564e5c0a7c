"""A guest's own descriptors by the paths that Linux has for them, where there is no procfs."""

from __future__ import annotations

import errno as linux
import gc
import os
from pathlib import Path

import pytest

from shim.wasi import filetypes, rights
from shim.wasi.preview1 import errno

from .conftest import Guest, InContainer

ROOT, VOLUME, STRICT = 3, 4, 5
DIRECTORY, TRUNC = 2, 8
USE = rights.FD_READ | rights.FD_WRITE
ISDIR = errno.FROM_LINUX[linux.EISDIR]
LOOP = errno.FROM_LINUX[linux.ELOOP]


@pytest.fixture(autouse=True)
def _tree(tmp_path: Path, in_container: InContainer) -> None:
    """As `devices.create_links` makes it, and an image that relies on it."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "proc").mkdir()
    (tmp_path / "vol" / "file").write_text("0123456789")
    for link, target in {
        "dev/fd": "/proc/self/fd",
        "dev/stdin": "/proc/self/fd/0",
        "dev/stdout": "/proc/self/fd/1",
        "log": "/dev/stdout",
        "vol/log": "../log",
        "vol/fds": "/dev/fd",
        "vol/to-dev": "../dev",
        "vol/loop": "loop",
        "dev/stdx": "nowhere",
    }.items():
        (tmp_path / link).symlink_to(target)


def write(guest: Guest, path: str, directory: int = ROOT) -> bytes | int:
    """What arrives of what is written to a path, or the errno of opening it."""
    error, fd = guest.open(path, directory=directory, base=rights.FD_WRITE)
    if error:
        return error
    assert guest("fd_write", fd, *guest.iovecs((guest.put(b"x"), 1)), guest.room(4)) == 0
    assert guest("fd_close", fd) == 0
    return os.read(guest.output, 64)


@pytest.mark.parametrize(
    ("directory", "path"),
    [
        *((ROOT, path) for path in ("dev/stdout", "dev/fd/1", "proc/self/fd/1", "log")),
        *((VOLUME, path) for path in ("log", "fds/1", "../dev/stdout", "to-dev/fd/1")),
        *((VOLUME, path) for path in ("/dev/stdout", "../../dev/./fd//1", "fds/../stdout")),
    ],
)
def test_standard_output(in_container: InContainer, directory: int, path: str) -> None:
    def entry(guest: Guest) -> None:
        if path == "fds/../stdout":  # which is beside what the kernel would have there
            assert write(guest, path, directory) == errno.NOENT
            return
        assert write(guest, path, directory) == b"x"
        assert write(guest, path, directory) == b"x"
        by_pid = path.replace("self", str(os.getpid()))
        assert write(guest, by_pid, directory) == b"x"

    in_container(entry)


def test_where_the_image_has_neither(in_container: InContainer, tmp_path: Path) -> None:
    (tmp_path / "proc").rmdir()
    (tmp_path / "dev" / "stdout").unlink()

    def entry(guest: Guest) -> None:
        assert write(guest, "proc/self/fd/1") == b"x"
        assert write(guest, "dev/stdout") == b"x"

    in_container(entry)


def test_what_is_no_such_name(in_container: InContainer) -> None:
    def entry(guest: Guest) -> None:
        for path in (
            *("dev/fd/77", "dev/fd/x", "dev/fd/", "dev/fd/1/x", "dev/stdx", "dev/stdx/1"),
            *("proc/1000000000/fd/1", "proc/self/fd", "vol/1", "vol/dev/stdout", "vol/fd/1"),
            *("proc/selfish/fd/1", "dev/fd/99999999999999999999"),
        ):
            assert write(guest, path) == errno.NOENT, path
        assert write(guest, "vol/loop") == LOOP
        # A directory that somebody called `dev`.
        assert write(guest, "stdout", VOLUME) == errno.NOENT

    in_container(entry)


def test_through_no_more_links_than_the_kernel_follows(
    in_container: InContainer, tmp_path: Path
) -> None:
    (tmp_path / "chain0").symlink_to("log")
    for number in range(1, 60):
        (tmp_path / f"chain{number}").symlink_to(f"chain{number - 1}")

    def entry(guest: Guest) -> None:
        assert write(guest, "chain9") == b"x"
        assert write(guest, "chain59") == LOOP

    in_container(entry)


def test_not_from_a_directory_that_is_confined(in_container: InContainer) -> None:
    def entry(guest: Guest) -> None:
        assert write(guest, "log", STRICT) == errno.NOTCAPABLE
        assert write(guest, "fds/1", STRICT) == errno.NOTCAPABLE
        error, vol = guest.open(".", directory=STRICT, oflags=DIRECTORY)
        assert error == 0
        assert write(guest, "log", vol) == errno.NOTCAPABLE

    in_container(entry)


def test_from_a_directory_that_the_program_opened(in_container: InContainer) -> None:
    def entry(guest: Guest) -> None:
        error, dev = guest.open("dev", directory=ROOT, oflags=DIRECTORY)
        assert error == 0
        assert write(guest, "stdout", dev) == b"x"
        assert write(guest, "fd/1", dev) == b"x"

    in_container(entry)


def test_rights_are_those_of_the_descriptor(in_container: InContainer) -> None:
    def entry(guest: Guest) -> None:
        def opened(path: str, base: int) -> int:
            error, fd = guest.open(path, directory=ROOT, base=base)
            return -error if error else guest.program.descriptors.get(fd).base & USE

        assert opened("dev/stdin", rights.FD_READ) == rights.FD_READ
        assert opened("dev/stdin", rights.ALL) == rights.FD_READ
        assert opened("dev/stdin", rights.FD_WRITE) == -errno.ACCES
        assert opened("dev/stdout", rights.FD_READ) == -errno.ACCES
        assert opened("dev/stdout", 0) == 0
        # What was given up does not come back.
        assert guest("fd_fdstat_set_rights", 1, 0, 0) == 0
        assert opened("dev/stdout", rights.FD_WRITE) == -errno.ACCES
        assert opened("dev/stdout", 0) == 0
        stat = ("path_filestat_get", ROOT, 1, *guest.path("dev/stdout"), guest.room(64))
        assert guest(*stat) == errno.NOTCAPABLE
        # Nor does what the directory in which it is named cannot pass on.
        assert guest("fd_fdstat_set_rights", ROOT, rights.DIRECTORY, 0) == 0
        assert opened("dev/stdin", rights.ALL) == 0

    in_container(entry)


def test_the_numbers_are_the_guests(in_container: InContainer, tmp_path: Path) -> None:
    """Which are not the kernel's; and the position is shared."""

    def entry(guest: Guest) -> None:
        os.dup(0)
        error, fd = guest.open("file", directory=VOLUME, base=rights.ALL)
        assert error == 0
        assert guest.program.descriptors.get(fd).fd != fd
        buffer = guest.room(4)
        for expected in (b"0123", b"4567"):
            error, other = guest.open(f"dev/fd/{fd}", directory=ROOT)
            assert error == 0
            assert guest("fd_read", other, *guest.iovecs((buffer, 4)), guest.room(4)) == 0
            assert bytes(guest.memory[buffer : buffer + 4]) == expected
        path = f"proc/self/fd/{fd}"
        assert guest.open(path, directory=ROOT, oflags=TRUNC)[0] == 0
        assert os.stat("/vol/file").st_size == 10  # not opened for writing
        assert guest.open(path, directory=ROOT, oflags=TRUNC, base=rights.FD_WRITE)[0] == 0
        assert os.stat("/vol/file").st_size == 0
        os.truncate("/vol/file", 10)
        kept = guest.program.descriptors.get(fd).base & ~rights.FD_FILESTAT_SET_SIZE
        assert guest("fd_fdstat_set_rights", fd, kept, 0) == 0
        emptying = guest.open(path, directory=ROOT, oflags=TRUNC, base=rights.FD_WRITE)
        assert emptying[0] == errno.NOTCAPABLE
        assert os.stat("/vol/file").st_size == 10

    in_container(entry)


def test_a_directory(in_container: InContainer, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / "vol" / f"file-{number}").touch()

    def entry(guest: Guest) -> None:
        for number in (VOLUME, STRICT):
            guest.program.descriptors.get(number).readonly = True
            path = f"dev/fd/{number}"
            error, fd = guest.open(path, directory=ROOT, oflags=DIRECTORY)
            assert error == 0
            # No more than any that the program has opened.
            assert guest.open("../log", directory=fd)[0] == errno.NOTCAPABLE
            confined = errno.NOTCAPABLE if number == STRICT else 0
            assert guest.open("to-dev", directory=fd)[0] == confined
            assert guest.open("new", directory=fd, oflags=1)[0] == errno.ROFS
            room, used = guest.room(200), guest.room(4)
            counts = []
            for held in (number, fd):
                assert guest("fd_readdir", held, room, 200, 0, used) == 0
                counts.append(guest.u32(used))
            assert counts == [200, 200]
        assert guest.open("dev/fd/1", directory=ROOT, oflags=DIRECTORY)[0] == errno.NOTDIR

    in_container(entry)


def test_attributes(in_container: InContainer) -> None:
    def entry(guest: Guest) -> None:
        result = guest.room(64)

        def kind(path: str, follow: int) -> int:
            path_ = guest.path(path)
            error = guest("path_filestat_get", ROOT, follow, *path_, result)
            return -error if error else guest.memory[result + 16]

        def target(path: str) -> bytes | int:
            buffer, size = guest.room(64), guest.room(4)
            error = guest("path_readlink", ROOT, *guest.path(path), buffer, 64, size)
            return error or bytes(guest.memory[buffer : buffer + guest.u32(size)])

        for path in ("dev/stdout", "dev/fd/1", "proc/self/fd/1", "log"):
            assert kind(path, 1) == filetypes.UNKNOWN
            assert guest.u64(result + 8) == os.fstat(1).st_ino
            assert kind(path, 0) == filetypes.SYMBOLIC_LINK
        assert kind("dev/fd/3", 1) == filetypes.DIRECTORY
        assert kind("dev/fd/77", 1) == kind("dev/fd/77", 0) == -errno.NOENT
        assert target("log") == b"/dev/stdout"
        assert target("dev/stdout") == b"/proc/self/fd/1"
        assert target("dev/fd/1") == b"pipe:[%d]" % os.fstat(1).st_ino
        assert target("dev/fd/3") == errno.INVAL
        assert target("dev/fd/77") == errno.NOENT

    in_container(entry)


def test_nothing_is_left_open(in_container: InContainer, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    counted = os.open("/proc/self/fd", os.O_RDONLY)

    def entry(guest: Guest) -> None:
        gc.collect()  # what pytest has not closed
        open_before = len(os.listdir(counted))
        for path in ("dev/stdout", "log", "dev/fd/77", "vol/loop", "dev/fd/1/x", "dev/stdx"):
            write(guest, path)
            guest("path_filestat_get", ROOT, 1, *guest.path(path), 0)
        assert write(guest, "dev/fd/3") == ISDIR
        assert write(guest, "dev/stdin") == errno.ACCES
        assert len(os.listdir(counted)) == open_before

    try:
        in_container(entry)
    finally:
        os.close(counted)
    assert len(os.listdir("/proc/self/fd")) == before
