"""`wasi_unstable`: what is laid out otherwise than in preview 1."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from shim.wasi import preview1, rights
from shim.wasi.preview1 import errno

from .conftest import Guest

MS = 1_000_000


@pytest.fixture
def old(guest: Guest) -> Guest:
    """The guest, with the other functions."""
    provided = preview1.provide(guest.program)
    guest.functions = {
        name: bound for (module, name), bound in provided.items() if module == preview1.UNSTABLE
    }
    return guest


@pytest.fixture
def file(old: Guest, tmp_path: Path) -> int:
    (tmp_path / "file").write_bytes(b"0123456789")
    os.link(tmp_path / "file", tmp_path / "other")
    error, fd = old.open("file", base=rights.ALL)
    assert error == 0
    return fd


def seek(guest: Guest, file: int, offset: int, whence: int) -> int:
    result = guest.room(8)
    assert guest("fd_seek", file, offset, whence, result) == 0
    return int.from_bytes(guest.memory[result : result + 8], "little")


def test_the_three_places_to_seek_from_have_other_numbers(old: Guest, file: int) -> None:
    start, current, end = 2, 0, 1
    assert seek(old, file, 4, start) == 4
    assert seek(old, file, 3, current) == 7
    assert seek(old, file, -1, end) == 9
    assert old("fd_seek", file, 0, 3, old.room(8)) == errno.INVAL


def test_attributes_have_56_bytes(old: Guest, file: int, tmp_path: Path) -> None:
    os.utime(tmp_path / "file", ns=(5, 7))
    found = (tmp_path / "file").stat()
    expected = (found.st_dev, found.st_ino, 4, 2, 10, 5, 7, found.st_ctime_ns)
    by_fd, by_path = old.put(b"\xee" * 64), old.put(b"\xee" * 64)
    assert old("fd_filestat_get", file, by_fd) == 0
    assert old("path_filestat_get", 0, 0, *old.path("file"), by_path) == 0
    for place in by_fd, by_path:
        stored = old.memory[place : place + 64]
        assert struct.unpack_from("<QQB3xIQQQQ", stored) == expected
        assert stored[56:] == b"\xee" * 8


def test_a_subscription_of_a_clock_has_an_identifier(old: Guest, file: int) -> None:
    monotonic, write = 1, 2
    clock = struct.pack("<QB7xQI4xQQH6x", 77, 0, 123456789, monotonic, 20 * MS, 0, 0)
    ready = struct.pack("<QB7xI36x", 78, write, file)
    assert len(clock) == len(ready) == 56
    events, result = old.room(64), old.room(4)
    before = time.monotonic_ns()
    assert old("poll_oneoff", old.put(clock), events, 1, result) == 0
    assert time.monotonic_ns() - before >= 20 * MS
    assert struct.unpack_from("<QHB", old.memory, events) == (77, 0, 0)
    assert old("poll_oneoff", old.put(clock + ready), events, 2, result) == 0
    assert old.u32(result) == 1
    assert struct.unpack_from("<QHB", old.memory, events)[0] == 78


def test_it_has_all_that_preview_1_had(guest: Guest) -> None:
    names = {"sock_accept"}  # which came later
    provided = preview1.provide(guest.program)
    old = {name for module, name in provided if module == preview1.UNSTABLE}
    assert names.isdisjoint(old)
    assert {"fd_read", "path_open", "proc_exit", "sock_recv", "sock_shutdown"} <= old
