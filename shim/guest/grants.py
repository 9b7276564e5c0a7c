"""From the spec to what a guest is granted: WASI's capabilities. Runs in: guest.

The filesystem it sees is the list: the rootfs is one preopened directory, and so is each directory
mounted in it. Paths lead from one to the other as in any container, unless an annotation has chosen
what there is: then each directory is all that is reached through it.
"""

import os
import socket
from collections.abc import Container, Mapping, Sequence

from oci.runtime import Mount, Process
from shim.engines.base import Grants, Preopen
from shim.guest.annotations import PREFIX, Annotations, Listen
from shim.linux.inside import is_below, mount_id, open_directory, spelling

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
    mounts: Sequence[Mount],
    annotations: Annotations,
    root: int,
    cwd: int,
    listeners: list[int],
) -> Grants:
    """Return all that the guest gets besides its standard streams.

    Opens the directories inside `root` as the user that the guest runs as. Takes that over, and
    `cwd`, the working directory. Raises OSError naming the directory.
    """
    granted: dict[str, Preopen] = {}
    chosen = {_plain(extra.name) for extra in annotations.preopens}
    narrowed = not annotations.rootfs or "/" in chosen
    confined = narrowed or any(_plain(mount.destination) in chosen for mount in mounts)
    if annotations.rootfs:
        _put(granted, _preopen("/", open_directory(root, "/"), confined=confined))
    for mount in mounts:
        try:
            fd = open_directory(root, mount.destination)
        except OSError:
            continue  # a file, or nowhere that this user can go
        if narrowed and mount_id(fd) == mount_id(root):
            # Whoever may rename in a volume has put a symlink in its place since.
            os.close(fd)
            continue
        _put(granted, _preopen(_plain(mount.destination), fd, confined=confined))
    for extra in annotations.preopens:
        try:
            fd = open_directory(root, extra.path)
        except OSError as error:
            name = f"annotations: {PREFIX}preopens: {extra.path}"
            raise OSError(error.errno, os.strerror(error.errno or 0), name) from None
        _put(granted, _preopen(_plain(extra.name), fd, readonly=extra.readonly))
    os.close(root)
    return Grants(
        args=[os.fsencode(argument) for argument in process.args],
        env=[os.fsencode(variable) for variable in process.env],
        preopens=list(granted.values()),
        cwd=_start(spelling(process.cwd), cwd, granted, chosen),
        listeners=listeners,
        network=annotations.network,
    )


def _plain(name: str) -> str:
    return spelling(name) if name.startswith("/") else name


def _put(granted: dict[str, Preopen], preopen: Preopen) -> None:
    """Grant a directory; one that had the name is granted no more."""
    if preopen.name in granted:
        os.close(granted[preopen.name].fd)
    granted[preopen.name] = preopen


def _start(
    path: str, cwd: int, granted: Mapping[str, Preopen], chosen: Container[str]
) -> Preopen | None:
    """Return the working directory as a grant, which is no more than the preopen that it lies in.

    If an annotation has chosen the root, or there is none, the directory `cwd` may be beyond what
    is granted. Then what has its name is looked up as the guest would; it may be nothing.
    """
    if path == "/" or "/" not in granted:
        os.close(cwd)
        return None
    above = [name for name in granted if name.startswith("/") and is_below(path, name)]
    name = max(above, key=len)
    if "/" in chosen:
        os.close(cwd)
        try:
            cwd = open_directory(granted[name].fd, os.path.relpath(path, name))
        except OSError:
            return None
    within = granted[name]
    return _preopen(
        path, cwd, readonly=name in chosen and within.readonly, confined=within.confined
    )


def _preopen(name: str, fd: int, *, readonly: bool = False, confined: bool = True) -> Preopen:
    if not confined:
        # Where a path ends, only the kernel knows, and says whether that mount may be written to.
        return Preopen(name, fd, confined=False)
    # What the kernel says, whichever way it came to be read-only: the rootfs, a mount, a device.
    return Preopen(name, fd, readonly or bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY))
