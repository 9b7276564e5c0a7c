"""A new network namespace's loopback (library). See netdevice(7)."""

from __future__ import annotations

import fcntl
import struct
from _socket import AF_INET, SOCK_DGRAM, socket
from typing import Final

_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_IFREQ: Final = struct.Struct("=16sh22x")  # struct ifreq: name, flags, the rest of its union


def bring_up_loopback() -> None:
    """Bring `lo` of this network namespace up: it then has 127.0.0.1 and ::1.

    In a new namespace it is down, and nothing reaches even the process itself. Needs CAP_NET_ADMIN.
    """
    sock = socket(AF_INET, SOCK_DGRAM)
    try:
        request = bytearray(_IFREQ.pack(b"lo", 0))
        fcntl.ioctl(sock.fileno(), _SIOCGIFFLAGS, request)
        name, flags = _IFREQ.unpack(request)
        if not flags & _IFF_UP:
            fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))
    finally:
        sock.close()
