from __future__ import annotations

import os
import socket
import struct

import pytest

from shim.wasi import filetypes, preview1, rights
from shim.wasi.descriptors import inherited
from shim.wasi.preview1 import abi, errno

from .conftest import PAGE, Guest

INET4, INET6, UNIX = 1, 2, 3
DGRAM, STREAM = 1, 2
CONNREFUSED, INPROGRESS, NOTCONN, ISCONN = 14, 26, 53, 30
LOCAL = {INET4: socket.inet_aton("127.0.0.1"), INET6: bytes(15) + b"\1"}
LINUX = {INET4: (socket.AF_INET, "127.0.0.1"), INET6: (socket.AF_INET6, "::1")}


class Caller:
    """Calls of a guest's that return what the function stored."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.variants = preview1.bind_variants(guest.program)

    def open(self, family: int = INET4, kind: int = STREAM) -> int:
        result = self.guest.room(4)
        assert self.guest("sock_open", family, kind, result) == 0
        return self.guest.u32(result)

    def address(self, data: bytes) -> int:
        return self.guest.put(struct.pack("<II", self.guest.put(data), len(data)))

    def storage(self, family: int, data: bytes) -> int:
        return self.address(struct.pack("<H", family) + data.ljust(126, b"\0"))

    def stored(self, address: int) -> bytes:
        place, size = struct.unpack_from("<II", self.guest.memory, address)
        return bytes(self.guest.memory[place : place + size])

    def name(self, function: str, fd: int, size: int = 16) -> tuple[int, bytes, int, int]:
        """errno, address, family, port."""
        place, kind, port = self.address(bytes(size)), self.guest.room(4), self.guest.room(4)
        error = self.guest(function, fd, place, kind, port)
        return error, self.stored(place), self.guest.u32(kind), self.guest.u32(port)

    def port(self, fd: int) -> int:
        return self.name("sock_getlocaladdr", fd)[3]

    def listen(self, family: int = INET4) -> tuple[int, int]:
        """Return a listener and its port."""
        fd = self.open(family)
        assert self.guest("sock_bind", fd, self.address(LOCAL[family]), 0) == 0
        assert self.guest("sock_listen", fd, 5) == 0
        return fd, self.port(fd)

    def option(self, fd: int, name: int, size: int = 4, level: int = 0) -> tuple[int, bytes]:
        value, room = self.guest.room(size), self.guest.put(struct.pack("<I", size))
        error = self.guest("sock_getsockopt", fd, level, name, value, room)
        return error, bytes(self.guest.memory[value : value + self.guest.u32(room)])

    def set_option(self, fd: int, name: int, value: bytes, level: int = 0) -> int:
        return self.guest("sock_setsockopt", fd, level, name, self.guest.put(value), len(value))


@pytest.fixture
def call(guest: Guest) -> Caller:
    return Caller(guest)


@pytest.mark.parametrize("family", [INET4, INET6])
@pytest.mark.parametrize("wide", [False, True], ids=["exact", "storage"])
def test_a_server(call: Caller, family: int, wide: bool) -> None:
    guest = call.guest
    fd = call.open(family)
    local = call.storage(family, LOCAL[family]) if wide else call.address(LOCAL[family])
    assert guest("sock_bind", fd, local, 0) == 0
    assert guest("sock_listen", fd, 5) == 0
    error, address, kind, port = call.name("sock_getlocaladdr", fd)
    assert (error, address[: len(LOCAL[family])]) == (0, LOCAL[family])
    assert kind == {INET4: 4, INET6: 6}[family]
    client = socket.socket(LINUX[family][0])
    with client:
        client.settimeout(10)
        client.connect((LINUX[family][1], port))
        result = guest.room(4)
        assert call.variants["sock_accept"].call(fd, result) == 0
        accepted = guest.u32(result)
        error, address, kind, port = call.name("sock_getpeeraddr", accepted)
        assert (error, port) == (0, client.getsockname()[1])
        client.send(b"ping")
        place, got, flags = guest.room(8), guest.room(4), guest.room(4)
        assert guest("sock_recv", accepted, *guest.iovecs((place, 8)), 0, got, flags) == 0
        assert guest("sock_send_v2", accepted, *guest.iovecs((place, 4)), 0, got) == 0
        assert client.recv(9) == b"ping"


@pytest.mark.parametrize("family", [INET4, INET6])
def test_a_client(call: Caller, family: int) -> None:
    guest = call.guest
    with socket.create_server((LINUX[family][1], 0), family=LINUX[family][0]) as server:
        port = server.getsockname()[1]
        fd = call.open(family)
        assert guest("sock_connect", fd, call.address(LOCAL[family]), port + (5 << 16)) == 0
        server.settimeout(10)
        connection, peer = server.accept()
        with connection:
            assert call.port(fd) == peer[1]
            result = guest.room(4)
            assert guest("fd_write", fd, *guest.iovecs((guest.put(b"hello"), 5)), result) == 0
            assert connection.recv(9) == b"hello"
            assert guest("sock_connect", fd, call.address(LOCAL[family]), port) == ISCONN
            assert guest("fd_close", fd) == 0
            assert connection.recv(9) == b""


def test_connecting_without_waiting(call: Caller) -> None:
    guest = call.guest
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        fd = call.open()
        assert guest("fd_fdstat_set_flags", fd, 4) == 0
        address = call.address(LOCAL[INET4])
        error = guest("sock_connect", fd, address, server.getsockname()[1])
        assert error in (0, INPROGRESS)
        server.accept()[0].close()
        assert call.option(fd, 2) == (0, bytes(4))


def test_nobody_listens(call: Caller) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        address = call.address(LOCAL[INET4])
        assert call.guest("sock_connect", call.open(), address, port) == CONNREFUSED


def receive_from(call: Caller, fd: int, room: int) -> tuple[int, bytes, bytes, int]:
    """errno, data, address, port as the second generation gives it."""
    guest = call.guest
    place, got, flags, port = guest.room(16), guest.room(4), guest.room(4), guest.room(4)
    address = call.address(bytes(room))
    iovecs = guest.iovecs((place, 16))
    error = guest("sock_recv_from_v2", fd, *iovecs, address, 0, port, got, flags)
    data = bytes(guest.memory[place : place + guest.u32(got)])
    return error, data, call.stored(address), guest.u32(port)


@pytest.mark.parametrize("family", [INET4, INET6])
def test_datagrams(call: Caller, family: int) -> None:
    guest = call.guest
    linux, local = LINUX[family]
    fd = call.open(family, DGRAM)
    assert guest("sock_bind", fd, call.address(LOCAL[family]), 0) == 0
    with socket.socket(linux, socket.SOCK_DGRAM) as peer:
        peer.settimeout(10)
        peer.bind((local, 0))
        port = peer.getsockname()[1]
        for room in (4, 16, 128):
            peer.sendto(b"ping", (local, call.port(fd)))
            error, data, address, found = receive_from(call, fd, room)
            assert (error, data, socket.ntohs(found)) == (0, b"ping", port)
            if room == 128:
                wanted = struct.pack("<H", family) + LOCAL[family]
                assert address == wanted.ljust(128, b"\0")
            elif room >= len(LOCAL[family]):
                assert address[: len(LOCAL[family])] == LOCAL[family]
            else:
                assert address == bytes(room)
        result = guest.room(4)
        iovecs = guest.iovecs((guest.put(b"po"), 2), (guest.put(b"ng"), 2))
        for place in (call.address(LOCAL[family]), call.storage(family, LOCAL[family])):
            assert guest("sock_send_to", fd, *iovecs, place, port, 0, result) == 0
            assert guest.u32(result) == 4
            assert peer.recvfrom(9)[0] == b"pong"
        assert guest("sock_send_to", fd, *iovecs, place, port, 1, result) == errno.INVAL


def test_a_sender_without_its_port(call: Caller) -> None:
    guest = call.guest
    fd = call.open(INET4, DGRAM)
    assert guest("sock_bind", fd, call.address(LOCAL[INET4]), 0) == 0
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        for room, wanted in ((3, bytes(3)), (16, LOCAL[INET4] + bytes(12))):
            peer.sendto(b"too long", ("127.0.0.1", call.port(fd)))
            place, got, flags = guest.room(3), guest.room(4), guest.room(4)
            address = call.address(bytes(room))
            iovecs = guest.iovecs((place, 3))
            assert guest("sock_recv_from", fd, *iovecs, address, 0, got, flags) == 0
            assert guest.memory[place : place + 3] == b"too"
            assert guest.u32(flags) == 1
            assert call.stored(address) == wanted


def test_a_stream_has_no_sender(call: Caller) -> None:
    fd, port = call.listen()
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        result = call.guest.room(4)
        assert call.guest("sock_accept_v2", fd, 0, result) == 0
        client.send(b"x")
        assert receive_from(call, call.guest.u32(result), 128) == (0, b"x", bytes(128), 0)


@pytest.mark.parametrize("family", [INET4, INET6])
def test_names_of_the_second_generation(call: Caller, family: int) -> None:
    guest = call.guest
    fd, number = call.listen(family)
    place, port = call.address(b"\xff" * 128), guest.room(4)
    for function in (
        guest.functions["sock_getlocaladdr_v2"],
        call.variants["sock_getlocaladdr"],
    ):
        assert function.call(fd, place, port) == 0
        assert guest.u32(port) == number
        wanted = struct.pack("<H", family) + LOCAL[family]
        assert call.stored(place) == wanted.ljust(128, b"\0")
    assert guest("sock_getpeeraddr_v2", fd, place, port) == NOTCONN
    assert guest("sock_getlocaladdr_v2", fd, call.address(bytes(16)), port) == errno.INVAL


def test_a_name_needs_room(call: Caller) -> None:
    fd, _ = call.listen(INET6)
    assert call.name("sock_getlocaladdr", fd, 4)[0] == errno.NOMEM
    assert call.name("sock_getlocaladdr", fd, 128)[0] == errno.INVAL
    assert call.name("sock_getpeeraddr", fd)[0] == NOTCONN


def test_options(call: Caller) -> None:
    fd, _ = call.listen()
    datagrams = call.open(INET4, DGRAM)
    assert call.option(fd, 1) == (0, struct.pack("<I", STREAM))
    assert call.option(datagrams, 1) == (0, struct.pack("<I", DGRAM))
    assert call.option(fd, 13) == (0, struct.pack("<I", 1))  # SO_ACCEPTCONN
    for name in (0, 4, 7):  # REUSEADDR, BROADCAST, KEEPALIVE
        assert call.set_option(datagrams, name, struct.pack("<i", 1)) == 0
        assert call.option(datagrams, name) == (0, struct.pack("<I", 1))
    assert linux_option(call, datagrams, socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
    timeout = struct.pack("<qq", 3, 500_000)
    assert call.set_option(fd, 11, timeout) == 0
    assert call.option(fd, 11, 16) == (0, timeout)
    assert call.option(fd, 11, 4) == (0, timeout[:4])
    linger = struct.pack("<ii", 1, 7)
    assert call.set_option(fd, 9, linger) == 0
    assert call.option(fd, 9, 8) == (0, linger)
    assert call.option(fd, 14, 16) == (0, b"")  # SO_BINDTODEVICE
    assert call.set_option(fd, 14, b"lo") == 0
    assert call.option(fd, 14, 16) == (0, b"lo\0")
    assert call.set_option(fd, 14, b"") == 0
    assert call.set_option(fd, 15, struct.pack("<i", 1), level=6) == 0  # TCP_NODELAY
    assert linux_option(call, fd, socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def linux_option(call: Caller, fd: int, level: int, option: int) -> int:
    sock = call.guest.program.descriptors.get(fd).sock
    assert sock is not None
    return sock.getsockopt(level, option)


def test_options_that_are_none(call: Caller) -> None:
    fd = call.open()
    for level, name in ((0, 15), (0, 99), (1, 2), (6, 1)):
        assert call.option(fd, name, level=level)[0] == errno.INVAL
        assert call.set_option(fd, name, bytes(4), level) == errno.INVAL
    assert call.set_option(fd, 0, bytes(65)) == errno.INVAL
    assert call.set_option(fd, 0, b"") == errno.INVAL
    value = call.guest.room(4)
    size = call.guest.put(b"\xff\xff\xff\xff")
    assert call.guest("sock_getsockopt", fd, 0, 0, value, size) == errno.FAULT
    assert call.guest("sock_getsockopt", fd, 0, 0, value, PAGE - 3) == errno.FAULT


def test_a_failed_connection_is_an_option(call: Caller) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        fd = call.open()
        assert call.guest("fd_fdstat_set_flags", fd, 4) == 0
        address = call.address(LOCAL[INET4])
        port = unused.getsockname()[1]
        error = call.guest("sock_connect", fd, address, port)
    if error == INPROGRESS:
        assert call.option(fd, 2) == (0, struct.pack("<I", CONNREFUSED))
    else:
        assert error == CONNREFUSED
    assert call.option(fd, 2) == (0, bytes(4))


def test_what_cannot_be_opened(call: Caller) -> None:
    result = call.guest.room(4)
    assert call.guest("sock_open", UNIX, STREAM, result) == errno.AFNOSUPPORT
    for family, kind in ((0, STREAM), (4, STREAM), (INET4, 0), (INET4, 3), (1 << 31, STREAM)):
        assert call.guest("sock_open", family, kind, result) == errno.INVAL
    before = len(os.listdir("/proc/self/fd"))
    assert call.guest("sock_open", INET4, STREAM, PAGE - 3) == errno.FAULT
    assert len(os.listdir("/proc/self/fd")) == before


def test_hostile_addresses(call: Caller) -> None:
    guest = call.guest
    fd = call.open()
    for function in ("sock_bind", "sock_connect"):
        for size in (0, 1, 5, 15, 17, 127, 129):
            assert guest(function, fd, call.address(bytes(size)), 1) == errno.INVAL
        # Never a name: the family is the socket's, or it is not looked at.
        assert guest(function, fd, call.address(LOCAL[INET6]), 1) == errno.AFNOSUPPORT
        assert guest(function, fd, call.storage(INET6, LOCAL[INET6]), 1) == errno.AFNOSUPPORT
        for family in (0, UNIX, 0xFFFF):
            assert guest(function, fd, call.storage(family, b"x"), 1) == errno.AFNOSUPPORT
        assert guest(function, fd, PAGE - 4, 1) == errno.FAULT
        wild = guest.put(struct.pack("<II", 0xFFFFFFFF, 4))
        assert guest(function, fd, wild, 1) == errno.FAULT
        wild = guest.put(struct.pack("<II", 4, 0xFFFFFFFF))
        assert guest(function, fd, wild, 1) == errno.FAULT
    assert guest("sock_bind", 0, call.address(LOCAL[INET4]), 1) == errno.NOTSOCK
    assert guest("sock_listen", 99, 1) == errno.BADF


def test_a_socket_of_another_kind(call: Caller) -> None:
    theirs, ours = socket.socketpair()
    with ours:
        fd = call.guest.program.descriptors.add(inherited(theirs.detach()))
        assert call.guest("sock_connect", fd, call.address(LOCAL[INET4]), 1) == errno.AFNOSUPPORT
        assert call.name("sock_getlocaladdr", fd)[0] == errno.AFNOSUPPORT
        ours.send(b"kept")
        assert receive_from(call, fd, 16)[0] == errno.AFNOSUPPORT
        place, got, flags = call.guest.room(8), call.guest.room(4), call.guest.room(4)
        assert call.guest("sock_recv_v2", fd, *call.guest.iovecs((place, 8)), 0, got, flags) == 0
        assert call.guest.u32(got) == 4


def test_without_a_network(call: Caller) -> None:
    guest = call.guest
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    fd = guest.program.descriptors.add(inherited(listener.detach()))
    datagrams = call.open(INET4, DGRAM)
    guest.program.network = False
    place, local = guest.room(64), call.address(LOCAL[INET4])
    for name, numbers in (
        ("sock_open", (INET4, STREAM, place)),
        ("sock_open_v2", (INET4, STREAM, place)),
        ("sock_bind", (datagrams, local, 0)),
        ("sock_connect", (datagrams, local, 9)),
        ("sock_listen", (fd, 1)),
        ("sock_send_to", (datagrams, *guest.iovecs((place, 1)), local, 9, 0, place)),
        ("sock_getaddrinfo", (*guest.path("localhost"), place, 0, place, place, 1, place)),
    ):
        assert guest(name, *numbers) == errno.NOTCAPABLE, name
    with socket.create_connection(address, 10) as client:
        assert guest("sock_accept", fd, 0, place) == 0
        accepted = guest.u32(place)
        assert guest("fd_write", accepted, *guest.iovecs((guest.put(b"hi"), 2)), place) == 0
        assert client.recv(9) == b"hi"


def test_rights_of_an_opened_socket(call: Caller) -> None:
    stat = call.guest.room(24)
    for kind, filetype in (
        (STREAM, filetypes.SOCKET_STREAM),
        (DGRAM, filetypes.SOCKET_DGRAM),
    ):
        fd = call.open(INET4, kind)
        assert call.guest("fd_fdstat_get", fd, stat) == 0
        assert call.guest.memory[stat] == filetype
        assert call.guest.u64(stat + 8) == rights.SOCKET
        assert not os.get_inheritable(call.guest.program.descriptors.get(fd).fd)


def test_the_second_generation_under_the_first_ones_names() -> None:
    """WasmEdge's rule: an import that does not fit its name's function may fit the `_v2`."""
    for name, function in preview1.bind_variants(Guest().program).items():
        if name != "sock_accept":
            assert function.params == abi.params(abi.HOSTS[f"{name}_v2"])
        assert function.params != abi.params(abi.HOSTS[name])


def test_the_size_of_an_option_may_be_told_itself(call: Caller) -> None:
    """As wasi-go's guests do; where it is, no program has a variable."""
    fd = call.open()
    value = call.guest.put(b"\xee" * 8)
    assert call.guest("sock_getsockopt", fd, 0, 1, value, 4) == 0  # SO_TYPE
    assert call.guest.memory[value : value + 8] == struct.pack("<I", 2) + b"\xee" * 4
    assert call.guest("sock_getsockopt", fd, 0, 1, value, 0) == 0
    assert call.guest("sock_getsockopt", fd, 0, 1, PAGE - 3, 4) == errno.FAULT
