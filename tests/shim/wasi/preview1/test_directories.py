from __future__ import annotations

import os
import struct
from pathlib import Path

from shim.wasi import filetypes
from shim.wasi.preview1 import errno

from .conftest import PAGE, Guest

HEADER = 24


def readdir(guest: Guest, size: int, cookie: int = 0, fd: int = 0) -> bytes:
    buffer, result = guest.room(size), guest.room(4)
    assert guest("fd_readdir", fd, buffer, size, cookie, result) == 0
    return bytes(guest.memory[buffer : buffer + guest.u32(result)])


def entries(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(next, inode, filetype, name) of the whole entries."""
    found = []
    while len(data) >= HEADER:
        cookie, inode, length, kind = struct.unpack("<QQIBxxx", data[:HEADER])
        name, data = data[HEADER : HEADER + length], data[HEADER + length :]
        if len(name) == length:
            found.append((cookie, inode, kind, name))
    return found


def walk(guest: Guest, size: int) -> list[bytes]:
    """Read a directory as libc does."""
    names: list[bytes] = []
    cookie = 0
    while True:
        guest._next = 1024
        data = readdir(guest, size, cookie)
        for cookie, _, _, name in entries(data):  # noqa: B007
            names.append(name)
        if len(data) < size:
            return names


def test_an_empty_directory(guest: Guest, tmp_path: Path) -> None:
    own = os.stat(tmp_path).st_ino
    assert entries(readdir(guest, 4096)) == [
        (1, own, filetypes.DIRECTORY, b"."),
        (2, own, filetypes.DIRECTORY, b".."),
    ]


def test_what_entries_say(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "device", 0o020600, os.makedev(1, 3))
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).touch()
    found = {name: (inode, kind) for _, inode, kind, name in entries(readdir(guest, 4096))}
    kinds = {
        b"file": filetypes.REGULAR_FILE,
        b"dir": filetypes.DIRECTORY,
        b"link": filetypes.SYMBOLIC_LINK,
        b"fifo": filetypes.UNKNOWN,
        b"device": filetypes.CHARACTER_DEVICE,
        b"\xff": filetypes.REGULAR_FILE,
    }
    for name, kind in kinds.items():
        assert found[name] == (os.lstat(os.fsencode(tmp_path) + b"/" + name).st_ino, kind)


def test_every_buffer_size_sees_every_name_once(guest: Guest, tmp_path: Path) -> None:
    names = {f"name-{'x' * (i % 40)}{i}".encode() for i in range(100)}
    for name in names:
        open(os.fsencode(tmp_path) + b"/" + name, "w").close()
    for size in (90, 91, 97, 128, 256, 1000, 4096, 30000):
        found = walk(guest, size)
        assert len(found) == 102
        assert set(found) == names | {b".", b".."}


def test_an_entry_is_cut_off_where_the_buffer_ends(guest: Guest, tmp_path: Path) -> None:
    whole = readdir(guest, 4096)
    for size in range(len(whole) + 1):
        guest._next = 1024
        assert readdir(guest, size) == whole[:size]
        assert readdir(guest, size, 1) == whole[HEADER + 1 :][:size]
    assert readdir(guest, 100, 2) == b""
    assert readdir(guest, 100, 1 << 63) == b""
    assert readdir(guest, 100, (1 << 64) - 1) == b""


def test_a_directory_that_changes_while_it_is_read(guest: Guest, tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"old{i}").touch()
    first = entries(readdir(guest, 300))
    for i in range(20):
        (tmp_path / f"old{i}").unlink()
        (tmp_path / f"new{i}").touch()
    rest = entries(readdir(guest, 4096, first[-1][0]))
    names = [name for *_, name in first + rest]
    assert sorted(names) == sorted([b".", b"..", *(f"old{i}".encode() for i in range(20))])
    again = [name for *_, name in entries(readdir(guest, 4096))]
    assert b"new0" in again
    assert b"old0" not in again


def test_what_cannot_be_read(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = guest.room(4)
    _, file = guest.open("file")
    assert guest("fd_readdir", file, guest.room(64), 64, 0, result) == errno.NOTDIR
    assert guest("fd_readdir", 99, guest.room(64), 64, 0, result) == errno.BADF
    assert guest("fd_readdir", 0, PAGE - 10, 64, 0, result) == errno.FAULT
    assert guest("fd_readdir", 0, guest.room(64), 64, 0, PAGE - 1) == errno.FAULT


def test_a_directory_that_was_removed(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    _, fd = guest.open("gone")
    (tmp_path / "gone").rmdir()
    assert readdir(guest, 4096, fd=fd) == b""


def test_going_back_in_a_large_directory(guest: Guest, tmp_path: Path) -> None:
    """Several parts: any number finds the same entry again, in whatever order they are asked."""
    for i in range(3000):
        (tmp_path / f"a-name-that-takes-some-room-{i}").touch()
    names = walk(guest, 4096)
    assert len(set(names)) == 3002
    for number in (2999, 5, 3001, 0, 1500, 1499, 2500, 3000):
        guest._next = 1024
        cookie, _, _, name = entries(readdir(guest, 100, number))[0]
        assert (cookie, name) == (number + 1, names[number])
    for number in (3002, 3003, 1 << 32, (1 << 64) - 1):
        assert readdir(guest, 100, number) == b""
    stream = guest.program.descriptors.get(0).stream
    assert stream is not None
    assert len(stream._entries) < 1000


def test_what_stays_is_seen_once_while_the_rest_changes(guest: Guest, tmp_path: Path) -> None:
    for i in range(2000):
        (tmp_path / f"stays-{i}").touch()
        (tmp_path / f"goes-{i}").touch()
    seen: list[bytes] = []
    cookie = removed = 0
    while True:
        guest._next = 1024
        data = readdir(guest, 4096, cookie)
        for cookie, _, _, name in entries(data):  # noqa: B007
            seen.append(name)
        for _ in range(40):
            if removed < 2000:
                (tmp_path / f"goes-{removed}").unlink()
                (tmp_path / f"comes-{removed}").touch()
                removed += 1
        if len(data) < 4096:
            break
    stays = [name for name in seen if name.startswith(b"stays-")]
    assert len(stays) == len(set(stays)) == 2000


def test_a_directory_that_may_not_be_read(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    _, fd = guest.open("d")
    descriptor = guest.program.descriptors.get(fd)
    path = os.open(tmp_path / "d", os.O_PATH)
    os.dup2(path, descriptor.fd)  # what `Program.grant` leaves where it may not be opened
    os.close(path)
    assert guest("fd_readdir", fd, guest.room(64), 64, 0, guest.room(4)) in (
        errno.ACCES,
        errno.BADF,
    )
