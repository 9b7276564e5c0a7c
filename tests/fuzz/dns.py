"""What a name server answers: any bytes, to a resolver that must find its way through them."""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6

from shim.wasi import resolver

_NAME = b"www.example.org"
_WIRE = b"\3www\7example\3org\0"


def _record(owner: bytes, kind: int, data: bytes) -> bytes:
    return owner + struct.pack(">HHIH", kind, 1, 60, len(data)) + data


def _message(*records: bytes) -> bytes:
    question = _WIRE + struct.pack(">HH", 1, 1)
    return struct.pack(">6H", 7, 0x8180, 1, len(records), 0, 0) + question + b"".join(records)


_POINTER = b"\xc0\x0c"
SEEDS = [
    _message(_record(_POINTER, 1, b"\x7f\0\0\1")),
    _message(_record(_WIRE, 5, b"\1a\xc0\x10"), _record(b"\1a\xc0\x10", 1, b"\1\2\3\4")),
    _message(_record(_POINTER, 28, bytes(16)), _record(_POINTER, 1, bytes(4))),
    _message(_record(b"\xc0\xff", 1, bytes(4))),
    _message(),
]
_START = len(_message())


def fuzz(data: bytes) -> None:
    """Read the message as an answer with IPv4 and with IPv6 addresses."""
    if len(data) < 12:  # shorter ones are not taken for an answer
        return
    for family, size in ((AF_INET, 4), (AF_INET6, 16)):
        try:
            answer = resolver._read(data, min(_START, len(data)), _NAME, family)
        except (IndexError, ValueError, struct.error, resolver.NoAddress):
            continue  # what the caller expects
        assert answer.addresses
        for kind, address in answer.addresses:
            assert kind == family
            assert len(address) == size
