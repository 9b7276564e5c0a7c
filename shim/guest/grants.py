"""From the spec to what a guest is granted: WASI's capabilities. Runs in: guest.

The filesystem it sees is the list: the rootfs is one preopened directory, and so is each directory
mounted in it.
"""

import os
import socket
from collections.abc import Iterable

from oci.runtime import Mount, Process
from shim.engines.base import Grants, Preopen
from shim.guest.annotations import PREFIX, Annotations, Listen

_BACKLOG = 4096  # which the kernel bounds by net.core.somaxconn


def listen(address: Listen) -> int:
    """Listen in this process's network; returns the socket. Raises OSError naming the address."""
    try:
        with socket.socket(address.family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
            listener.listen(_BACKLOG)
            listener.setblocking(address.blocking)
            return listener.detach()
    except OSError as error:
        name = f"annotations: {PREFIX}listen: {address}"
        raise OSError(error.errno, error.strerror, name) from None


def grant(
    process: Process,
    mounts: Iterable[Mount],
    annotations: Annotations,
    cwd: int,
    listeners: list[int],
) -> Grants:
    """Return all that the guest gets besides its standard streams.

    Opens the directories as the user that the guest runs as; takes `cwd`, the working directory,
    over. Raises OSError naming the directory.
    """
    preopens = {"/": _preopen("/", open_directory("/"))} if annotations.rootfs else {}
    for mount in mounts:
        if os.path.isdir(mount.destination):
            preopens[mount.destination] = _preopen(
                mount.destination, open_directory(mount.destination)
            )
    for extra in annotations.preopens:
        try:
            fd = open_directory(extra.path)
        except OSError as error:
            name = f"annotations: {PREFIX}preopens: {extra.path}"
            raise OSError(error.errno, error.strerror, name) from None
        preopens[extra.name] = _preopen(extra.name, fd, readonly=extra.readonly)
    start = os.path.normpath(process.cwd)
    if start == "/":
        os.close(cwd)
    return Grants(
        args=[os.fsencode(argument) for argument in process.args],
        env=[os.fsencode(variable) for variable in process.env],
        preopens=list(preopens.values()),
        cwd=None if start == "/" else _preopen(start, cwd),
        listeners=listeners,
        network=annotations.network,
    )


def open_directory(path: str) -> int:
    """Open a directory, but not for reading: who may list it is for the engine to find out."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _preopen(name: str, fd: int, *, readonly: bool = False) -> Preopen:
    # What the kernel says, whichever way it came to be read-only: the rootfs, a mount, a device.
    return Preopen(name, fd, readonly or bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY))
