"""WasmEdge's sock_getaddrinfo: results in a list that the guest has laid out (library; in guest).

addrinfo: | u16 flags | u8 family | u8 type | u8 protocol | pad 3 | u32 length of the address |
          | u32 sockaddr | u32 canonical name | u32 its length | u32 next addrinfo |   28 bytes
sockaddr: | u8 family | pad 3 | u32 length of data | u32 data |                        12 bytes
data:     | u16 port | 4 bytes IPv4 | zeros 8 |                                        14 bytes
          | u16 port | u32 flow | 16 bytes IPv6 | u32 scope |                          26 bytes

Ports in `data` are in network byte order, as in Linux's struct sockaddr. The guest's list gives
places to write to; where it says that there is less than 14 or 26 bytes of data it is not believed,
since WasmEdge's own library says 14 of its 26.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6
from collections.abc import Iterator, Sequence
from typing import Final

from shim.wasi import resolver
from shim.wasi.preview1 import errno
from shim.wasi.preview1.abi import Ptr, Size, host
from shim.wasi.preview1.errno import Refused
from shim.wasi.preview1.program import Program
from shim.wasi.preview1.wasmedge import FAMILIES, NUMBERS

_ADDRINFO: Final = struct.Struct("<HBBBxxxIIIII")
_SOCKADDR: Final = struct.Struct("<BxxxII")
_DATA: Final = {AF_INET: struct.Struct("!H4s8x"), AF_INET6: struct.Struct("!H4x16s4x")}

_PASSIVE: Final = 1
_CANONNAME: Final = 2
_NUMERICHOST: Final = 4
_NUMERICSERV: Final = 8
_V4MAPPED: Final = 16
_ALL: Final = 32
_FLAGS: Final = 127

_DGRAM: Final = 1
_STREAM: Final = 2
_TCP: Final = 1
_UDP: Final = 2
_USES: Final = ((_STREAM, _TCP, b"tcp"), (_DGRAM, _UDP, b"udp"))

_ANY: Final = {AF_INET: bytes(4), AF_INET6: bytes(16)}
_LOOPBACK: Final = {AF_INET: b"\x7f\0\0\1", AF_INET6: bytes(15) + b"\1"}
_MAPPED: Final = bytes(10) + b"\xff\xff"

# For images without /etc/services. WasmEdge's library always asks for "http".
_SERVICES: Final = {b"domain": 53, b"http": 80, b"https": 443, b"ntp": 123, b"smtp": 25}


@host
def sock_getaddrinfo(
    program: Program,
    node: Ptr,
    node_size: Size,
    service: Ptr,
    service_size: Size,
    hints: Ptr,
    result: Ptr,
    most: Size,
    found: Ptr,
) -> None:
    """Look a name and a service up; fill the list that `result` points to, and store its length."""
    program.need_network()
    memory = program.memory
    name = _text(memory.span(node, node_size))
    wanted = _text(memory.span(service, service_size))
    flags, family, kind, protocol, *_ = _ADDRINFO.unpack(memory.span(hints, _ADDRINFO.size))
    place = int.from_bytes(memory.span(result, 4), "little")
    memory.span(found, 4)
    if not name and not wanted:
        raise Refused(errno.AI_NONAME)
    if not most:
        raise Refused(errno.AI_MEMORY)
    if flags & ~_FLAGS or (flags & _CANONNAME and not name):
        raise Refused(errno.AI_BADFLAG)
    if family not in (0, *FAMILIES):
        raise Refused(errno.AI_FAMILY)
    if kind > _STREAM or protocol > _UDP:
        raise Refused(errno.NOSYS)
    uses = [use for use in _USES if kind in (0, use[0]) and protocol in (0, use[1])]
    if not uses:
        raise Refused(errno.AI_SOCKTYPE)

    ports = _ports(wanted, flags, uses)
    families = (FAMILIES[family],) if family else (AF_INET, AF_INET6)
    addresses, canonical = _addresses(name, flags, families)
    stored = 0
    for linux, address in addresses:
        for number, transport, port in ports:
            if stored == most & 0xFFFFFFFF or not place:
                break
            about = flags, NUMBERS[linux], number, transport
            data = _DATA[linux].pack(port, address)
            place = _fill(program, place, about, data, b"" if stored else canonical)
            stored += 1
    memory.write_u32(found, stored)


def _fill(
    program: Program, place: int, about: tuple[int, int, int, int], data: bytes, canonical: bytes
) -> int:
    """Write one result to where the guest's addrinfo at `place` says; return the next's place."""
    memory = program.memory
    info = memory.span(place, _ADDRINFO.size)
    *_, sockaddr, name, room, following = _ADDRINFO.unpack(info)
    where = _SOCKADDR.unpack(memory.span(sockaddr, _SOCKADDR.size))[2]
    memory.write(where, data)
    memory.write(sockaddr, _SOCKADDR.pack(about[1], len(data), where))
    canonical = canonical[: room - 1] if room else b""
    if canonical:
        memory.write(name, canonical + b"\0")
    # struct sockaddr has a family of two bytes in front of the data.
    info[:] = _ADDRINFO.pack(*about, len(data) + 2, sockaddr, name, len(canonical), following)
    return int(following)


def _text(span: memoryview) -> bytes:
    """Return a string, which may or may not end with a NUL. None that is looked up is longer."""
    return bytes(span[:1024]).partition(b"\0")[0]


def _ports(
    service: bytes, flags: int, uses: Sequence[tuple[int, int, bytes]]
) -> list[tuple[int, int, int]]:
    """Return (type, protocol, port) for each use of a service; without one, the port is 0."""
    if not service:
        return [(kind, protocol, 0) for kind, protocol, _ in uses]
    if service.isdigit() and len(service) < 10:
        return [(kind, protocol, int(service) & 0xFFFF) for kind, protocol, _ in uses]
    if flags & _NUMERICSERV:
        raise Refused(errno.AI_NONAME)
    ports = []
    for kind, protocol, transport in uses:
        port = resolver.service(service, transport) or _SERVICES.get(service)
        if port:
            ports.append((kind, protocol, port))
    if not ports:
        raise Refused(errno.AI_SERVICE)
    return ports


def _addresses(
    name: bytes, flags: int, families: Sequence[int]
) -> tuple[Sequence[tuple[int, bytes]], bytes]:
    """Return the addresses of a name, and its canonical form if that was asked for."""
    if not name:
        local = _ANY if flags & _PASSIVE else _LOOPBACK
        return [(family, local[family]) for family in families], b""
    mapped = families == (AF_INET6,) and flags & _V4MAPPED
    known = resolver.numeric(name, (AF_INET6, AF_INET) if mapped else families)
    if known:
        return list(_as_ipv6([known]) if mapped else [known]), name if flags & _CANONNAME else b""
    if resolver.numeric(name, (AF_INET, AF_INET6)):
        raise Refused(errno.AI_ADDRFAMILY)
    if flags & _NUMERICHOST:
        raise Refused(errno.AI_NONAME)
    try:
        answer = _resolve(name, families, mapped, flags & _ALL)
    except resolver.NoAddress:
        raise Refused(errno.AI_NODATA) from None
    except resolver.NoSuchName:
        raise Refused(errno.AI_NONAME) from None
    except resolver.TryAgain:
        raise Refused(errno.AI_AGAIN) from None
    addresses = list(_as_ipv6(answer.addresses)) if mapped else answer.addresses
    return addresses, answer.canonical if flags & _CANONNAME else b""


def _resolve(name: bytes, families: Sequence[int], mapped: int, all_: int) -> resolver.Answer:
    if not mapped:
        return resolver.resolve(name, families)
    if all_:
        return resolver.resolve(name, (AF_INET6, AF_INET))
    try:
        return resolver.resolve(name, families)
    except resolver.NoSuchName:
        return resolver.resolve(name, (AF_INET,))


def _as_ipv6(addresses: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    for family, address in addresses:
        yield AF_INET6, address if family == AF_INET6 else _MAPPED + address
