"""Host functions in any order, with any numbers, over a memory that holds anything."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import struct
from unittest.mock import patch

from shim.wasi import descriptors, filetypes, resolver, rights
from shim.wasi.descriptors import Descriptor
from tests.fuzz.source import Source, scratch
from tests.shim.wasi.preview1.conftest import PAGE, Guest

_ROOT = scratch()
_HOME = os.path.join(_ROOT, "home")
# Nobody is asked for a name, and answers that there is nobody come at once.
_RESOLV_CONF = os.path.join(_ROOT, "resolv.conf")
with open(_RESOLV_CONF, "w") as _file:
    _file.write("nameserver 127.0.0.1\n")

# These end the caller, by design.
_NAMES = sorted(Guest().functions.keys() - {"proc_exit", "proc_raise"})
_EDGES = (
    0,
    1,
    2,
    3,
    4,
    8,
    16,
    127,
    128,
    PAGE - 8,
    PAGE - 1,
    PAGE,
    PAGE + 1,
    1 << 31,
    (1 << 32) - 1,
)
_WIDE = (*_EDGES, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 10**18)
_CLOCK_AT_ONCE = struct.pack("<QBxxxxxxxIxxxxQQHxxxxxx", 1, 0, 1, 0, 0, 0)
_STRINGS = 64  # where in memory there are paths
_PATHS = b"f\0d\0d/g\0.\0..\0link\0/etc\0d/../f\0loop\0\xff\0" + b"n" * 300
_ADDRESS = 512  # ... and a socket's address: pointer and length, and what they point to
_IOVECS = 640  # ... and two buffers

SEEDS = [
    b"\0" * 8,
    *(bytes([number]) + bytes([0x80, 64, 1, 0, 0, 0]) * 3 for number in range(len(_NAMES))),
    *(
        bytes([_NAMES.index(name), *arguments])
        for name, arguments in (
            # An argument: 0 and an edge's number, or 1 and a byte, or 2 and four bytes.
            ("path_open", (1, 4, 1, 1, 1, 64, 1, 1, 0, 1, 0, 17, 0, 17, 0, 0, 1, 32)),
            ("fd_write", (1, 1, 2, 128, 2, 0, 0, 1, 2, 1, 16)),
            ("fd_readdir", (1, 4, 0, 8, 0, 8, 0, 0, 1, 16)),
            ("sock_open", (1, 1, 1, 2, 1, 16)),
            ("poll_oneoff", (1, 0, 0, 8, 1, 2, 1, 16)),
        )
    ),
]


@patch.object(resolver, "_RESOLV_CONF", _RESOLV_CONF)
def fuzz(data: bytes) -> None:
    """Each call: the function, then its arguments; between calls the memory may be changed."""
    source = Source(data)
    os.mkdir(_HOME)
    guest = _guest()
    # A guest may allocate what it likes; here, not the machine's disk.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        while source:
            which = source.number()
            if which >= 0xF0:
                at = source.number(2) % PAGE
                change = source.string(64)[: PAGE - at]
                guest.memory[at : at + len(change)] = change
                continue
            name = _NAMES[which % len(_NAMES)]
            function = guest.functions[name]
            numbers = [_number(source, kind) for kind in function.params]
            if name == "poll_oneoff":
                # Something has occurred already, or it would wait as long as it is told to.
                at = numbers[0] & 0xFFFFFFFF
                guest.memory[at : at + len(_CLOCK_AT_ONCE)] = _CLOCK_AT_ONCE[: max(PAGE - at, 0)]
            answer = guest(name, *numbers)
            assert 0 <= answer <= 87, name
            assert len(guest.memory) == PAGE
            _do_not_wait(guest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        for number in list(guest.program.descriptors.opened):
            guest("fd_close", number)
        shutil.rmtree(_HOME)


def _number(source: Source, kind: str) -> int:
    how = source.number()
    if how & 3 == 0:
        return source.choice(_WIDE if kind == "i64" else _EDGES)
    if how & 3 == 1:
        return source.number()
    if how & 3 == 2:
        return source.number(2)
    return source.number(8 if kind == "i64" else 4)


def _guest() -> Guest:
    """Two pipes, a file, two sockets, a listener and two directories, the second read-only."""
    guest = Guest()
    guest.memory[_STRINGS : _STRINGS + len(_PATHS)] = _PATHS
    guest.memory[_ADDRESS : _ADDRESS + 12] = struct.pack("<II4s", _ADDRESS + 8, 4, b"\x7f\0\0\1")
    guest.memory[_IOVECS : _IOVECS + 16] = struct.pack("<IIII", 1024, 64, 2048, 64)
    guest.program.args = [b"a", b"bc"]
    guest.program.env = [b"A=b"]
    os.mkdir(os.path.join(_HOME, "d"))
    os.symlink("d/g", os.path.join(_HOME, "link"))
    os.symlink("loop", os.path.join(_HOME, "loop"))
    file = os.open(os.path.join(_HOME, "f"), os.O_RDWR | os.O_CREAT)
    os.write(file, b"content")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")  # some abstract name
    listener.listen()
    table = guest.program.descriptors
    for fd in (
        *os.pipe(),
        file,
        socket.socket(type=socket.SOCK_DGRAM).detach(),
    ):
        table.add(descriptors.inherited(fd))
    for readonly in (False, True):
        table.add(
            Descriptor(
                os.open(_HOME, os.O_RDONLY),
                filetypes.DIRECTORY,
                rights.DIRECTORY,
                rights.ALL,
                readonly=readonly,
                preopen=b"/" if readonly else b"/data",
            )
        )
    table.add(descriptors.inherited(listener.detach()))
    _do_not_wait(guest)
    return guest


def _do_not_wait(guest: Guest) -> None:
    for opened in guest.program.descriptors.opened.values():
        if opened.kind not in (filetypes.REGULAR_FILE, filetypes.DIRECTORY):
            os.set_blocking(opened.fd, False)
