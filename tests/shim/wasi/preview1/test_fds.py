from __future__ import annotations

import fcntl
import os
import struct
import time
from pathlib import Path

import pytest

from shim.wasi import descriptors, filetypes, rights
from shim.wasi.descriptors import inherited
from shim.wasi.files import attributes
from shim.wasi.preview1 import errno

from .conftest import PAGE, Guest

CREAT = 1
TRUNC = 8


def filestat(guest: Guest, fd: int) -> tuple[int, ...]:
    """dev, ino, filetype, nlink, size, atim, mtim, ctim."""
    result = guest.room(64)
    assert guest("fd_filestat_get", fd, result) == 0
    return struct.unpack("<QQBxxxxxxxQQQQQ", guest.memory[result : result + 64])


def fdstat(guest: Guest, fd: int) -> tuple[int, int, int, int]:
    """filetype, flags, rights, inheriting."""
    result = guest.room(24)
    assert guest("fd_fdstat_get", fd, result) == 0
    kind, flags, base, inheriting = struct.unpack("<BxHxxxxQQ", guest.memory[result : result + 24])
    return kind, flags, base, inheriting


@pytest.fixture
def file(guest: Guest, tmp_path: Path) -> int:
    """A file holding `0123456789`, open for reading and writing."""
    (tmp_path / "file").write_bytes(b"0123456789")
    error, fd = guest.open("file", base=rights.ALL)
    assert error == 0
    return fd


def write(guest: Guest, fd: int, *pieces: bytes, at: int | None = None) -> tuple[int, int]:
    iovecs = guest.iovecs(*((guest.put(piece), len(piece)) for piece in pieces))
    result = guest.room(4)
    if at is None:
        return guest("fd_write", fd, *iovecs, result), guest.u32(result)
    return guest("fd_pwrite", fd, *iovecs, at, result), guest.u32(result)


def read(guest: Guest, fd: int, *sizes: int, at: int | None = None) -> tuple[int, list[bytes]]:
    places = [(guest.room(size), size) for size in sizes]
    result = guest.room(4)
    if at is None:
        error = guest("fd_read", fd, *guest.iovecs(*places), result)
    else:
        error = guest("fd_pread", fd, *guest.iovecs(*places), at, result)
    left = guest.u32(result)
    found = []
    for place, size in places:
        found.append(bytes(guest.memory[place : place + min(size, left)]))
        left -= min(size, left)
    return error, found


def seek(guest: Guest, fd: int, offset: int, whence: int) -> tuple[int, int]:
    result = guest.room(8)
    return guest("fd_seek", fd, offset, whence, result), guest.u64(result)


def test_gather_and_scatter(guest: Guest, file: int, tmp_path: Path) -> None:
    assert write(guest, file, b"ab", b"", b"cde") == (0, 5)
    assert (tmp_path / "file").read_bytes() == b"abcde56789"
    assert read(guest, file, 2, 10) == (0, [b"56", b"789"])
    assert read(guest, file, 5) == (0, [b""])


def test_positions(guest: Guest, file: int) -> None:
    assert seek(guest, file, 4, 0) == (0, 4)
    assert seek(guest, file, -1, 1) == (0, 3)
    assert seek(guest, file, -2, 2) == (0, 8)
    assert read(guest, file, 3, at=1) == (0, [b"123"])
    assert write(guest, file, b"x", at=0) == (0, 1)
    result = guest.room(8)
    assert guest("fd_tell", file, result) == 0
    assert guest.u64(result) == 8
    assert seek(guest, file, -9, 1)[0] == errno.INVAL
    assert seek(guest, file, 0, 3)[0] == errno.INVAL
    assert seek(guest, file, 0, -1)[0] == errno.INVAL


@pytest.mark.parametrize("at", [1 << 63, (1 << 64) - 1])
def test_offsets_that_are_no_offsets(guest: Guest, file: int, at: int) -> None:
    assert read(guest, file, 1, at=at)[0] == errno.INVAL
    assert write(guest, file, b"x", at=at)[0] == errno.INVAL
    assert guest("fd_allocate", file, at, 1) == errno.INVAL
    assert guest("fd_filestat_set_size", file, at) == errno.INVAL
    assert guest("fd_advise", file, at, 1, 0) == errno.INVAL


def test_an_offset_beyond_four_gigabytes(guest: Guest, file: int, tmp_path: Path) -> None:
    assert write(guest, file, b"x", at=1 << 33) == (0, 1)
    assert filestat(guest, file)[4] == (1 << 33) + 1
    assert read(guest, file, 1, at=1 << 33) == (0, [b"x"])
    assert guest("fd_filestat_set_size", file, 3) == 0
    assert (tmp_path / "file").read_bytes() == b"012"


def test_bad_pointers_are_efault(guest: Guest, file: int) -> None:
    result = guest.room(4)
    good = guest.iovecs((guest.room(8), 8))
    outside = guest.iovecs((PAGE - 1, 8))
    wrapping = guest.iovecs((0xFFFFFFFF, 0xFFFFFFFF))
    for name in ("fd_read", "fd_write"):
        assert guest(name, file, *outside, result) == errno.FAULT
        assert guest(name, file, *wrapping, result) == errno.FAULT
        assert guest(name, file, PAGE - 4, 1, result) == errno.FAULT
        assert guest(name, file, 0, 0xFFFFFFFF, result) == errno.FAULT
        assert guest(name, file, *good, PAGE - 2) == errno.FAULT
    for name in ("fd_fdstat_get", "fd_filestat_get", "fd_tell"):
        assert guest(name, file, PAGE - 1) == errno.FAULT
    assert guest("fd_prestat_get", 0, PAGE - 7) == errno.FAULT
    assert guest("fd_prestat_dir_name", 0, PAGE, 1) == errno.FAULT


def test_overlapping_iovecs(guest: Guest, file: int) -> None:
    place = guest.room(8)
    result = guest.room(4)
    assert guest("fd_read", file, *guest.iovecs((place, 4), (place + 2, 4)), result) == 0
    assert guest.memory[place : place + 6] == b"014567"


def test_times(guest: Guest, file: int) -> None:
    atim, mtim, now = 1_000_000_000_000_000_001, 2_000_000_000_000_000_002, 1 | 8
    assert guest("fd_filestat_set_times", file, atim, mtim, 1 | 4) == 0
    assert filestat(guest, file)[5:7] == (atim, mtim)
    assert guest("fd_filestat_set_times", file, 5, mtim, 1) == 0
    assert filestat(guest, file)[5:7] == (5, mtim)
    assert guest("fd_filestat_set_times", file, 7, 0, now) == 0
    assert filestat(guest, file)[5] == 7
    assert abs(filestat(guest, file)[6] - time.time_ns()) < 600e9
    for contradiction in (1 | 2, 4 | 8, 15, 16):
        assert guest("fd_filestat_set_times", file, 9, 9, contradiction) == errno.INVAL
    assert filestat(guest, file)[5] == 7


def test_a_time_before_1970_reads_as_zero(guest: Guest, file: int, tmp_path: Path) -> None:
    os.utime(tmp_path / "file", ns=(-5, -5))
    assert filestat(guest, file)[5:7] == (0, 0)


def test_attributes(guest: Guest, file: int, tmp_path: Path) -> None:
    os.link(tmp_path / "file", tmp_path / "other")
    found = os.stat(tmp_path / "file")
    assert filestat(guest, file)[:5] == (
        found.st_dev,
        found.st_ino,
        filetypes.REGULAR_FILE,
        2,
        10,
    )


def test_flags(guest: Guest, file: int, tmp_path: Path) -> None:
    append, dsync, nonblock, sync = 1, 2, 4, 16
    assert fdstat(guest, file)[1] == 0
    assert guest("fd_fdstat_set_flags", file, append | nonblock) == 0
    assert fdstat(guest, file)[1] == append | nonblock
    assert write(guest, file, b"end") == (0, 3)
    assert (tmp_path / "file").read_bytes() == b"0123456789end"
    assert guest("fd_fdstat_set_flags", file, 0) == 0
    assert fdstat(guest, file)[1] == 0
    assert guest("fd_fdstat_set_flags", file, sync) == errno.NOTSUP
    assert guest("fd_fdstat_set_flags", file, 32) == errno.INVAL
    _, synced = guest.open("file", base=rights.ALL, fdflags=dsync)
    assert fdstat(guest, synced)[1] == dsync
    assert guest("fd_fdstat_set_flags", synced, dsync | append) == 0
    assert fdstat(guest, synced)[1] == dsync | append


def test_rights_can_only_be_given_up(guest: Guest, file: int) -> None:
    _, _, base, inheriting = fdstat(guest, file)
    assert base == rights.FILE
    assert inheriting == 0
    less = base & ~rights.FD_WRITE
    assert guest("fd_fdstat_set_rights", file, less, 0) == 0
    assert fdstat(guest, file)[2] == less
    assert write(guest, file, b"x") == (errno.BADF, 0)
    assert guest("fd_fdstat_set_rights", file, base, 0) == errno.NOTCAPABLE
    assert guest("fd_fdstat_set_rights", file, less, rights.FD_READ) == errno.NOTCAPABLE
    assert guest("fd_fdstat_set_rights", file, 0, 0) == 0
    assert read(guest, file, 1)[0] == errno.BADF
    assert seek(guest, file, 0, 0)[0] == errno.NOTCAPABLE
    assert guest("fd_filestat_get", file, guest.room(64)) == errno.NOTCAPABLE


def test_a_directory_is_no_file(guest: Guest) -> None:
    assert read(guest, 0, 1)[0] == errno.BADF
    assert write(guest, 0, b"x")[0] == errno.BADF
    assert seek(guest, 0, 0, 0)[0] == errno.NOTCAPABLE
    assert guest("fd_allocate", 0, 0, 1) == errno.NOTCAPABLE
    assert guest("fd_filestat_set_size", 0, 0) == errno.NOTCAPABLE
    assert guest("fd_sync", 0) == 0
    assert guest("fd_datasync", 0) == 0
    assert fdstat(guest, 0)[0] == filetypes.DIRECTORY


def test_allocating_and_advising(guest: Guest, file: int) -> None:
    assert guest("fd_allocate", file, 90, 10) == 0
    assert filestat(guest, file)[4] == 100
    assert guest("fd_allocate", file, 0, 10) == 0
    assert filestat(guest, file)[4] == 100
    assert guest("fd_allocate", file, 0, 0) == errno.INVAL
    for advice in range(6):
        assert guest("fd_advise", file, 0, 10, advice) == 0
    assert guest("fd_advise", file, 0, 10, 6) == errno.INVAL
    assert guest("fd_sync", file) == 0
    assert guest("fd_datasync", file) == 0


def test_numbers_are_the_lowest_free(guest: Guest, file: int) -> None:
    assert file == 1
    assert [guest.open("file")[1] for _ in range(3)] == [2, 3, 4]
    for fd in (3, 1):
        assert guest("fd_close", fd) == 0
        assert guest("fd_close", fd) == errno.BADF
    assert [guest.open("file")[1] for _ in range(3)] == [1, 3, 5]


def test_renumbering(guest: Guest, file: int, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    _, other = guest.open("other")
    replaced = guest.program.descriptors.get(file).fd
    assert guest("fd_renumber", other, file) == 0
    assert read(guest, file, 5) == (0, [b"other"])
    assert guest("fd_close", other) == errno.BADF
    with pytest.raises(OSError):
        os.fstat(replaced)
    assert guest("fd_renumber", file, other) == errno.BADF
    assert guest("fd_renumber", other, file) == errno.BADF
    assert guest("fd_renumber", file, file) == 0
    assert read(guest, file, 1) == (0, [b""])
    assert guest.open("other")[1] == other


def test_closing_really_closes(guest: Guest, file: int) -> None:
    linux = guest.program.descriptors.get(file).fd
    assert guest("fd_close", file) == 0
    with pytest.raises(OSError):
        os.fstat(linux)


def test_preopens(guest: Guest, file: int) -> None:
    result = guest.room(8)
    assert guest("fd_prestat_get", 0, result) == 0
    assert (guest.u32(result), guest.u32(result + 4)) == (0, 1)
    name = guest.room(8)
    assert guest("fd_prestat_dir_name", 0, name, 0) == errno.NAMETOOLONG
    assert guest("fd_prestat_dir_name", 0, name, 1) == 0
    assert guest.memory[name : name + 2] == b"/\0"
    assert guest("fd_prestat_get", file, result) == errno.BADF
    assert guest("fd_prestat_get", 99, result) == errno.BADF
    assert guest("fd_prestat_dir_name", file, name, 1) == errno.BADF


@pytest.mark.parametrize("fd", [99, -1, 0x7FFFFFFF])
def test_numbers_of_nothing(guest: Guest, fd: int) -> None:
    assert read(guest, fd, 1)[0] == errno.BADF
    assert guest("fd_close", fd) == errno.BADF
    assert guest("fd_renumber", fd, 0) == errno.BADF
    assert guest("path_unlink_file", fd, *guest.path("x")) == errno.BADF


def test_a_pipe(guest: Guest) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    sink = inherited(theirs)
    fd = guest.program.descriptors.add(sink)
    assert fdstat(guest, fd)[0] == filetypes.UNKNOWN
    assert not sink.base & rights.FD_READ
    assert write(guest, fd, b"through") == (0, 7)
    assert os.read(ours, 10) == b"through"
    assert read(guest, fd, 1)[0] == errno.BADF
    os.close(ours)
    assert write(guest, fd, b"nobody") == (64, 0)  # EPIPE, and no signal


def test_a_read_that_would_block(guest: Guest) -> None:
    ours, theirs = os.pipe()
    fd = guest.program.descriptors.add(inherited(ours))
    assert guest("fd_fdstat_set_flags", fd, 4) == 0
    assert read(guest, fd, 1)[0] == errno.AGAIN
    os.close(theirs)
    assert read(guest, fd, 1) == (0, [b""])


def test_how_libc_recognises_a_terminal() -> None:
    seekable = rights.FD_SEEK | rights.FD_TELL
    controller, terminal = os.openpty()
    null = os.open("/dev/null", os.O_RDWR)
    try:
        assert inherited(terminal).kind == inherited(null).kind == filetypes.CHARACTER_DEVICE
        assert not inherited(terminal).base & seekable
        assert inherited(null).base & seekable == seekable
        assert fcntl.fcntl(null, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        assert inherited(null).base & rights.FD_READ
    finally:
        for fd in (controller, terminal, null):
            os.close(fd)


def test_a_terminal_that_the_guest_opens(guest: Guest) -> None:
    controller, terminal = os.openpty()
    devices, name = os.path.split(os.ttyname(terminal))
    guest.program.descriptors.get(0).fd = os.open(devices, os.O_RDONLY)
    error, fd = guest.open(name, base=rights.ALL)
    assert error == 0
    kind, _, base, _ = fdstat(guest, fd)
    assert kind == filetypes.CHARACTER_DEVICE
    assert base & (rights.FD_READ | rights.FD_SEEK) == rights.FD_READ
    os.close(controller)
    os.close(terminal)


def test_pipes_open_for_both_directions(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    child = os.fork()
    if child == 0:
        fifo = os.open(tmp_path / "fifo", os.O_RDWR)
        for fd in range(3):
            os.dup2(fifo, fd)
        both = rights.FD_READ | rights.FD_WRITE
        os._exit([descriptors.stdio(fd).base & both for fd in range(3)] != [2, 64, 64])
    assert os.waitpid(child, 0)[1] == 0


def test_what_is_read_only_refuses_to_change(readonly: Guest, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    error, file = readonly.open("file")
    assert error == 0
    assert read(readonly, file, 3) == (0, [b"012"])
    assert readonly("fd_filestat_set_times", file, 1, 1, 5) == errno.ROFS
    assert readonly("fd_filestat_set_size", file, 0) == errno.ROFS
    assert readonly("fd_allocate", file, 0, 100) == errno.ROFS
    assert write(readonly, file, b"x")[0] == errno.BADF
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_what_has_no_position(guest: Guest) -> None:
    ours, theirs = os.pipe()
    reader, writer = (guest.program.descriptors.add(inherited(fd)) for fd in (ours, theirs))
    spipe = 70
    assert seek(guest, reader, 0, 0)[0] == spipe
    assert seek(guest, reader, 0, 1)[0] == spipe
    assert guest("fd_tell", writer, guest.room(8)) == spipe
    assert read(guest, reader, 1, at=0)[0] == spipe
    assert write(guest, writer, b"x", at=0)[0] == spipe
    assert read(guest, writer, 1, at=0)[0] == errno.BADF


def test_overlapping_and_missing_buffers(guest: Guest, file: int, tmp_path: Path) -> None:
    place, result = guest.room(16), guest.room(4)
    overlapping = guest.iovecs((place, 4), (place + 2, 4), (place, 1))
    assert guest("fd_read", file, *overlapping, result) == 0
    assert guest.u32(result) == 9
    assert guest.memory[place : place + 6] == b"814567"
    for name, offset in (
        ("fd_read", ()),
        ("fd_write", ()),
        ("fd_pread", (0,)),
        ("fd_pwrite", (0,)),
    ):
        assert guest(name, file, 0, 0, *offset, result) == 0
        assert guest.u32(result) == 0
        assert guest(name, file, *guest.iovecs((place, 0)), *offset, result) == 0
    many = guest.iovecs(*[(0, PAGE)] * 1024)  # 64 MiB of a memory of 64 KiB
    assert guest("fd_pread", file, *many, 0, result) == 0
    assert guest.u32(result) == 10


def test_the_iovec_itself_may_be_overwritten(guest: Guest, file: int) -> None:
    """The buffers are those that it named when the call was made."""
    iovecs, count = guest.iovecs((guest._next, 8))
    assert guest("fd_read", file, iovecs, count, iovecs) == 0
    assert guest.u32(iovecs) == 8


def test_positions_beyond_the_largest(guest: Guest, file: int) -> None:
    largest = (1 << 63) - 1
    for offset, whence in (
        (-1, 0),
        (-(1 << 63), 0),
        (-(1 << 63), 1),
        (-(1 << 63), 2),
        (largest, 2),
    ):
        assert seek(guest, file, offset, whence)[0] in (errno.INVAL, errno.OVERFLOW)
    assert seek(guest, file, 0, 1) == (0, 0)
    assert read(guest, file, 1, at=largest)[0] in (0, errno.INVAL)
    assert write(guest, file, b"x", at=largest)[0] in (errno.INVAL, 22)  # EFBIG
    assert guest("fd_allocate", file, largest, largest) in (errno.INVAL, 22)
    assert filestat(guest, file)[4] == 10


def test_times_that_do_not_fit(guest: Guest, file: int, tmp_path: Path) -> None:
    """Unsigned nanoseconds begin in 1970 and end in 2554; what others set may lie outside."""

    class Attributes:
        st_dev = st_ino = st_mode = st_nlink = st_size = 1
        st_atime_ns, st_mtime_ns, st_ctime_ns = -5, 1 << 64, (1 << 64) - 1

    found = attributes(Attributes())  # type: ignore[arg-type]  # few filesystems keep such times
    assert found[5:] == (0, (1 << 64) - 1, (1 << 64) - 1)
    os.utime(tmp_path / "file", ns=(-5_000_000_000, -5_000_000_000))
    assert filestat(guest, file)[5:7] == (0, 0)
