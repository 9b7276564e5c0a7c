"""The socket functions that WasmEdge adds to preview 1 (library; runs in the guest).

Its guest libraries import them from `wasi_snapshot_preview1`, and servers written for WasmEdge need
nothing else. From the signatures in its `host/wasi` and the crate `wasmedge_wasi_socket`, for
WasmEdge from 0.10 on. There are two generations, and a name may have a function of each:

* `sock_bind` of the first generation takes addresses of 4 or 16 bytes, `sock_bind_v2` also 128,
  with the family in front. Here the first takes all of them.
* Where the second generation has other parameters, WasmEdge links an import by the plain name to
  the function whose parameters it was declared with: `VARIANTS`.

    address:  | u32 buffer | u32 length |    (a pointer to this is what functions take)
    buffer:   4 bytes: IPv4; 16 bytes: IPv6; 128 bytes: | u16 family | address | zeros |

Ports are parameters, in the host's byte order; the one exception is the sender's of a datagram.
"""

from __future__ import annotations

import struct
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    SO_ACCEPTCONN,
    SO_BINDTODEVICE,
    SO_BROADCAST,
    SO_DONTROUTE,
    SO_ERROR,
    SO_KEEPALIVE,
    SO_LINGER,
    SO_OOBINLINE,
    SO_RCVBUF,
    SO_RCVLOWAT,
    SO_RCVTIMEO,
    SO_REUSEADDR,
    SO_SNDBUF,
    SO_SNDTIMEO,
    SO_TYPE,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    inet_ntop,
    inet_pton,
    socket,
)
from collections.abc import Callable
from typing import Any, Final

from shim.wasi import rights
from shim.wasi.descriptors import Descriptor
from shim.wasi.filetypes import SOCKET_DGRAM, SOCKET_STREAM
from shim.wasi.preview1 import errno
from shim.wasi.preview1.abi import HOSTS, U32, Fd, Ptr, Size, host
from shim.wasi.preview1.errno import FROM_LINUX, Refused
from shim.wasi.preview1.program import Program
from shim.wasi.preview1.sockets import receive, sock_accept, sock_recv, sock_send, socket_of

# WasmEdge also has 3, AF_UNIX, but refuses it unless it is told otherwise.
FAMILIES: Final = {1: AF_INET, 2: AF_INET6}
NUMBERS: Final = {linux: number for number, linux in FAMILIES.items()}
_KINDS: Final = {1: (SOCK_DGRAM, SOCKET_DGRAM), 2: (SOCK_STREAM, SOCKET_STREAM)}

_ADDRESS: Final = struct.Struct("<II")
_STORAGE: Final = 128
_SIZES: Final = {AF_INET: 4, AF_INET6: 16}

_SOCKET_OPTIONS: Final = (  # in the order of their numbers
    *(SO_REUSEADDR, SO_TYPE, SO_ERROR, SO_DONTROUTE, SO_BROADCAST, SO_SNDBUF, SO_RCVBUF),
    *(SO_KEEPALIVE, SO_OOBINLINE, SO_LINGER, SO_RCVLOWAT, SO_RCVTIMEO, SO_SNDTIMEO),
    *(SO_ACCEPTCONN, SO_BINDTODEVICE),
)
_OPTIONS: Final = {
    (0, number): (SOL_SOCKET, option) for number, option in enumerate(_SOCKET_OPTIONS)
} | {(6, 15): (IPPROTO_TCP, TCP_NODELAY)}  # wasi-go's, which libraries for both ask for
_NO_ADDRESS: Final = 1024  # below it no compiler puts data
_OPTION_MOST: Final = 64  # bytes of an option's value; a timeval has 16, as in the guest


def _internet(program: Program, fd: int, right: int = 0) -> socket:
    """Return a socket that has addresses which can be told."""
    _, sock = socket_of(program, fd, right)
    if sock.family not in NUMBERS:
        raise Refused(errno.AFNOSUPPORT)
    return sock


def _buffer(program: Program, address: int) -> memoryview:
    """Return the memory that an address structure points to."""
    return program.memory.span(*_ADDRESS.unpack(program.memory.span(address, _ADDRESS.size)))


def _read_address(program: Program, sock: socket, address: int, port: int) -> tuple[str, int]:
    """Return an address for this socket, as Python's functions take it.

    The family has to be the socket's: Python would take any other text for a name to look up.
    """
    buffer = _buffer(program, address)
    if len(buffer) == _STORAGE:
        family = FAMILIES.get(int.from_bytes(buffer[:2], "little"))
        if family is None:
            raise Refused(errno.AFNOSUPPORT)
        buffer = buffer[2 : 2 + _SIZES[family]]
    elif len(buffer) == _SIZES[AF_INET]:
        family = AF_INET
    elif len(buffer) == _SIZES[AF_INET6]:
        family = AF_INET6
    else:
        raise Refused(errno.INVAL)
    if sock.family != family:
        raise Refused(errno.AFNOSUPPORT)
    return inet_ntop(family, buffer), port & 0xFFFF


def _packed(sock: socket, name: Any) -> tuple[bytes, int]:
    """Return the bytes and the port of what Python calls an address of this socket."""
    text, port, *_ = name
    return inet_pton(sock.family, text.partition("%")[0]), port


def _store(sock: socket, address: bytes) -> bytes:
    return (NUMBERS[sock.family].to_bytes(2, "little") + address).ljust(_STORAGE, b"\0")


@host
def sock_open(program: Program, family: U32, kind: U32, result: Ptr) -> None:
    """Make a socket of family 1 (IPv4) or 2 (IPv6), of type 1 (datagrams) or 2 (a stream)."""
    program.need_network()
    if kind not in _KINDS:
        raise Refused(errno.INVAL)
    if family not in FAMILIES:
        raise Refused(errno.AFNOSUPPORT if family == 3 else errno.INVAL)
    program.memory.span(result, 4)
    linux, filetype = _KINDS[kind]
    sock = socket(FAMILIES[family], linux)
    descriptor = Descriptor(sock.fileno(), filetype, rights.SOCKET)
    descriptor.sock = sock
    program.memory.write_u32(result, program.descriptors.add(descriptor))


@host
def sock_bind(program: Program, fd: Fd, address: Ptr, port: U32) -> None:
    """Give a socket its own address."""
    program.need_network()
    sock = _internet(program, fd)
    sock.bind(_read_address(program, sock, address, port))


@host
def sock_listen(program: Program, fd: Fd, backlog: U32) -> None:
    """Accept connections from now on."""
    program.need_network()
    _internet(program, fd).listen(backlog)


def sock_accept_v1(program: Program, fd: Fd, result: Ptr) -> None:
    """Accept a connection; the first generation knows no flags."""
    sock_accept(program, fd, 0, result)


@host
def sock_connect(program: Program, fd: Fd, address: Ptr, port: U32) -> None:
    """Connect to a peer; EINPROGRESS from a socket that does not block."""
    program.need_network()
    sock = _internet(program, fd)
    sock.connect(_read_address(program, sock, address, port))


@host
def sock_recv_from(
    program: Program,
    fd: Fd,
    iovecs: Ptr,
    count: Size,
    address: Ptr,
    flags: U32,
    size: Ptr,
    out_flags: Ptr,
) -> None:
    """Receive, and store the sender's address without its port, if the buffer has the room."""
    sock = _internet(program, fd, rights.FD_READ)
    buffer = _buffer(program, address)
    sender = receive(program, sock, iovecs, count, flags, size, out_flags)
    if sender is not None:
        packed, _port = _packed(sock, sender)
        if len(buffer) >= len(packed):
            buffer[: len(packed)] = packed


@host
def sock_recv_from_v2(
    program: Program,
    fd: Fd,
    iovecs: Ptr,
    count: Size,
    address: Ptr,
    flags: U32,
    port: Ptr,
    size: Ptr,
    out_flags: Ptr,
) -> None:
    """Receive, and store the sender's address and port.

    The port (u16) is in network byte order here and nowhere else. So it is in all versions of
    WasmEdge, and guests turn it round themselves.
    """
    sock = _internet(program, fd, rights.FD_READ)
    buffer = _buffer(program, address)
    if len(buffer) not in (*_SIZES.values(), _STORAGE):
        raise Refused(errno.INVAL)
    program.memory.span(port, 2)
    sender = receive(program, sock, iovecs, count, flags, size, out_flags)
    if sender is not None:
        packed, number = _packed(sock, sender)
        if len(buffer) == _STORAGE:
            packed = _store(sock, packed)
        if len(buffer) >= len(packed):
            buffer[: len(packed)] = packed
        program.memory.write(port, number.to_bytes(2, "big"))


@host
def sock_send_to(
    program: Program,
    fd: Fd,
    iovecs: Ptr,
    count: Size,
    address: Ptr,
    port: U32,
    flags: U32,
    size: Ptr,
) -> None:
    """Send a datagram to an address."""
    program.need_network()
    sock = _internet(program, fd, rights.FD_WRITE)
    if flags:
        raise Refused(errno.INVAL)
    receiver = _read_address(program, sock, address, port)
    data = program.memory.buffers(iovecs, count)
    program.memory.write_u32(size, sock.sendmsg(data, (), 0, receiver))


def _name_v1(program: Program, sock: socket, name: Any, address: int, kind: int, port: int) -> None:
    packed, number = _packed(sock, name)
    buffer = _buffer(program, address)
    if len(buffer) not in _SIZES.values():
        raise Refused(errno.INVAL)
    if len(buffer) < len(packed):
        raise Refused(errno.NOMEM)
    buffer[: len(packed)] = packed
    # WasmEdge has other numbers for families everywhere else, and keeps these for old guests.
    program.memory.write_u32(kind, 4 if sock.family == AF_INET else 6)
    program.memory.write_u32(port, number)


def _name_v2(program: Program, sock: socket, name: Any, address: int, port: int) -> None:
    packed, number = _packed(sock, name)
    buffer = _buffer(program, address)
    if len(buffer) != _STORAGE:
        raise Refused(errno.INVAL)
    buffer[:] = _store(sock, packed)
    program.memory.write_u32(port, number)


@host
def sock_getlocaladdr(program: Program, fd: Fd, address: Ptr, kind: Ptr, port: Ptr) -> None:
    """Store a socket's own address, 4 or 6 (u32) for its family, and the port (u32)."""
    sock = _internet(program, fd)
    _name_v1(program, sock, sock.getsockname(), address, kind, port)


@host
def sock_getpeeraddr(program: Program, fd: Fd, address: Ptr, kind: Ptr, port: Ptr) -> None:
    """Store the peer's address in the same way."""
    sock = _internet(program, fd)
    _name_v1(program, sock, sock.getpeername(), address, kind, port)


@host
def sock_getlocaladdr_v2(program: Program, fd: Fd, address: Ptr, port: Ptr) -> None:
    """Store a socket's own address and the port (u32)."""
    sock = _internet(program, fd)
    _name_v2(program, sock, sock.getsockname(), address, port)


@host
def sock_getpeeraddr_v2(program: Program, fd: Fd, address: Ptr, port: Ptr) -> None:
    """Store the peer's address in the same way."""
    sock = _internet(program, fd)
    _name_v2(program, sock, sock.getpeername(), address, port)


def _option(level: int, name: int) -> tuple[int, int]:
    try:
        return _OPTIONS[level, name]
    except KeyError:
        raise Refused(errno.INVAL) from None


@host
def sock_getsockopt(program: Program, fd: Fd, level: U32, name: U32, value: Ptr, size: Ptr) -> None:
    """Store an option's value, at most as many bytes as `size` says; store how many there were.

    Others (Go's stealthrocket/net, by wasi-go) give the size itself and not its address: where no
    program has a variable, it is one.
    """
    _, sock = socket_of(program, fd, 0)
    where, option = _option(level, name)
    told = 0 <= size < _NO_ADDRESS
    length = size if told else int.from_bytes(program.memory.span(size, 4), "little")
    room = program.memory.span(value, length)
    found = sock.getsockopt(where, option, _OPTION_MOST)
    if where == SOL_SOCKET and option in (SO_ERROR, SO_TYPE):
        number = int.from_bytes(found, "little")
        if option == SO_ERROR:
            number = FROM_LINUX.get(number, errno.IO) if number else errno.SUCCESS
        else:
            number = next((one for one, (kind, _) in _KINDS.items() if kind == number), 0)
        found = number.to_bytes(4, "little")
    found = found[: len(room)]
    room[: len(found)] = found
    if not told:
        program.memory.write_u32(size, len(found))


@host
def sock_setsockopt(
    program: Program, fd: Fd, level: U32, name: U32, value: Ptr, size: Size
) -> None:
    """Set an option."""
    _, sock = socket_of(program, fd, 0)
    where, option = _option(level, name)
    data = program.memory.span(value, size)
    if len(data) > _OPTION_MOST:
        raise Refused(errno.INVAL)
    sock.setsockopt(where, option, data)


HOSTS.update(
    sock_open_v2=sock_open,
    sock_bind_v2=sock_bind,
    sock_listen_v2=sock_listen,
    sock_accept_v2=sock_accept,
    sock_connect_v2=sock_connect,
    sock_recv_v2=sock_recv,
    sock_send_v2=sock_send,
    sock_send_to_v2=sock_send_to,
)

VARIANTS: Final[dict[str, Callable[..., None]]] = {
    "sock_accept": sock_accept_v1,
    "sock_recv_from": sock_recv_from_v2,
    "sock_getlocaladdr": sock_getlocaladdr_v2,
    "sock_getpeeraddr": sock_getpeeraddr_v2,
}
"""What a name stands for in a module that declares it with other parameters than `HOSTS` has."""
