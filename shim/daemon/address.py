"""The socket that a shim serves, one for each id or pod. Runs in: shim.

However many `start`s of one pod run at once, one of them gets the listening socket and becomes the
pod's shim; the others join it.

Beside the socket a symbolic link tells the cgroup of the container that the shim begins with. Where
a shim is killed before containerd has dialled, containerd executes no `delete`, and nobody else
knows of the one or the other.
"""

import errno
import fcntl
import hashlib
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from proto.bootstrap_pb2 import BootstrapResult
from shim.daemon.api.joining import join
from shim.daemon.invocation import Invocation
from shim.guest.annotations import is_crio
from shim.guest.placement import Placement
from shim.launcher.main import BACKLOG
from shim.linux.directories import private_directory

_GROUPS: Final = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")

SANDBOXER = "io.containerd.sandbox.controller.v1.shim"
"""What has the bundles of the pods that a shim is to hold itself, since containerd 2.0."""

_CGROUP: Final = ".cgroup"
_PAUSE = 0.001


class Claim(NamedTuple):
    """Where the shim of a group listens, and the listening socket if it is now ours to serve."""

    path: str
    listener: socket.socket | None

    @property
    def address(self) -> str:
        """The form containerd dials."""
        return f"unix://{self.path}"


def group(annotations: Mapping[str, str], id: str) -> str:
    """Return what containers that share a shim have in common.

    The first of `_GROUPS` that is there; under CRI-O, which has a shim for each container, the id.
    """
    if is_crio(annotations):
        return id
    return next(filter(None, map(annotations.get, _GROUPS)), id)


def claim(run_directory: str, invocation: Invocation, group: str, cgroups_path: str = "") -> Claim:
    """Join the shim that serves `group`, or take its place, to begin with a container there."""
    at = directory(run_directory)
    if invocation.bootstrap is not None and invocation.bootstrap.socket_dir:
        at = invocation.bootstrap.socket_dir
    private_directory(at)
    # Socket paths are limited to 107 bytes; ids are not.
    name = hashlib.sha256(
        "\0".join((invocation.containerd_address, invocation.namespace, group)).encode()
    )
    path = os.path.join(at, name.hexdigest()[:32])
    # Not under the lock, which a shim that is about to end takes, too.
    while not join(path, invocation.id):
        with _locked(at):
            if not _listening(path):
                release(path)
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    listener.bind(path)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, path) from None
                if cgroups_path:
                    os.symlink(cgroups_path, path + _CGROUP)
                listener.listen(BACKLOG)  # clients in Go do not wait for room
                return Claim(path, listener)
        time.sleep(_PAUSE)  # another was faster, or the one before has not left yet
    return Claim(path, None)


def release(path: str) -> None:
    """Take away the name of a socket that this process listens on.

    Without the lock, for which a loop cannot wait: as long as we listen, nobody takes our place.
    Under the lock, also of one that nobody listens on.
    """
    for name in (path + _CGROUP, path):  # from then on the place is free
        with suppress(FileNotFoundError):
            os.unlink(name)


def release_dead(path: str) -> None:
    """Take a socket's name away, unless somebody listens on it."""
    with _locked(os.path.dirname(path)):
        if not _listening(path):
            release(path)


def sweep(run_directory: str) -> None:
    """Remove what shims that were killed have left there, and their cgroups if nobody is in them.

    Raises OSError.
    """
    at = directory(run_directory)
    # Made and listening under the lock: what nobody listens on is nobody's.
    with suppress(FileNotFoundError), _locked(at):
        for name in os.listdir(at):
            path = os.path.join(at, name)
            # Not by the table of all sockets, where anybody can have the name of another's.
            if name.endswith(_CGROUP) or _listening(path):
                continue
            try:
                Placement.for_path(os.readlink(path + _CGROUP)).cgroup.delete(patience=0)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    continue  # its guest is not quite dead; to be done by the next one
            release(path)


def directory(run_directory: str) -> str:
    """Where shims have their sockets, unless containerd says otherwise."""
    return os.path.join(run_directory, "s")


def write_answer(invocation: Invocation, address: str) -> bytes:
    """Encode what `start` prints, in the form that this containerd reads."""
    if invocation.bootstrap is not None:
        return BootstrapResult(version=3, address=address, protocol="ttrpc").SerializeToString()
    if invocation.max_version >= 2:
        # 2.0 to 2.2 also read a 3, as 1.7 does not, but they do not say so.
        since_2_0 = SANDBOXER in invocation.bundle.split("/")
        version = 3 if since_2_0 else min(invocation.max_version, 3)
        return b'{"version":%d,"address":"%b","protocol":"ttrpc"}' % (version, address.encode())
    return address.encode()


class _locked:
    def __init__(self, directory: str) -> None:
        self._path = directory

    def __enter__(self) -> None:
        # The directory itself: it may be containerd's, where a file of ours would stay.
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


def _listening(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A full queue is somebody's, too.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            return True
        return True
