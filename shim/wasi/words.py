"""What 0.2 and 0.3 call things alike, in terms of Linux (library; runs in the guest).

Enums and variants are labels, flags frozensets of them, records tuples in the order of the fields.
"""

from __future__ import annotations

import errno as linux
import os
from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final, TypeAlias

from shim.wasi import paths, resolver, rights
from shim.wasi.descriptors import Descriptor
from shim.wasi.errors import NotCapable, failure
from shim.wasi.files import Attributes
from shim.wasi.filetypes import DIRECTORY
from shim.wasi.own_links import Numbered
from shim.wasi.times import NOW, Time

_SECOND: Final = 1_000_000_000

# wasi:filesystem

FILE_ERRORS: Final = {
    linux.EACCES: "access",
    linux.EAGAIN: "would-block",
    linux.EALREADY: "already",
    linux.EBADF: "bad-descriptor",
    linux.EBUSY: "busy",
    linux.EDEADLK: "deadlock",
    linux.EDQUOT: "quota",
    linux.EEXIST: "exist",
    linux.EFBIG: "file-too-large",
    linux.EILSEQ: "illegal-byte-sequence",
    linux.EINPROGRESS: "in-progress",
    linux.EINTR: "interrupted",
    linux.EINVAL: "invalid",
    linux.EIO: "io",
    linux.EISDIR: "is-directory",
    linux.ELOOP: "loop",
    linux.EMLINK: "too-many-links",
    linux.EMSGSIZE: "message-size",
    linux.ENAMETOOLONG: "name-too-long",
    linux.ENODEV: "no-device",
    linux.ENOENT: "no-entry",
    linux.ENOLCK: "no-lock",
    linux.ENOMEM: "insufficient-memory",
    linux.ENOSPC: "insufficient-space",
    linux.ENOTDIR: "not-directory",
    linux.ENOTEMPTY: "not-empty",
    linux.ENOTRECOVERABLE: "not-recoverable",
    linux.ENOSYS: "unsupported",
    linux.EOPNOTSUPP: "unsupported",
    linux.ENOTTY: "no-tty",
    linux.ENXIO: "no-such-device",
    linux.EOVERFLOW: "overflow",
    linux.EPERM: "not-permitted",
    linux.EPIPE: "pipe",
    linux.EROFS: "read-only",
    linux.ESPIPE: "invalid-seek",
    linux.ETXTBSY: "text-file-busy",
    linux.EXDEV: "cross-device",
}


def file_error(error: Exception) -> str:
    """Return what an operation on files failed with; what is no such failure is raised again."""
    if isinstance(error, OSError):
        return FILE_ERRORS.get(error.errno or 0, "io")
    if isinstance(error, NotCapable):
        return "not-permitted"
    if isinstance(error, OverflowError):  # beyond what any system call takes
        return "invalid"
    if isinstance(error, UnicodeDecodeError):
        return "illegal-byte-sequence"
    if isinstance(error, MemoryError):
        return "insufficient-memory"
    raise error


TYPES: Final = (
    *("unknown", "block-device", "character-device", "directory", "regular-file"),
    *("socket", "socket", "symbolic-link", "fifo"),
)
"""By the numbers of `shim.wasi.filetypes`."""

ADVICE: Final = {
    label: number
    for number, label in enumerate(
        ("normal", "sequential", "random", "will-need", "dont-need", "no-reuse")
    )
}
"""Places in `files.ADVICE`."""

_OPEN: Final = {"create": os.O_CREAT, "directory": os.O_DIRECTORY, "truncate": os.O_TRUNC}
_SYNC: Final = {
    "file-integrity-sync": os.O_SYNC,
    "data-integrity-sync": os.O_DSYNC,
    "requested-write-sync": os.O_RSYNC,
}
_NO_READ: Final = rights.ALL & ~rights.FD_READ
_NO_WRITE: Final = rights.ALL & ~rights.FD_WRITE

Datetime: TypeAlias = tuple[int, int]
"""Seconds and nanoseconds since 1970."""
Stat: TypeAlias = tuple[str, int, int, Datetime, Datetime, Datetime]


def datetime(nanoseconds: int) -> Datetime:
    """Return a time since 1970."""
    return divmod(nanoseconds, _SECOND)


def new_time(timestamp: tuple[str, Any]) -> Time:
    """Return the time that a `new-timestamp` says. Raises EOVERFLOW for one that Linux has not."""
    label, when = timestamp
    if label == "now":
        return NOW
    if label == "no-change":
        return None
    seconds, nanoseconds = when
    if not -(1 << 62) < seconds < 1 << 62:
        raise failure(linux.EOVERFLOW)
    time: int = seconds * _SECOND + nanoseconds
    return time


def stat(found: Attributes) -> Stat:
    """Return a `descriptor-stat`: type, links, size; times of access, modification and change."""
    _, _, kind, links, size, *times = found
    access, modification, change = map(datetime, times)
    return TYPES[kind], links, size, access, modification, change


def open_at(
    numbered: Numbered,
    directory: Descriptor,
    path: bytes,
    path_flags: frozenset[str],
    open_flags: frozenset[str],
    flags: frozenset[str],
) -> Descriptor:
    """Open or create a file or directory.

    What is created or emptied is opened for writing, and for reading what is for nothing else.
    """
    linux_flags = sum([_OPEN[flag] for flag in open_flags if flag != "exclusive"])
    if "exclusive" in open_flags and "create" in open_flags:
        linux_flags |= os.O_EXCL
    if "directory" in open_flags and len(open_flags) > 1:
        raise failure(linux.EINVAL)
    if "symlink-follow" not in path_flags:
        linux_flags |= os.O_NOFOLLOW
    if "write" not in flags:
        flags |= {"read"}
    if linux_flags & (os.O_CREAT | os.O_TRUNC):
        flags |= {"write"}
    for flag, bits in _SYNC.items():
        if flag in flags:
            linux_flags |= bits
    base = rights.ALL if "read" in flags else _NO_READ
    if "write" not in flags:
        base &= _NO_WRITE
    opened = paths.open_at(numbered, directory, path, linux_flags, base, rights.ALL)
    if opened.kind != DIRECTORY or opened.readonly:
        flags -= {"mutate-directory"}
    opened.flags = flags
    return opened


def flags_of(descriptor: Descriptor) -> frozenset[str]:
    """Return the `descriptor-flags` of a descriptor; what was granted was not opened with any."""
    if descriptor.flags is not None:
        return descriptor.flags
    if descriptor.kind == DIRECTORY:
        return frozenset({"read"} if descriptor.readonly else {"read", "mutate-directory"})
    uses = (("read", rights.FD_READ), ("write", rights.FD_WRITE))
    return frozenset([flag for flag, right in uses if descriptor.base & right])


# wasi:sockets

SOCKET_ERRORS: Final = {
    linux.EACCES: "access-denied",
    linux.EPERM: "access-denied",
    linux.EADDRINUSE: "address-in-use",
    linux.EADDRNOTAVAIL: "address-not-bindable",
    linux.ETIMEDOUT: "timeout",
    linux.ECONNREFUSED: "connection-refused",
    linux.ECONNRESET: "connection-reset",
    linux.ECONNABORTED: "connection-aborted",
    linux.EINVAL: "invalid-argument",
    linux.EHOSTUNREACH: "remote-unreachable",
    linux.EHOSTDOWN: "remote-unreachable",
    linux.ENETDOWN: "remote-unreachable",
    linux.ENETUNREACH: "remote-unreachable",
    linux.ENONET: "remote-unreachable",
    linux.EISCONN: "invalid-state",
    linux.ENOTCONN: "invalid-state",
    linux.EDESTADDRREQ: "invalid-state",
    linux.EMSGSIZE: "datagram-too-large",
    linux.ENOMEM: "out-of-memory",
    linux.ENOBUFS: "out-of-memory",
    linux.EOPNOTSUPP: "not-supported",
    linux.ENOPROTOOPT: "not-supported",
    linux.EPFNOSUPPORT: "not-supported",
    linux.EPROTONOSUPPORT: "not-supported",
    linux.EPROTOTYPE: "not-supported",
    linux.ESOCKTNOSUPPORT: "not-supported",
    linux.EAFNOSUPPORT: "not-supported",
}

FAMILIES: Final = {"ipv4": AF_INET, "ipv6": AF_INET6}
_IPV6: Final = Struct(">8H")

Sockaddr: TypeAlias = "tuple[str, int] | tuple[str, int, int, int]"
"""An address as Python's sockets have it: text and port; of IPv6 also flow and scope."""


def family(number: int) -> str:
    """Return the `ip-address-family`."""
    return "ipv4" if number == AF_INET else "ipv6"


def address(number: int, packed: bytes) -> tuple[str, tuple[int, ...]]:
    """Return an `ip-address` of a family, of its bytes."""
    if number == AF_INET:
        return "ipv4", tuple(packed)
    return "ipv6", _IPV6.unpack(packed)


def addresses(name: str, families: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the `ip-address`es of a name; an address in text is its own.

    Raises what `resolver.resolve` does.
    """
    plain = resolver.ascii_name(name)
    known = resolver.numeric(plain.strip(b"[]"), families)
    found = [known] if known else resolver.resolve(plain, families).addresses
    return [address(*one) for one in found]


def socket_address(sockaddr: Sockaddr) -> tuple[str, tuple[Any, ...]]:
    """Return an `ip-socket-address`."""
    text, port, *more = sockaddr
    if not more:
        return "ipv4", (port, tuple(inet_pton(AF_INET, text)))
    flow, scope = more
    return "ipv6", (port, flow, _IPV6.unpack(inet_pton(AF_INET6, text.partition("%")[0])), scope)


def sockaddr(told: tuple[str, tuple[Any, ...]]) -> Sockaddr:
    """Return what an `ip-socket-address` says."""
    label, parts = told
    if label == "ipv4":
        port, octets = parts
        return inet_ntop(AF_INET, bytes(octets)), port
    port, flow, groups, scope = parts
    return inet_ntop(AF_INET6, _IPV6.pack(*groups)), port, flow & 0xFFFFF, scope
