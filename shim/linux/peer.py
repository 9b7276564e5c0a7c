"""Who is at the other end of a unix socket (library). See unix(7), SO_PEERCRED."""

from __future__ import annotations

import socket
from struct import Struct
from typing import NamedTuple

_UCRED = Struct("iII")  # struct ucred


class Peer(NamedTuple):
    """Who made the connection, as the kernel saw it at connect."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel. Raises OSError."""
    return Peer._make(
        _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    )
