"""What the containerd that runs knows of the runtime, which its files may not tell (`pywasm`).

A configuration says what the next containerd will know. The one that runs says itself what it has
read, in the Status of its CRI plugin. That is one call by gRPC, for which the few frames are
written here: the usual library is no dependency of ours, and brings threads. Sources: RFC 9113,
RFC 7541 (headers as literals), and gRPC's own "gRPC over HTTP2".
"""

from __future__ import annotations

import errno
import json
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from proto.api import cri_pb2 as cri
from shim.node import containerd
from shim.node.containerd_config import File, runtimes

_METHOD: Final = "/runtime.v1.RuntimeService/Status"
_TIMEOUT: Final = 10.0  # seconds
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_INITIAL_WINDOW_SIZE: Final = 4
_PREFIX: Final = 5  # bytes before a message: whether it is compressed, and its length
_WINDOW: Final = 1 << 24  # bytes; more than is ever said, so that no window has to be kept

# What a runtime's table has in a file, and in the CRI plugin's Status.
_NAMES: Final = {
    "runtime_type": "runtimeType",
    "pod_annotations": "PodAnnotations",
    "container_annotations": "ContainerAnnotations",
    "options": "options",
    "sandboxer": "sandboxer",
}
_SANDBOXER: Final = "podsandbox"  # where a file names none; containerd 1.x has no such field


class Answer(NamedTuple):
    """Whether the containerd that runs knows a runtime as its files have it."""

    knows: bool | None
    """None: it cannot be asked."""
    text: str
    """One line about that."""


def ask(config: str, files: Sequence[File], handler: str) -> Answer:
    """Ask the containerd that runs with `config`, of which `files` are what it says now."""
    pid = containerd.process(config)
    if not pid:
        return Answer(None, f"no containerd runs with {config}")
    who = f"the containerd that runs (pid {pid})"
    address = containerd.address(pid, files)
    try:
        known = _runtimes(address)
    except (OSError, ValueError) as error:
        return Answer(None, f"{who} does not say what it knows, at {address}: {error}")
    table: dict[str, Any] = {}
    for file in files:
        table |= runtimes(file).get(handler, {})
    if handler not in known:
        return Answer(False, f'{who} does not know runtime "{handler}": it has to be restarted')
    if not _same(table, known[handler]):
        return Answer(
            False, f'{who} knows runtime "{handler}" as it was before: it has to be restarted'
        )
    return Answer(True, f'{who} knows runtime "{handler}"')


def _same(table: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    for ours, its in _NAMES.items():
        if its not in known:
            continue
        here, there = table.get(ours), known[its]
        if ours == "sandboxer":
            here = here or _SANDBOXER
        if (here or None) != (there or None):
            return False
    return True


def _runtimes(address: str) -> dict[str, dict[str, Any]]:
    """The tables of runtimes by handler, as the CRI plugin says.

    Raises OSError; ValueError if what it says has none.
    """
    request = cri.StatusRequest(verbose=True)
    status = cri.StatusResponse.FromString(_call(address, request.SerializeToString()))
    try:
        found = json.loads(status.info["config"])["containerd"]["runtimes"]
        return msgspec.convert(found, dict[str, dict[str, Any]])
    except (KeyError, TypeError, msgspec.ValidationError):
        raise ValueError("there are no runtimes in what it says") from None


def _call(address: str, message: bytes) -> bytes:
    """Call `_METHOD`, and return the message of the answer.

    A refusal is an answer without a message; why would be in headers, which are not read. Raises
    OSError: ENOMSG for a refusal, which is how it looks where there is no CRI plugin, or not yet.
    """
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": _METHOD,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    fields = [part.encode() for field in headers.items() for part in field]
    block = b"".join(
        b"%b%c%b" % (b"" if i % 2 else b"\0", len(part), part) for i, part in enumerate(fields)
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT)
        connection.connect(address)
        connection.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _WINDOW))
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW))
            + _frame(_HEADERS, _END_HEADERS, 1, block)
            + _frame(_DATA, _END_STREAM, 1, struct.pack(">?I", False, len(message)) + message)
        )
        answer = b""
        for kind, flags, payload in _frames(connection):
            if kind == _DATA:
                answer += payload
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                told = payload if kind == _PING else b""
                connection.sendall(_frame(kind, _ACK, 0, told))
            ends = kind in (_DATA, _HEADERS) and flags & _END_STREAM
            if ends or kind in (_RST_STREAM, _GOAWAY):
                break
    if len(answer) < _PREFIX:
        raise OSError(errno.ENOMSG, "there is no CRI plugin that answers")
    return answer[_PREFIX:]


def _frames(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and payload of what comes, until the other side hangs up."""
    with connection.makefile("rb") as stream:
        while len(head := stream.read(9)) == 9:
            kind, flags = head[3:5]
            yield kind, flags, stream.read(int.from_bytes(head[:3], "big"))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
