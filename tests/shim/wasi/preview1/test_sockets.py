from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator

import pytest

from shim.wasi import filetypes, rights
from shim.wasi.descriptors import inherited
from shim.wasi.preview1 import errno

from .conftest import PAGE, Guest

PEEK, WAITALL = 1, 2
NONBLOCK = 4
NOTCONN, PIPE = 53, 64


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
    assert send(guest, fd, b"x")[0] == PIPE
    assert guest("sock_shutdown", fd, 3) == 0


def test_a_peer_that_has_gone_is_an_error_and_no_signal(
    guest: Guest, connected: tuple[int, socket.socket]
) -> None:
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN  # Python's doing
    fd, ours = connected
    ours.close()
    assert send(guest, fd, b"x")[0] == PIPE
    result = guest.room(4)
    assert guest("fd_write", fd, *guest.iovecs((guest.put(b"x"), 1)), result) == PIPE
    assert receive(guest, fd, 1) == (0, b"", 0)


def test_unknown_flags(guest: Guest, connected: tuple[int, socket.socket]) -> None:
    fd, _ = connected
    assert receive(guest, fd, 1, 4)[0] == errno.INVAL
    assert send(guest, fd, b"x", 1)[0] == errno.INVAL
    assert guest("sock_accept", fd, 1, guest.room(4)) == errno.INVAL


def test_a_datagram_that_does_not_fit(guest: Guest) -> None:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours:
        fd = guest.program.descriptors.add(inherited(theirs.detach()))
        assert guest.program.descriptors.get(fd).kind == filetypes.SOCKET_DGRAM
        ours.send(b"too long")
        assert receive(guest, fd, 3) == (0, b"too", 1)


def test_an_empty_datagram(guest: Guest) -> None:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours:
        ours.settimeout(10)
        fd = guest.program.descriptors.add(inherited(theirs.detach()))
        assert send(guest, fd, b"") == (0, 0)
        assert ours.recv(9) == b""
        ours.send(b"")
        assert receive(guest, fd, 9) == (0, b"", 0)


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
        assert guest.memory[stat] == filetypes.SOCKET_STREAM
        assert guest.memory[stat + 2] == 4
        assert guest("sock_accept", accepted, 0, result) == errno.NOTCAPABLE
        assert guest("fd_close", accepted) == 0
        assert client.recv(10) == b""


@pytest.fixture
def listening(guest: Guest) -> tuple[int, tuple[str, int]]:
    """A listener of the guest's, and its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    return guest.program.descriptors.add(inherited(listener.detach())), address


def test_an_accepted_connection_is_like_a_new_one(
    guest: Guest, listening: tuple[int, tuple[str, int]]
) -> None:
    fd, address = listening
    assert guest("fd_fdstat_set_flags", fd, NONBLOCK) == 0
    result, stat = guest.room(4), guest.room(24)
    with socket.create_connection(address, 10):
        assert guest("sock_accept", fd, 0, result) == 0
    accepted = guest.u32(result)
    assert guest("fd_fdstat_get", accepted, stat) == 0
    kind, flags, base, inheriting = struct.unpack_from("<BxH4xQQ", guest.memory, stat)
    assert (kind, flags, inheriting) == (filetypes.SOCKET_STREAM, 0, 0)
    assert base == rights.SOCKET & ~rights.SOCK_ACCEPT
    linux = guest.program.descriptors.get(accepted).fd
    assert not os.get_inheritable(linux)
    assert receive(guest, accepted, 1) == (0, b"", 0)  # it blocked, or there would be EAGAIN


def test_accepting_with_a_bad_pointer_loses_no_connection(
    guest: Guest, listening: tuple[int, tuple[str, int]]
) -> None:
    fd, address = listening
    result = guest.room(4)
    with socket.create_connection(address, 10) as client:
        assert guest("sock_accept", fd, 0, PAGE - 2) == errno.FAULT
        assert guest("sock_accept", fd, 0, result) == 0
        assert send(guest, guest.u32(result), b"hello") == (0, 5)
        assert client.recv(9) == b"hello"


def test_what_a_listener_cannot_do(guest: Guest, listening: tuple[int, tuple[str, int]]) -> None:
    fd, _ = listening
    assert receive(guest, fd, 1)[0] == NOTCONN
    assert send(guest, fd, b"x")[0] == PIPE
    result = guest.room(8)
    assert guest("fd_close", fd) == 0
    assert guest("sock_accept", fd, 0, result) == errno.BADF


def granted(env: list[bytes], count: int) -> Guest:
    """A guest that was granted this many listeners, and a directory."""
    guest = Guest()
    listeners = [socket.create_server(("127.0.0.1", 0)).detach() for _ in range(count)]
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    guest.program.grant([b"x"], env, [(b"/", directory, False, True)], listeners=listeners)
    return guest


@pytest.mark.parametrize("count", [0, 2])
def test_listeners_come_before_directories(count: int) -> None:
    guest = granted([b"A=1"], count)
    place = guest.room(8)
    for fd in range(3, 3 + count):
        assert guest("fd_prestat_get", fd, place) == 0
        assert guest.memory[place] != 0
        size = guest.u32(place + 4)
        assert guest("fd_prestat_dir_name", fd, guest.room(size), size) == 0
        assert guest("fd_fdstat_get", fd, guest.room(24)) == 0
        assert guest.program.descriptors.get(fd).kind == filetypes.SOCKET_STREAM
    assert guest("fd_prestat_get", 3 + count, place) == 0
    assert struct.unpack_from("<BxxxI", guest.memory, place) == (0, 1)
    assert guest("fd_prestat_get", 4 + count, place) == errno.BADF
    assert guest("fd_prestat_get", 0, place) == errno.BADF
    assert guest.program.env == ([b"A=1", b"LISTEN_FDS=2"] if count else [b"A=1"])
    for fd in range(3, 4 + count):
        assert guest("fd_close", fd) == 0


def test_the_environment_may_say_otherwise() -> None:
    guest = granted([b"LISTEN_FDS=7"], 1)
    assert guest.program.env == [b"LISTEN_FDS=7"]
    for fd in (3, 4):
        assert guest("fd_close", fd) == 0


def test_what_is_no_socket(guest: Guest) -> None:
    place = guest.room(8)
    assert guest("sock_accept", 0, 0, place) == errno.NOTSOCK
    assert receive(guest, 0, 1)[0] == errno.NOTSOCK
    assert send(guest, 0, b"x")[0] == errno.NOTSOCK
    assert guest("sock_shutdown", 0, 1) == errno.NOTSOCK
    assert guest("sock_shutdown", 99, 1) == errno.BADF
