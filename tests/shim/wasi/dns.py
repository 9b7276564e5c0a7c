"""A DNS server, and a world where it is the only one: library for the tests of the resolver."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from socket import AF_INET, AF_INET6

from shim.linux.clone import CLONE_NEWNET, CLONE_NEWNS, clone, wait
from shim.linux.mounts import MS_BIND, MS_PRIVATE, MS_REC, mount
from shim.linux.network import bring_up_loopback

A, CNAME, AAAA = 1, 5, 28
ONE, TWO = socket.inet_aton("192.0.2.1"), socket.inet_aton("192.0.2.2")
SIX = socket.inet_pton(AF_INET6, "2001:db8::1")
MANY = [bytes((198, 51, 100, number)) for number in range(60)]

ZONE: dict[tuple[bytes, int], list[bytes]] = {
    (b"a.test", A): [ONE, TWO],
    (b"a.test", AAAA): [SIX],
    (b"v6.test", AAAA): [SIX],
    (b"big.test", A): MANY,
    (b"spoof.test", A): [ONE],
    (b"half.test", A): [ONE],
    (b"svc.ns.svc.cluster.local", A): [TWO],
}
ALIASES = {
    b"alias.test": b"other.test",
    b"other.test": b"a.test",
    b"circle.test": b"round.test",
    b"round.test": b"circle.test",
}


def text(name: bytes) -> bytes:
    return b"".join(b"%c%s" % (len(part), part) for part in name.split(b".")) + b"\0"


def record(name: bytes, kind: int, data: bytes) -> bytes:
    return text(name) + struct.pack(">HHIH", kind, 1, 60, len(data)) + data


def reply(query: bytes, tcp: bool) -> list[bytes]:
    """Every message that the server answers a query with."""
    end = query.index(b"\0", 12)
    question = query[12 : end + 5]
    labels, place = [], 12
    while query[place]:
        labels.append(query[place + 1 : place + 1 + query[place]])
        place += 1 + query[place]
    asked = b".".join(labels)
    kind = int.from_bytes(query[end + 1 : end + 3], "big")

    records: list[bytes] = []
    name = asked
    while name in ALIASES and len(records) < 4:
        records.append(record(name, CNAME, text(ALIASES[name])))
        name = ALIASES[name]
    records += [record(name, kind, data) for data in ZONE.get((name, kind), ())]
    exists = records or any(key[0] == name for key in ZONE)

    def message(number: bytes = query[:2], code: int = 0, flags: int = 0x8180) -> bytes:
        counts = struct.pack(">4H", 1, len(records), 0, 0)
        return number + struct.pack(">H", flags | code) + counts + question + b"".join(records)

    if asked == b"silent.test" or (asked == b"half.test" and kind == AAAA):
        return []
    if asked == b"fail.test":
        return [message(code=2)]
    if asked == b"refused.test":
        return [query[:2] + b"\x81\x85" + bytes(8)]
    if asked == b"garbage.test":
        # A name that points at itself; a record that ends early; one that is missing.
        pointer = (len(query) | 0xC000).to_bytes(2, "big")
        records = [pointer + struct.pack(">HHIH", A, 1, 60, 4) + ONE]
        return [message()]
    if asked == b"short.test":
        records = [record(name, A, ONE)]
        return [message()[:-2]]
    if asked == b"spoof.test":
        wrong = bytes(byte ^ 0xFF for byte in query[:2])
        return [b"", b"\0", message(wrong), query, message().replace(b"spoof", b"other"), message()]
    if not tcp and len(message()) > 512:
        records = records[:3]
        return [message(flags=0x8380)]
    return [message(code=0 if exists else 3)]


def serve(ready: int, log: str) -> None:
    udp = socket.socket(AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 53))
    tcp = socket.create_server(("127.0.0.1", 53))
    with open(log, "ab", buffering=0) as asked:
        os.write(ready, b"x")
        while True:
            readable, _, _ = select.select([udp, tcp], [], [])
            if udp in readable:
                query, peer = udp.recvfrom(4096)
                asked.write(query[12:] + b"\n")
                for message in reply(query, tcp=False):
                    udp.sendto(message, peer)
            if tcp in readable:
                connection, _ = tcp.accept()
                with connection:
                    query = connection.recv(4096)[2:]
                    for message in reply(query, tcp=True):
                        framed = len(message).to_bytes(2, "big") + message
                        connection.sendall(framed[:100])
                        connection.sendall(framed[100:])


class World:
    """Namespaces with an /etc of their own, and the server at 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self._etc = directory / "etc"
        self._etc.mkdir()
        self._log = directory / "asked"

    def asked(self) -> bytes:
        """What the server was asked so far: the queries, without their headers."""
        return self._log.read_bytes()

    def __call__(self, check: Callable[[], None], **files: str) -> None:
        """Run `check` in a child, where /etc has only these files (`resolv_conf` for a dot)."""
        for name, content in {"resolv_conf": "nameserver 127.0.0.1\n", **files}.items():
            (self._etc / name.replace("_", ".")).write_text(content)

        def enter() -> None:
            mount("none", "/", None, MS_REC | MS_PRIVATE)
            mount(str(self._etc), "/etc", None, MS_BIND)
            bring_up_loopback()
            ours, theirs = os.pipe()
            server = os.fork()
            if server == 0:
                os.close(ours)
                serve(theirs, str(self._log))
            os.close(theirs)
            try:
                assert os.read(ours, 1) == b"x"
                check()
            finally:
                os.kill(server, 9)
                os.waitpid(server, 0)

        child = clone(enter, CLONE_NEWNET | CLONE_NEWNS)
        try:
            assert wait(child.pidfd) == 0
        finally:
            os.close(child.pidfd)
