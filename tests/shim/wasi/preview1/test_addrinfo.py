from __future__ import annotations

import struct

from shim.wasi.preview1 import errno
from tests.shim.wasi.dns import ONE, SIX, TWO, World

from .conftest import PAGE, Guest


class List:
    """A guest's list of addrinfos, as its libraries lay it out."""

    def __init__(self, guest: Guest, count: int, room: int = 14, canonical: int = 0) -> None:
        self.guest = guest
        self.most = count
        self.infos = [guest.room(28) for _ in range(count)]
        for place, following in zip(self.infos, [*self.infos[1:], 0], strict=True):
            data, name = guest.room(26), guest.room(canonical + 1)
            sockaddr = guest.put(struct.pack("<BxxxII", 1, room, data))
            info = struct.pack("<8xIIIII", 0, sockaddr, name, canonical, following)
            guest.memory[place : place + 28] = info
        self.result = guest.put(struct.pack("<I", self.infos[0]))
        self.found = guest.room(4)

    def get(
        self,
        node: bytes,
        service: bytes = b"",
        flags: int = 0,
        family: int = 1,
        kind: int = 2,
        protocol: int = 1,
    ) -> int:
        hints = struct.pack("<HBBB3x5I", flags, family, kind, protocol, 0, 0, 0, 0, 0)
        return self.guest(
            "sock_getaddrinfo",
            *self.guest.path(node),
            *self.guest.path(service),
            self.guest.put(hints),
            self.result,
            self.most,
            self.found,
        )

    def read(self) -> list[tuple[int, int, int, bytes]]:
        """family, type, protocol, data"""
        found = []
        for place in self.infos[: self.guest.u32(self.found)]:
            _, family, kind, protocol, length, sockaddr = struct.unpack_from(
                "<HBBI2I", self.guest.memory, place
            )
            again, size, data = struct.unpack_from("<3I", self.guest.memory, sockaddr)
            assert again == family
            assert length == size + 2
            found.append((family, kind, protocol, bytes(self.guest.memory[data : data + size])))
        return found

    def canonical(self, index: int = 0) -> bytes:
        place = self.infos[index]
        name, size = struct.unpack_from("<II", self.guest.memory, place + 16)
        return bytes(self.guest.memory[name : name + size])


INET4_80 = struct.pack(">H4s8x", 80, ONE)
INET6_80 = struct.pack(">H4x16s4x", 80, SIX)


def test_numeric_addresses_for_a_guest(guest: Guest) -> None:
    one = List(guest, 1)
    assert one.get(b"192.0.2.1\0", b"80\0") == 0
    assert one.read() == [(1, 2, 1, INET4_80)]
    assert one.get(b"2001:db8::1", b"80", family=2) == 0
    assert one.read() == [(2, 2, 1, INET6_80)]
    assert one.get(b"192.0.2.1", b"80", flags=16, family=2) == 0
    mapped = bytes(10) + b"\xff\xff" + ONE
    assert one.read() == [(2, 2, 1, struct.pack(">H4x16s4x", 80, mapped))]
    assert one.get(b"2001:db8::1", b"80") == errno.AI_ADDRFAMILY


def test_no_name(guest: Guest) -> None:
    some = List(guest, 8)
    assert some.get(b"", b"80", family=0) == 0
    assert [data[2:] for _, _, _, data in some.read()] == [
        b"\x7f\0\0\1" + bytes(8),
        bytes(19) + b"\1" + bytes(4),
    ]
    assert some.get(b"", b"80", flags=1, kind=0, protocol=0) == 0
    nowhere = struct.pack(">H12x", 80)
    assert some.read() == [(1, 2, 1, nowhere), (1, 1, 2, nowhere)]


def test_what_a_guest_may_not_ask(guest: Guest) -> None:
    some = List(guest, 2)
    assert some.get(b"") == errno.AI_NONAME
    assert some.get(b"\0", b"\0") == errno.AI_NONAME
    assert some.get(b"a.test", flags=128) == errno.AI_BADFLAG
    assert some.get(b"", b"80", flags=2) == errno.AI_BADFLAG
    assert some.get(b"a.test", family=3) == errno.AI_FAMILY
    assert some.get(b"a.test", kind=3) == errno.NOSYS
    assert some.get(b"a.test", protocol=3) == errno.NOSYS
    assert some.get(b"a.test", kind=2, protocol=2) == errno.AI_SOCKTYPE
    assert some.get(b"a.test", flags=4) == errno.AI_NONAME
    assert some.get(b"192.0.2.1", b"http", flags=8) == errno.AI_NONAME
    some.most = 0
    assert some.get(b"192.0.2.1") == errno.AI_MEMORY


def test_names_for_a_guest(world: World) -> None:
    def check() -> None:
        guest = Guest()
        some = List(guest, 10, canonical=20)
        assert some.get(b"alias.test", b"http", flags=2, family=0) == 0
        assert [(family, data[:2]) for family, _, _, data in some.read()] == [
            (1, b"\0\x50"),
            (1, b"\0\x50"),
            (2, b"\0\x50"),
        ]
        assert [some.canonical(index) for index in range(3)] == [b"a.test", b"", b""]
        two = List(guest, 2)
        assert two.get(b"a.test", family=0, kind=0, protocol=0) == 0
        assert [entry[1:3] for entry in two.read()] == [(2, 1), (1, 2)]
        short = List(guest, 1, canonical=4)
        assert short.get(b"a.test", b"odd", flags=2) == 0
        assert short.canonical() == b"a.t"
        assert short.read()[0][3][:2] == b"\x10\0"
        assert some.get(b"a.test", flags=16, family=2) == 0
        assert [data[6:22] for _, _, _, data in some.read()] == [SIX]
        assert some.get(b"a.test", flags=16 | 32, family=2) == 0
        assert [data[18:22] for _, _, _, data in some.read()] == [SIX[-4:], ONE, TWO]
        assert some.get(b"big.test", flags=16, family=2) == 0
        assert len(some.read()) == 10
        for name, error in (
            (b"nowhere.test", errno.AI_NONAME),
            (b"v6.test", errno.AI_NODATA),
            (b"fail.test", errno.AI_AGAIN),
            (b"\xff\xfe", errno.AI_NONAME),
            (b"a" * 5000, errno.AI_NONAME),
        ):
            assert some.get(name) == error
        assert some.get(b"a.test", b"nonsense") == errno.AI_SERVICE

    world(check, services="odd 4096/tcp\n")


def test_hostile_lists(guest: Guest) -> None:
    # A circle, with a count that has no end: there is one result, and one write.
    one = List(guest, 1)
    guest.memory[one.infos[0] + 24 : one.infos[0] + 28] = struct.pack("<I", one.infos[0])
    one.most = 0xFFFFFFFF
    assert one.get(b"192.0.2.1", b"80", kind=0, protocol=0) == 0
    assert guest.u32(one.found) == 2
    # Pointers out of memory, each of them.
    for offset in (12, 16):
        wild = List(guest, 1, canonical=4)
        place = wild.infos[0] + offset
        guest.memory[place : place + 4] = struct.pack("<I", PAGE - 2)
        assert wild.get(b"192.0.2.1", flags=2) == errno.FAULT
    wild = List(guest, 1)
    sockaddr = guest.u32(wild.infos[0] + 12)
    guest.memory[sockaddr + 8 : sockaddr + 12] = b"\xff" * 4
    assert wild.get(b"192.0.2.1") == errno.FAULT
    wild = List(guest, 1)
    guest.memory[wild.result : wild.result + 4] = struct.pack("<I", PAGE - 27)
    assert wild.get(b"192.0.2.1") == errno.FAULT
    # An end where there is none yet.
    guest.memory[wild.result : wild.result + 4] = bytes(4)
    assert wild.get(b"192.0.2.1") == 0
    assert guest.u32(wild.found) == 0
    for bad in ({"result": PAGE - 3}, {"found": PAGE - 3}):
        wild = List(guest, 1)
        vars(wild).update(bad)
        assert wild.get(b"192.0.2.1") == errno.FAULT
