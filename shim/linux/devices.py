"""The device nodes of a container, and the links that programs expect beside them (library).

All of it inside a root that may be hostile, from outside. See mknod(2) and the runtime-spec,
config-linux.md, "Default Devices".
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from oci.decoding import SpecError
from oci.linux import Device
from shim.linux.inside import Owner, made_by, magic, split_inside
from shim.linux.mounts import MS_BIND, mount
from shim.linux.user_namespace import Ids

_TYPES: Final = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_MODE: Final = 0o666

DEFAULTS: Final = tuple(
    Device(path=f"/dev/{name}", type="c", major=major, minor=minor, file_mode=_MODE, uid=0, gid=0)
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)
"""What a container has without asking; /dev/ptmx is a link, and /dev/console a terminal's."""

_LINKS: Final = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
)


def create(root: int, devices: Iterable[Device], ids: Ids = Ids()) -> None:  # noqa: B008
    """Make the default devices and `linux.devices` inside `root`; the spec's own one wins.

    Where device nodes may not be made, in a user namespace, the host's are bound instead. Raises
    SpecError and OSError that name the device.
    """
    wanted = {device.path: device for device in (*DEFAULTS, *devices)}
    for path, device in wanted.items():
        if path.rstrip("/") == "/dev/ptmx":
            continue
        try:
            _create(root, device, ids)
        except OSError as e:
            raise OSError(e.errno, f"linux.devices: {e.strerror}", path) from e


def create_links(root: int, ids: Ids = Ids()) -> None:  # noqa: B008
    """Make /dev/fd, /dev/stdin and so on, and /dev/ptmx; what is there already stays.

    Except for /dev/ptmx: only that of the container's own devpts leads to its own terminals.
    """
    owner = ids.root()
    for path, target in _LINKS:
        parent, name = split_inside(root, path, owner)
        try:
            if path == "/dev/ptmx":
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=parent)
            with suppress(FileExistsError), made_by(owner):
                os.symlink(target, name, dir_fd=parent)
        finally:
            os.close(parent)


def bind_console(root: int, terminal: str, ids: Ids = Ids()) -> None:  # noqa: B008
    """Have /dev/console inside `root` be `terminal`, a path such as /dev/pts/5.

    Not one of a descriptor from elsewhere: the kernel binds what is in this mount namespace.
    """
    _bind(root, "/dev/console", terminal, ids)


def _create(root: int, device: Device, ids: Ids) -> None:
    kind = _TYPES.get(device.type)
    if kind is None:
        raise SpecError(f"linux.devices: {device.path}: unknown type {device.type!r}")
    if kind != stat.S_IFIFO and not (0 <= device.major < 2**12 and 0 <= device.minor < 2**20):
        raise SpecError(f"linux.devices: {device.path}: {device.major}:{device.minor} is no device")
    number = 0 if kind == stat.S_IFIFO else os.makedev(device.major, device.minor)
    mode = _MODE if device.file_mode is None else stat.S_IMODE(device.file_mode)
    owner = Owner(ids.uid(device.uid or 0), ids.gid(device.gid or 0))
    parent, name = split_inside(root, device.path, ids.root())
    try:
        try:
            os.mknod(name, kind | mode, number, dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if (stat.S_IFMT(found.st_mode), found.st_rdev) != (kind, number):
                raise OSError(errno.EEXIST, "something else is there") from None
            return
        # Past the umask; and it is a node that nobody can have replaced by another one.
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            made = os.fstat(fd)
            if (stat.S_IFMT(made.st_mode), made.st_rdev) != (kind, number):
                raise OSError(errno.EXDEV, "replaced while it was made")
            os.chown(magic(fd), *owner)
            os.chmod(magic(fd), mode)
        finally:
            os.close(fd)
    except PermissionError:
        host = os.stat(device.path)
        if (stat.S_IFMT(host.st_mode), host.st_rdev) != (kind, number):
            raise OSError(errno.ENODEV, "the host has another one to bind") from None
        _bind(root, device.path, device.path, ids)
    finally:
        os.close(parent)


def _bind(root: int, path: str, source: str, ids: Ids) -> None:
    parent, name = split_inside(root, path, ids.root())
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        with suppress(FileExistsError):
            os.close(os.open(name, flags, 0, dir_fd=parent))
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            mount(source, magic(fd), None, MS_BIND)
        finally:
            os.close(fd)
    finally:
        os.close(parent)
