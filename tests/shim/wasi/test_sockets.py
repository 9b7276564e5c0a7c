from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from shim.wasi import descriptors, errno
from shim.wasi.descriptors import inherited

from .conftest import Guest

PEEK, WAITALL = 1, 2


@pytest.fixture
def connected(guest: Guest) -> Iterator[tuple[int, socket.socket]]:
    """A stream socket of the guest's, and the other end."""
    theirs, ours = socket.socketpair()
    ours.settimeout(10)
    yield guest.program.descriptors.add(inherited(theirs.detach())), ours
    ours.close()


def receive(guest: Guest, fd: int, size: int, flags: int = 0) -> tuple[int, bytes, int]:
    """errno, data, flags."""
    place, got, out = guest.room(size), guest.room(4), guest.room(4)
    error = guest("sock_recv", fd, *guest.iovecs((place, size)), flags, got, out)
    return error, bytes(guest.memory[place : place + guest.u32(got)]), guest.u32(out)


def send(guest: Guest, fd: int, data: bytes, flags: int = 0) -> tuple[int, int]:
    result = guest.room(4)
    iovecs = guest.iovecs((guest.put(data), len(data)))
    return guest("sock_send", fd, *iovecs, flags, result), guest.u32(result)


def test_both_ways(guest: Guest, connected: tuple[int, socket.socket]) -> None:
    fd, ours = connected
    ours.send(b"hello")
    assert receive(guest, fd, 3, PEEK) == (0, b"hel", 0)
    assert receive(guest, fd, 2) == (0, b"he", 0)
    assert receive(guest, fd, 3, WAITALL) == (0, b"llo", 0)
    assert send(guest, fd, b"answer") == (0, 6)
    assert ours.recv(10) == b"answer"


def test_plain_reads_and_writes(guest: Guest, connected: tuple[int, socket.socket]) -> None:
    fd, ours = connected
    ours.send(b"hello")
    place, result = guest.room(8), guest.room(4)
    assert guest("fd_read", fd, *guest.iovecs((place, 8)), result) == 0
    assert guest.memory[place : place + 5] == b"hello"
    assert guest("fd_write", fd, *guest.iovecs((place, 5)), result) == 0
    assert ours.recv(10) == b"hello"


def test_shutting_down(guest: Guest, connected: tuple[int, socket.socket]) -> None:
    fd, ours = connected
    assert guest("sock_shutdown", fd, 0) == errno.INVAL
    assert guest("sock_shutdown", fd, 4) == errno.INVAL
    assert guest("sock_shutdown", fd, 2) == 0
    assert ours.recv(1) == b""
    assert send(guest, fd, b"x")[0] == 64  # EPIPE
    assert guest("sock_shutdown", fd, 3) == 0


def test_unknown_flags(guest: Guest, connected: tuple[int, socket.socket]) -> None:
    fd, _ = connected
    assert receive(guest, fd, 1, 4)[0] == errno.INVAL
    assert send(guest, fd, b"x", 1)[0] == errno.INVAL
    assert guest("sock_accept", fd, 1, guest.room(4)) == errno.INVAL


def test_a_datagram_that_does_not_fit(guest: Guest) -> None:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours:
        fd = guest.program.descriptors.add(inherited(theirs.detach()))
        assert guest.program.descriptors.get(fd).kind == descriptors.SOCKET_DGRAM
        ours.send(b"too long")
        assert receive(guest, fd, 3) == (0, b"too", 1)


def test_accepting(guest: Guest) -> None:
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        address = listener.getsockname()
        fd = guest.program.descriptors.add(inherited(listener.detach()))
        result = guest.room(4)
        assert guest("sock_accept", fd, 0, result) == errno.AGAIN
        client.settimeout(10)
        client.connect(address)
        assert guest("sock_accept", fd, 4, result) == 0
        accepted = guest.u32(result)
        assert accepted == fd + 1
        assert receive(guest, accepted, 1)[0] == errno.AGAIN
        assert send(guest, accepted, b"welcome") == (0, 7)
        assert client.recv(10) == b"welcome"
        stat = guest.room(24)
        assert guest("fd_fdstat_get", accepted, stat) == 0
        assert guest.memory[stat] == descriptors.SOCKET_STREAM
        assert guest.memory[stat + 2] == 4
        assert guest("sock_accept", accepted, 0, result) == errno.NOTCAPABLE
        assert guest("fd_close", accepted) == 0
        assert client.recv(10) == b""


def test_what_is_no_socket(guest: Guest) -> None:
    place = guest.room(8)
    assert guest("sock_accept", 0, 0, place) == errno.NOTSOCK
    assert receive(guest, 0, 1)[0] == errno.NOTSOCK
    assert send(guest, 0, b"x")[0] == errno.NOTSOCK
    assert guest("sock_shutdown", 0, 1) == errno.NOTSOCK
    assert guest("sock_shutdown", 99, 1) == errno.BADF
