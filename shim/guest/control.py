"""What shim and guest say to each other before the guest becomes the wasm program.

Runs in: shim and guest.

    guest                                       shim
      | -- Keep(key) + seccomp filter ----------> |   only if the cache has none
      | -- Touch(key) --------------------------> |   now and then, of what the cache has
      | <-- Prepare(rootfs) + stdin, stdout, stderr   (when containerd calls Create), or
      | <-- Execute + the same, and what to run --|   (for a further process of a container)
      | -- Native + rootfs ---------------------> |   only if the program is no module: the end
      | -- Isolated ----------------------------> |   only if there are hooks for this moment
      | <------------------------------- Continue |
      | -- Compile(key) + module ---------------> |   only if the cache has no artifact, once
      | <-------------- Compiled + artifact       |   or Refused(reason), for each engine
      | -- Sealed ------------------------------> |   it asks for nothing more
      | -- Arrived + pidfd ---------------------> |   only where others are in its PID namespace
      | <------------------------------- Continue |
      | -- Ready or Failed(reason) -------------> |
      | <-- Start ------------------------------- |   (when containerd calls Start)

Each message is one packet of a SOCK_SEQPACKET pair, descriptors ride along with SCM_RIGHTS. The end
of the channel before Start tells a guest that nobody wants it any more.

A guest sends Sealed while it is still nothing but our code, as root. Then it becomes the
container's user and has native code loaded, and whoever breaks that loader speaks in its name.
"""

import array
import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, TypeAlias

import msgspec

_LIMIT = 1 << 18
_MAX_FDS = 4
_received = bytearray(_LIMIT)
"""Where a message arrives: to make place for the longest each time would be a mapping each time."""

# Numbers, since to combine members of an enumeration is Python code.
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_TRUNC, _CTRUNC = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)

Key: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""Of an artifact."""


class MessageError(Exception):
    """What has arrived is no message; it says why, in one line."""


class Mount(msgspec.Struct, frozen=True):
    """One of the rootfs mounts of a Create request."""

    type: str
    source: str
    target: str
    options: list[str]


class Prepare(msgspec.Struct, tag=True, frozen=True):
    """Everything that only the Create request knows. Carries stdin, stdout and stderr.

    And the image behind them, if the shim has mounted it (`mounts.copy_tree`).
    """

    rootfs: list[Mount]
    terminal: bool = False
    mounted: bool = False


class Execute(msgspec.Struct, tag=True, frozen=True):
    """A further program. Carries stdin, stdout, stderr and its `process`, in JSON."""

    terminal: bool = False


class Compile(msgspec.Struct, tag=True, frozen=True):
    """Asks for the artifact of a module that is not in the cache.

    Carries the module in a sealed memfd. `function` is what is to be run of it; the artifact does
    not depend on that. That it is not `checked` for what the engine compiles wrongly is for the
    shim to allow. Of a component that is carried the core module at `part`, an offset and a length
    in bytes, is wanted; or the plan, from what is no engine.
    """

    engine: str
    key: Key
    function: str | None
    memory_pages: int | None = None
    checked: bool = True
    part: tuple[int, int] | None = None


class Compiled(msgspec.Struct, tag=True, frozen=True):
    """Answers Compile. Carries the artifact; `name` as in `Artifact`."""

    length: int
    name: str


class Refused(msgspec.Struct, tag=True, frozen=True):
    """Answers Compile: the module is not one that the engine takes.

    Or not this time: `again` as in `TryAgainError`.
    """

    reason: str
    again: bool = False


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The guest is isolated, its module loaded and checked; it waits for Start.

    `reason` tells why it is this engine, `missing` are capabilities that could not be granted.
    With `hooked` it answers Start, too, when its hooks have run.
    """

    engine: str
    reason: str
    missing: list[str] = []
    hooked: bool = False


class Keep(msgspec.Struct, tag=True, frozen=True):
    """Hands over a filter that the cache did not have: a file as `write_filter` makes it."""

    key: Key


class Touch(msgspec.Struct, tag=True, frozen=True):
    """Tells that an artifact of the cache was used; see `ArtifactCache.touch`."""

    key: Key
    verified: bool


class Native(msgspec.Struct, tag=True, frozen=True):
    """The container's program is a file that the kernel itself executes.

    Carries the mounted rootfs, unless the request had none to mount, or the guest is `placed`: in
    the container's cgroup.
    """

    placed: bool = False


class Isolated(msgspec.Struct, tag=True, frozen=True):
    """The guest's namespaces and mounts are there, the old root too: the time for some hooks."""


class Arrived(msgspec.Struct, tag=True, frozen=True):
    """The guest is now another process, a sibling of the one that sends this.

    Carries the new one's pidfd. The old one waits to be ended.
    """


class Continue(msgspec.Struct, tag=True, frozen=True):
    """Answers Isolated and Arrived."""


class Sealed(msgspec.Struct, tag=True, frozen=True):
    """The guest is about to give its privileges up, and asks for nothing after this."""


class Started(msgspec.Struct, tag=True, frozen=True):
    """Answers Start, where there were hooks to run before the program; else Failed."""


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The guest gives up and ends. `reason` is one line that names the culprit.

    `invalid` tells a fault of what was asked (the spec, the image) from one of this machine, of
    which `number` may be the errno: EAGAIN where it may be otherwise the next time.
    """

    reason: str
    invalid: bool
    number: int = 0


class Start(msgspec.Struct, tag=True, frozen=True):
    """Run."""


Message: TypeAlias = (
    Prepare
    | Execute
    | Compile
    | Compiled
    | Refused
    | Keep
    | Touch
    | Native
    | Isolated
    | Arrived
    | Continue
    | Sealed
    | Ready
    | Failed
    | Start
    | Started
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def reason(error: OSError) -> str:
    """Say in one line what failed, and with which file."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def pair() -> tuple[socket.socket, socket.socket]:
    """A new channel: the shim's end, which never blocks, and the guest's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        # A Prepare with a long list of overlay layers is one packet.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LIMIT)
    ours.setblocking(False)
    return ours, theirs


def send(channel: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message, with descriptors that the receiver gets copies of.

    Raises OSError (EMSGSIZE) for one that would not arrive whole.
    """
    data = _encoder.encode(message)
    if len(data) > _LIMIT:
        raise OSError(errno.EMSGSIZE, f"{len(data)} bytes for the guest, of which {_LIMIT} fit")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([data], ancillary)


def check_wanted(channel: socket.socket) -> None:
    """Raise EOFError if the other side is gone already; a message stays where it is."""
    with suppress(BlockingIOError):
        if not channel.recv(1, _PEEK):
            raise EOFError("control channel closed")


def receive(channel: socket.socket) -> tuple[Message, list[int]]:
    """Receive one message and the descriptors that came with it (close-on-exec).

    Raises EOFError when the other side is gone, BlockingIOError when a non-blocking channel is
    empty, OSError where there are no descriptors left to receive some, and MessageError.
    """
    # Not socket.recv_fds: in Python 3.10 it forgets the flags.
    size, ancillary, flags, _ = channel.recvmsg_into(
        [_received], socket.CMSG_LEN(_MAX_FDS * 4), _CLOEXEC
    )
    fds = array.array("i")
    for _, _, content in ancillary:
        fds.frombytes(content[: len(content) // 4 * 4])
    try:
        if flags & _CTRUNC and len(fds) < _MAX_FDS:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return _message(bytes(_received[:size]), flags), list(fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _message(data: bytes, flags: int) -> Message:
    if flags & _CTRUNC:
        raise MessageError(f"more than {_MAX_FDS} descriptors")
    if flags & _TRUNC:
        raise MessageError(f"more than {_LIMIT} bytes")
    if not data:
        raise EOFError("control channel closed")
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MessageError(f"no message: {error}") from None
