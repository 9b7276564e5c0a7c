"""Names to addresses, by the container's /etc/hosts and /etc/resolv.conf (library; in the guest).

libc's resolver must not run here: what /etc/nsswitch.conf names it loads as native code from the
guest's root filesystem, and so the image would choose what this process executes. This one reads
the two files, asks the servers (RFC 1035 over UDP, over TCP what does not fit), and starts nothing.
Names are bytes, addresses as many bytes as the family has: 4 or 16.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from _socket import (
    AF_INET,
    AF_INET6,
    SOCK_DGRAM,
    SOCK_STREAM,
    inet_ntop,
    inet_pton,
    socket,
)
from collections.abc import Iterator, Sequence
from encodings.punycode import punycode_encode  # in a guest no codec can be loaded any more
from typing import Final, NamedTuple

_HOSTS: Final = "/etc/hosts"
_SERVICES: Final = "/etc/services"
_RESOLV_CONF: Final = "/etc/resolv.conf"
_MOST: Final = 1 << 20  # bytes of such a file that are read

# The limits of resolv.conf(5), which glibc keeps too.
_SERVERS: Final = 3
_SEARCH: Final = 6
_MAX_NDOTS: Final = 15
_MAX_TIMEOUT: Final = 30
_MAX_ATTEMPTS: Final = 5
_ADDRESSES: Final = 64  # of one name

_LOCAL: Final = {AF_INET: b"\x7f\0\0\1", AF_INET6: bytes(15) + b"\1"}

# message:  | u16 id | u16 flags | u16 questions | u16 answers | u16 authorities | u16 additional |
# question: | name | u16 type | u16 class |
# record:   | name | u16 type | u16 class | u32 ttl | u16 length | data |
_HEADER: Final = struct.Struct(">6H")
_QUESTION: Final = struct.Struct(">HH")
_RECORD: Final = struct.Struct(">HHIH")
_IN: Final = 1
_CNAME: Final = 5
_TYPES: Final = {AF_INET: 1, AF_INET6: 28}  # A, AAAA
_RESPONSE: Final = 0x8000
_TRUNCATED: Final = 0x0200
_WANT_RECURSION: Final = 0x0100
_CODE: Final = 0x000F
_NO_ERROR: Final = 0
_NO_SUCH_NAME: Final = 3
_LABELS: Final = 127  # of a name, which has at most 255 bytes
_NAME: Final = 253  # letters of a name, without dots at its ends
_PORT: Final = 53
_UDP_MOST: Final = 512  # without EDNS


class NoSuchName(Exception):
    """There is no such name."""


class NoAddress(NoSuchName):
    """The name exists, but has no address of the family."""


class TryAgain(Exception):
    """No server gave an answer of use."""


class Answer(NamedTuple):
    """The addresses of a name, as (family, address), and its canonical form."""

    addresses: Sequence[tuple[int, bytes]]
    canonical: bytes


class _Config(NamedTuple):
    servers: list[str]
    search: list[bytes]
    ndots: int
    timeout: int
    attempts: int


def ascii_name(name: str) -> bytes:
    """Return a name as the DNS has it: what of it is not ASCII in Punycode (RFC 3492).

    Raises `NoSuchName` for one that is too long for that.
    """
    if len(name) > _NAME + 1:
        raise NoSuchName
    return b".".join([_ascii_label(label) for label in name.split(".")])


def _ascii_label(label: str) -> bytes:
    return label.encode() if label.isascii() else b"xn--" + punycode_encode(label.lower())


def numeric(name: bytes, families: Sequence[int]) -> tuple[int, bytes] | None:
    """Return (family, address) for an address in text, None for anything else."""
    for family in families:
        try:
            return family, inet_pton(family, name.decode("ascii"))
        except (OSError, ValueError):
            continue
    return None


def service(name: bytes, transport: bytes) -> int | None:
    """Return the port of a service by its name in /etc/services, for `tcp` or `udp`."""
    for official, port, *aliases in _lines(_SERVICES):
        number, _, kind = port.partition(b"/")
        if kind == transport and name in (official, *aliases) and number.isdigit():
            return int(number[:5]) & 0xFFFF
    return None


def resolve(name: bytes, families: Sequence[int]) -> Answer:
    """Return the addresses that a name has in these families, in their order.

    Raises `NoSuchName`, `NoAddress` or `TryAgain`.
    """
    name = name.lower()
    if not _is_name(name):
        raise NoSuchName
    found = _from_hosts(name, families)
    if not found and name.rstrip(b".") in (b"localhost", b"localhost.localdomain"):
        found = [(family, _LOCAL[family]) for family in families]  # RFC 6761
    if found:
        return Answer(found, name)

    config = _configuration()
    known = False
    for candidate in _candidates(name, config):
        addresses: list[tuple[int, bytes]] = []
        canonical = candidate
        for family in families:
            try:
                answer = _ask(candidate, family, config)
            except NoAddress:
                known = True
            except NoSuchName:
                break
            except TryAgain:
                if not addresses:
                    raise
            else:
                addresses += answer.addresses
                canonical = answer.canonical
        if addresses:
            return Answer(addresses[:_ADDRESSES], canonical)
    raise NoAddress if known else NoSuchName


def _is_name(name: bytes) -> bool:
    labels = name.removesuffix(b".").split(b".")
    return len(name) <= _NAME and name.isascii() and all(0 < len(label) <= 63 for label in labels)


def _lines(path: str) -> Iterator[list[bytes]]:
    """Yield the words of each line of a file; comments are left out. Nothing if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return
    try:
        text = os.read(fd, _MOST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    for line in text.splitlines():
        words = line.replace(b";", b"#").partition(b"#")[0].split()
        if len(words) > 1:
            yield words


def _from_hosts(name: bytes, families: Sequence[int]) -> list[tuple[int, bytes]]:
    name = name.removesuffix(b".")
    found = []
    for address, *names in _lines(_HOSTS):
        if name in (each.lower() for each in names):
            known = numeric(address, families)
            if known and known not in found:
                found.append(known)
    return sorted(found, key=lambda one: families.index(one[0]))[:_ADDRESSES]


def _configuration() -> _Config:
    servers: list[str] = []
    search: list[bytes] = []
    options = {b"ndots": 1, b"timeout": 5, b"attempts": 2}
    for keyword, *words in _lines(_RESOLV_CONF):
        if keyword == b"nameserver":
            known = numeric(words[0], (AF_INET, AF_INET6))
            if known:
                servers.append(inet_ntop(*known))
        elif keyword in (b"domain", b"search"):
            search = [word.lower() for word in words if _is_name(word)]
        elif keyword == b"options":
            for word in words:
                option, _, value = word.partition(b":")
                if option in options and value.isdigit():
                    options[option] = int(value[:4])
    return _Config(
        servers[:_SERVERS] or ["127.0.0.1"],
        search[:_SEARCH],
        min(options[b"ndots"], _MAX_NDOTS),
        max(min(options[b"timeout"], _MAX_TIMEOUT), 1),
        max(min(options[b"attempts"], _MAX_ATTEMPTS), 1),
    )


def _candidates(name: bytes, config: _Config) -> Iterator[bytes]:
    """Yield what a name may stand for: itself, and itself below each domain that is searched."""
    if name.endswith(b"."):
        yield name[:-1]
        return
    below = [b"%s.%s" % (name, domain.removesuffix(b".")) for domain in config.search]
    below = [candidate for candidate in below if _is_name(candidate)]
    yield from [name, *below] if name.count(b".") >= config.ndots else [*below, name]


def _ask(name: bytes, family: int, config: _Config) -> Answer:
    """Return what the first server that knows says."""
    for _ in range(config.attempts):
        for server in config.servers:
            try:
                answer = _exchange(server, name, family, config.timeout)
            except OSError:  # too late, nobody listens there, or there is no way to it
                continue
            if answer is not None:
                return answer
    raise TryAgain


def _exchange(server: str, name: bytes, family: int, timeout: int) -> Answer | None:
    """Ask one server; None for an answer that is of no use."""
    number = int.from_bytes(os.urandom(2), "big")
    labels = [b"%c%s" % (len(label), label) for label in name.split(b".")]
    query = (
        _HEADER.pack(number, _WANT_RECURSION, 1, 0, 0, 0)
        + b"".join(labels)
        + b"\0"
        + _QUESTION.pack(_TYPES[family], _IN)
    )
    deadline = time.monotonic() + timeout
    for ask in (_over_udp, _over_tcp):
        message = ask(server, query, deadline)
        flags = int.from_bytes(message[2:4], "big")
        if flags & _TRUNCATED:
            continue
        if flags & _CODE == _NO_SUCH_NAME:
            raise NoSuchName
        if flags & _CODE != _NO_ERROR:
            return None
        try:
            return _read(message, len(query), name, family)
        except (IndexError, ValueError, struct.error):
            return None
    return None


def _over_udp(server: str, query: bytes, deadline: float) -> bytes:
    sock = _connect(server, SOCK_DGRAM, deadline)
    try:
        sock.send(query)
        while True:
            _limit(sock, deadline)
            message = sock.recv(_UDP_MOST)
            if _is_answer(message, query):
                return message
    finally:
        sock.close()


def _over_tcp(server: str, query: bytes, deadline: float) -> bytes:
    sock = _connect(server, SOCK_STREAM, deadline)
    try:
        sock.sendall(len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(_exactly(sock, 2, deadline), "big")
        message = _exactly(sock, size, deadline)
    finally:
        sock.close()
    if not _is_answer(message, query):
        raise TimeoutError  # there is nothing more to wait for
    return message


def _connect(server: str, kind: int, deadline: float) -> socket:
    """Return a socket on which the kernel drops what comes from anybody but the server."""
    sock = socket(AF_INET6 if ":" in server else AF_INET, kind)
    try:
        _limit(sock, deadline)
        sock.connect((server, _PORT))
    except BaseException:
        sock.close()
        raise
    return sock


def _exactly(sock: socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        _limit(sock, deadline)
        more = sock.recv(size - len(data))
        if not more:
            raise TimeoutError
        data += more
    return data


def _limit(sock: socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)


def _is_answer(message: bytes, query: bytes) -> bool:
    """Tell whether a message is a response to this query. An error may leave the question out."""
    if len(message) < _HEADER.size or message[:2] != query[:2] or not message[2] & _RESPONSE >> 8:
        return False
    if message[3] & _CODE and message[4:6] == b"\0\0":
        return True
    return message[_HEADER.size : len(query)].lower() == query[_HEADER.size :]


def _read(message: bytes, start: int, name: bytes, family: int) -> Answer:
    """Read the records from `start` on; follow the name through its aliases."""
    aliases: dict[bytes, bytes] = {}
    addresses: dict[bytes, list[tuple[int, bytes]]] = {}
    wanted, size = _TYPES[family], len(_LOCAL[family])
    for _ in range(_HEADER.unpack_from(message)[3]):
        owner, start = _name_at(message, start)
        kind, group, _, length = _RECORD.unpack_from(message, start)
        start += _RECORD.size
        if group == _IN and kind == _CNAME:
            aliases[owner] = _name_at(message, start)[0]
        elif group == _IN and kind == wanted and length == size:
            address = message[start : start + size]
            if len(address) < size:
                raise ValueError
            addresses.setdefault(owner, []).append((family, address))
        start += length
    for _ in range(len(aliases) + 1):  # a circle of aliases ends too
        if name in addresses:
            return Answer(addresses[name], name)
        name = aliases.get(name, name)
    raise NoAddress


def _name_at(message: bytes, start: int) -> tuple[bytes, int]:
    """Return the name at `start`, and where it ends. A pointer in it leads to an earlier place."""
    labels: list[bytes] = []
    end, place, bound = 0, start, start
    while length := message[place]:
        if len(labels) == _LABELS:
            raise ValueError
        if length < 0x40:
            labels.append(message[place + 1 : place + 1 + length])
            place += 1 + length
            continue
        target = int.from_bytes(message[place : place + 2], "big") & 0x3FFF
        if length < 0xC0 or target >= bound:
            raise ValueError
        end = end or place + 2
        place = bound = target
    return b".".join(labels).lower(), end or place + 1
