from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

from shim.wasi.descriptors import inherited
from shim.wasi.preview1 import clocks, errno

from .conftest import PAGE, Guest

CLOCK, READ, WRITE = 0, 1, 2
MS = 1_000_000


def clock(userdata: int, timeout: int, *, number: int = clocks.MONOTONIC, flags: int = 0) -> bytes:
    return struct.pack("<QB7xI4xQQH6x", userdata, CLOCK, number, timeout, 0, flags)


def ready(userdata: int, kind: int, fd: int) -> bytes:
    return struct.pack("<QB7xI28x", userdata, kind, fd)


def poll(guest: Guest, *subscriptions: bytes) -> list[tuple[int, int, int, int, int]]:
    """Return events: userdata, errno, type, bytes, flags."""
    events, result = guest.room(32 * len(subscriptions)), guest.room(4)
    where = guest.put(b"".join(subscriptions))
    assert guest("poll_oneoff", where, events, len(subscriptions), result) == 0
    found = guest.memory[events : events + 32 * guest.u32(result)]
    return list(struct.iter_unpack("<QHB5xQH6x", found))


def pipe(guest: Guest) -> tuple[int, int, int, int]:
    """Return a pipe's ends as the guest's descriptors, then as Linux's."""
    ours, theirs = os.pipe()
    table = guest.program.descriptors
    return table.add(inherited(ours)), table.add(inherited(theirs)), ours, theirs


def test_sleeping(guest: Guest) -> None:
    before = time.monotonic_ns()
    assert poll(guest, clock(7, 5 * MS)) == [(7, 0, CLOCK, 0, 0)]
    assert time.monotonic_ns() - before >= 5 * MS


def test_absolute_times(guest: Guest) -> None:
    end = time.monotonic_ns() + 5 * MS
    assert poll(guest, clock(1, end, flags=1)) == [(1, 0, CLOCK, 0, 0)]
    assert time.monotonic_ns() >= end
    end = time.time_ns() + 5 * MS
    assert poll(guest, clock(2, end, number=clocks.REALTIME, flags=1)) == [(2, 0, CLOCK, 0, 0)]
    assert time.time_ns() >= end - MS
    for past in (0, 1):
        assert len(poll(guest, clock(3, past, flags=1))) == 1
        assert len(poll(guest, clock(3, past, number=clocks.REALTIME, flags=1))) == 1


def test_only_clocks_that_have_run_out(guest: Guest) -> None:
    forever = (1 << 64) - 1
    assert poll(guest, clock(1, forever), clock(2, MS), clock(3, forever, flags=1)) == [
        (2, 0, CLOCK, 0, 0)
    ]
    assert [event[0] for event in poll(guest, clock(1, 0), clock(2, 0))] == [1, 2]


def test_a_clock_that_cannot_be_waited_for(guest: Guest) -> None:
    forever = 1 << 63
    assert poll(guest, clock(1, 0, number=2), clock(2, forever)) == [(1, errno.NOTSUP, CLOCK, 0, 0)]


def test_descriptors_and_a_clock(guest: Guest) -> None:
    reader, writer, _, theirs = pipe(guest)
    assert poll(guest, ready(1, READ, reader), clock(2, MS)) == [(2, 0, CLOCK, 0, 0)]
    os.write(theirs, b"abc")
    assert poll(guest, ready(1, READ, reader), clock(2, 1 << 62)) == [(1, 0, READ, 3, 0)]
    assert poll(guest, ready(1, READ, reader), ready(2, WRITE, writer)) == [
        (1, 0, READ, 3, 0),
        (2, 0, WRITE, 0, 0),
    ]


def test_the_other_end_has_gone(guest: Guest) -> None:
    reader, writer, _, _ = pipe(guest)
    guest("fd_close", writer)
    assert poll(guest, ready(1, READ, reader)) == [(1, 0, READ, 0, 1)]


def test_waking_up_when_data_comes(guest: Guest) -> None:
    reader, _, _, theirs = pipe(guest)
    child = os.fork()
    if child == 0:
        time.sleep(0.02)
        os.write(theirs, b"x")
        os._exit(0)
    try:
        assert poll(guest, clock(2, 1 << 62), ready(1, READ, reader)) == [(1, 0, READ, 1, 0)]
    finally:
        os.waitpid(child, 0)


def test_listeners_and_connections(guest: Guest) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    fd = guest.program.descriptors.add(inherited(listener.detach()))
    assert poll(guest, ready(1, READ, fd), clock(2, MS)) == [(2, 0, CLOCK, 0, 0)]
    client = socket.create_connection(address, 10)
    forever = clock(9, 1 << 62)
    assert poll(guest, ready(1, READ, fd), forever) == [(1, 0, READ, 1, 0)]
    place = guest.room(4)
    assert guest("sock_accept", fd, 0, place) == 0
    accepted = guest.u32(place)
    both = ready(1, READ, accepted), ready(2, WRITE, accepted)
    assert poll(guest, *both, forever) == [(2, 0, WRITE, 0, 0)]
    client.send(b"hello")
    assert poll(guest, *both[:1], forever) == [(1, 0, READ, 5, 0)]
    # The peer says that it sends no more. It may still read: that is the end of a stream, and none
    # of the connection.
    client.shutdown(socket.SHUT_WR)
    assert guest("fd_read", accepted, *guest.iovecs((guest.room(8), 8)), place) == 0
    assert poll(guest, *both[:1], forever) == [(1, 0, READ, 0, 0)]
    client.close()
    assert guest("sock_shutdown", accepted, 2) == 0
    assert poll(guest, *both[:1], forever) == [(1, 0, READ, 0, 1)]


def test_datagrams(guest: Guest) -> None:
    theirs, ours = socket.socketpair(type=socket.SOCK_DGRAM)
    with ours:
        fd = guest.program.descriptors.add(inherited(theirs.detach()))
        ours.send(b"one")
        ours.send(b"second")
        assert poll(guest, ready(1, READ, fd), clock(9, 1 << 62)) == [(1, 0, READ, 3, 0)]


def test_files_are_always_ready(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    _, fd = guest.open("file", base=(1 << 30) - 1)
    os.lseek(guest.program.descriptors.get(fd).fd, 4, os.SEEK_SET)
    assert poll(guest, ready(1, READ, fd), ready(2, WRITE, fd)) == [
        (1, 0, READ, 6, 0),
        (2, 0, WRITE, 0, 0),
    ]


def test_what_cannot_be_polled_is_an_event(guest: Guest) -> None:
    reader, _, _, _ = pipe(guest)
    assert poll(
        guest,
        ready(1, READ, 99),
        ready(2, WRITE, reader),
        ready(3, READ, reader),
        ready(4, 9, reader),
        clock(5, 1 << 62),
    ) == [(1, errno.BADF, READ, 0, 0), (2, errno.BADF, WRITE, 0, 0), (4, errno.INVAL, 9, 0, 0)]


def test_one_descriptor_twice(guest: Guest) -> None:
    reader, _, _, theirs = pipe(guest)
    os.write(theirs, b"x")
    assert poll(guest, ready(1, READ, reader), ready(2, READ, reader)) == [
        (1, 0, READ, 1, 0),
        (2, 0, READ, 1, 0),
    ]


def test_bad_arguments(guest: Guest) -> None:
    result = guest.room(4)
    where = guest.put(clock(1, 0))
    assert guest("poll_oneoff", where, guest.room(32), 0, result) == errno.INVAL
    assert guest("poll_oneoff", PAGE - 8, guest.room(32), 1, result) == errno.FAULT
    assert guest("poll_oneoff", where, PAGE - 8, 1, result) == errno.FAULT
    assert guest("poll_oneoff", where, guest.room(32), 0xFFFFFFFF, result) == errno.FAULT


def test_more_subscriptions_than_anybody_has(guest: Guest) -> None:
    guest.memory = bytearray(100 * PAGE)
    guest.program.memory.attach(lambda: memoryview(guest.memory))
    most = 1 << 16
    result, events = guest.room(4), guest.room(0)
    assert guest("poll_oneoff", events, events, most + 1, result) == errno.INVAL
    # They are clocks that have run out, since all is 0; and they are answered where they stand.
    assert guest("poll_oneoff", events, events, most, result) == 0
    assert guest.u32(result) == most
