"""Mounts: option names to flags, and mounting into a root that may be hostile (library).

The names are those of fstab, containerd and the OCI runtime-spec (config-linux.md, "mount
options").
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import struct
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from shim.linux.files import (
    AT_EMPTY_PATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    openat2,
    read_small,
)
from shim.linux.libc import LIBC, NUMBERS, describe, fail, system_call

MS_RDONLY: Final = 1
MS_NOSUID: Final = 1 << 1
MS_NODEV: Final = 1 << 2
MS_NOEXEC: Final = 1 << 3
MS_SYNCHRONOUS: Final = 1 << 4
MS_REMOUNT: Final = 1 << 5
MS_MANDLOCK: Final = 1 << 6
MS_DIRSYNC: Final = 1 << 7
MS_NOSYMFOLLOW: Final = 1 << 8
MS_NOATIME: Final = 1 << 10
MS_NODIRATIME: Final = 1 << 11
MS_BIND: Final = 1 << 12
MS_MOVE: Final = 1 << 13
MS_REC: Final = 1 << 14
MS_SILENT: Final = 1 << 15
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_I_VERSION: Final = 1 << 23
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

_ATIME: Final = MS_NOATIME | MS_RELATIME | MS_STRICTATIME
# What a mount, as opposed to its filesystem, remembers: a bind has these of its own.
_PER_MOUNT: Final = (
    MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOSYMFOLLOW | MS_NODIRATIME | _ATIME
)
_ST_RELATIME: Final = 1 << 12  # statvfs(3) has most flags at mount(2)'s bits, but not these two
_ST_NOSYMFOLLOW: Final = 1 << 13

_SET: Final = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "sync": MS_SYNCHRONOUS,
    "remount": MS_REMOUNT,
    "mand": MS_MANDLOCK,
    "dirsync": MS_DIRSYNC,
    "nosymfollow": MS_NOSYMFOLLOW,
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
    "relatime": MS_RELATIME,
    "strictatime": MS_STRICTATIME,
    "lazytime": MS_LAZYTIME,
    "iversion": MS_I_VERSION,
    "silent": MS_SILENT,
    "bind": MS_BIND,
    "rbind": MS_BIND | MS_REC,
}
_CLEAR: Final = {
    "rw": MS_RDONLY,
    "suid": MS_NOSUID,
    "dev": MS_NODEV,
    "exec": MS_NOEXEC,
    "async": MS_SYNCHRONOUS,
    "nomand": MS_MANDLOCK,
    "symfollow": MS_NOSYMFOLLOW,
    "atime": MS_NOATIME,
    "diratime": MS_NODIRATIME,
    "norelatime": MS_RELATIME,
    "nostrictatime": MS_STRICTATIME,
    "nolazytime": MS_LAZYTIME,
    "noiversion": MS_I_VERSION,
    "loud": MS_SILENT,
    "defaults": 0,
}
_PROPAGATION: Final = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}

_ATTR_RDONLY: Final = 0x01
_ATTR_NOSUID: Final = 0x02
_ATTR_NODEV: Final = 0x04
_ATTR_NOEXEC: Final = 0x08
_ATTR_ATIME: Final = 0x70
_ATTR_NOATIME: Final = 0x10
_ATTR_STRICTATIME: Final = 0x20
_ATTR_NODIRATIME: Final = 0x80
_ATTR_NOSYMFOLLOW: Final = 0x200000
# Attributes to set and to clear on the whole tree, for mount_setattr(2). The kernel wants the atime
# field cleared for any value of it to be set.
_RECURSIVE: Final = {
    "rro": (_ATTR_RDONLY, 0),
    "rrw": (0, _ATTR_RDONLY),
    "rnosuid": (_ATTR_NOSUID, 0),
    "rsuid": (0, _ATTR_NOSUID),
    "rnodev": (_ATTR_NODEV, 0),
    "rdev": (0, _ATTR_NODEV),
    "rnoexec": (_ATTR_NOEXEC, 0),
    "rexec": (0, _ATTR_NOEXEC),
    "rnodiratime": (_ATTR_NODIRATIME, 0),
    "rdiratime": (0, _ATTR_NODIRATIME),
    "rrelatime": (0, _ATTR_ATIME),
    "rnoatime": (_ATTR_NOATIME, _ATTR_ATIME),
    "rstrictatime": (_ATTR_STRICTATIME, _ATTR_ATIME),
    "rnosymfollow": (_ATTR_NOSYMFOLLOW, 0),
    "rsymfollow": (0, _ATTR_NOSYMFOLLOW),
}
_AT_RECURSIVE: Final = 0x8000
_MOUNT_ATTR: Final = struct.Struct("=4Q")  # struct mount_attr: set, clear, propagation, userns_fd

_PROC_SUPER_MAGIC: Final = 0x9FA0
_SYMLINKS: Final = 40  # as many as the kernel follows in one path
_INSIDE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS

_mount = LIBC.mount
_mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_umount2 = LIBC.umount2
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_pivot_root = system_call(ctypes.c_char_p, ctypes.c_char_p)
_mount_setattr = system_call(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_char_p, ctypes.c_size_t
)
_fstatfs = LIBC.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)


class MountOptions(NamedTuple):
    """A list of options, sorted by what each of them takes to apply."""

    flags: int = 0
    """MS_*, those of `mount` itself, MS_BIND and MS_REC among them."""
    clear: int = 0
    """MS_* asked not to be there: a bind has its source's flags otherwise."""
    propagation: tuple[int, ...] = ()
    """MS_PRIVATE and the like, each with or without MS_REC, one call each."""
    recursive: tuple[int, int] = (0, 0)
    """MOUNT_ATTR_* to set and to clear on the mount and all below it (Linux 5.12)."""
    data: str = ""
    """What is left, for the filesystem, joined with commas."""


def parse_options(options: Iterable[str]) -> MountOptions:
    """Sort mount options; of two that contradict each other the later one holds.

    A name nobody knows is for the filesystem. `x-*` and `X-*` are comments of other programs.
    """
    flags = clear = attr_set = attr_clear = 0
    propagation = []
    data = []
    for option in options:
        if option in _SET:
            flag = _SET[option]
            if flag & _ATIME:
                flags &= ~_ATIME
            flags |= flag
            clear &= ~flag
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
            clear |= _CLEAR[option]
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif option in _RECURSIVE:
            on, off = _RECURSIVE[option]
            attr_set = attr_set & ~(on | off) | on
            attr_clear = attr_clear & ~on | off
        elif not option.startswith(("x-", "X-")):
            data.append(option)
    return MountOptions(flags, clear, tuple(propagation), (attr_set, attr_clear), ",".join(data))


def _c(value: str | bytes | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def mount(
    source: str | bytes | None,
    target: str | bytes,
    fstype: str | None,
    flags: int = 0,
    data: str | bytes | None = None,
) -> None:
    """Mount (mount(2)). Raises OSError with the target as its filename; E2BIG for too much data.

    The kernel cuts `data` at the end of a page without a word.
    """
    options = _c(data) or None
    if options is not None and len(options) >= mmap.PAGESIZE:
        what = f"mount {fstype}: {len(options)} bytes of options, at most {mmap.PAGESIZE - 1} fit"
        raise OSError(errno.E2BIG, what, os.fsdecode(target))
    if _mount(_c(source), _c(target), _c(fstype), flags, options) < 0:
        error = ctypes.get_errno()
        what = f"mount {fstype or ''}".strip()
        if source is not None and os.fsdecode(source) != fstype:
            what += f" {os.fsdecode(source)}"
        fail(what, target, error)


def umount(target: str | bytes, flags: int = 0) -> None:
    """Unmount (umount2(2)). Raises OSError: EINVAL if there is no mount at `target`."""
    if _umount2(_c(target), flags) < 0:
        fail("umount", target)


def pivot_root(new_root: str | bytes, put_old: str | bytes) -> None:
    """Change the root of every process of this mount namespace (pivot_root(2))."""
    if _pivot_root(NUMBERS["pivot_root"], _c(new_root), _c(put_old)) < 0:
        fail("pivot_root", new_root)


def enter_root(root: int) -> None:
    """Make the mount `root` is open on the root and working directory, and drop the old one.

    For a process in a mount namespace of its own, whose mounts are private or slaves: the old root
    is unmounted, and that must not travel. `root` itself has to be a mount point.
    """
    os.fchdir(root)
    # The same directory twice stacks the old root on the new one, where it needs no directory.
    try:
        pivot_root(".", ".")
    except OSError as e:
        raise OSError(e.errno, e.strerror, describe(root)) from None
    umount(".", MNT_DETACH)
    os.chdir("/")


def mount_all(source: str | None, target: str, fstype: str, options: MountOptions) -> None:
    """Mount on the path `target` with everything that `options` ask for, or nothing.

    For paths nobody hostile can change: a bundle's rootfs; otherwise `mount_at`.
    """
    options = _complete(fstype, options)
    _attach(source, target, fstype, options)
    try:
        _configure(target, options)
    except OSError:
        with suppress(OSError):
            umount(target, MNT_DETACH)
        raise


def mount_at(
    root: int, destination: str, source: str | None, fstype: str, options: MountOptions
) -> None:
    """Mount on the path `destination` inside the directory `root` (an O_PATH descriptor will do).

    Symlinks on the way are an image's, so they are followed as if `root` was the root already.
    What is missing is created: a directory, or an empty file for a bind of something else.
    Needs /proc. Raises OSError with the destination as its filename.
    """
    try:
        _mount_at(root, destination, source, fstype, options)
    except OSError as e:
        if e.filename == destination:
            raise
        ours = e.filename is None or str(e.filename).startswith(_magic(""))
        what = e.strerror if ours else f"{e.strerror} ({e.filename})"
        raise OSError(e.errno, what, destination) from e


def _mount_at(
    root: int, destination: str, source: str | None, fstype: str, options: MountOptions
) -> None:
    options = _complete(fstype, options)
    bound = os.stat(source) if source is not None and options.flags & MS_BIND else None
    below = _make(root, destination, is_dir=bound is None or stat.S_ISDIR(bound.st_mode))
    try:
        _refuse_proc(below, destination)
        _attach(source, _magic(below), fstype, options)
        # The descriptor is of what was there before; flags are for what is there now.
        above = openat2(root, destination, os.O_PATH, resolve=_INSIDE)
        try:
            arrived = _mount_id(above) != _mount_id(below)
            if not arrived or (bound and not os.path.samestat(os.fstat(above), bound)):
                raise OSError(errno.EXDEV, "mounted elsewhere: the path changed", destination)
            _configure(_magic(above), options)
        except OSError:
            with suppress(OSError):
                umount(_magic(above), MNT_DETACH)
            raise
        finally:
            os.close(above)
    finally:
        os.close(below)


def _complete(fstype: str, options: MountOptions) -> MountOptions:
    """Options that say what the type alone may say: OCI has `bind` for both."""
    if fstype in ("bind", "rbind"):
        return options._replace(flags=options.flags | _SET[fstype])
    return options


def _attach(source: str | None, target: str, fstype: str, options: MountOptions) -> None:
    """Make the mount; what a bind does not take in the same call is for `_configure`."""
    if options.flags & MS_BIND:
        mount(source, target, None, options.flags & (MS_BIND | MS_REC))
    elif fstype == "overlay" and len(os.fsencode(options.data)) >= mmap.PAGESIZE:
        _mount_overlay(source, target, options)
    else:
        mount(source, target, fstype, options.flags, options.data)


def _configure(target: str, options: MountOptions) -> None:
    """Flags of a bind, propagation and recursive attributes, for the mount at `target`."""
    if options.flags & MS_BIND and (options.flags | options.clear) & _PER_MOUNT:
        has = _flags(target)
        wanted = options.flags & _PER_MOUNT
        inherited = has & ~(options.clear | (_ATIME if wanted & _ATIME else 0))
        # A remount replaces all flags. Leaving out one that was there would open what the source
        # had closed, or fail, where the flag is locked by another user namespace.
        if wanted | inherited != has:
            mount(None, target, None, MS_REMOUNT | MS_BIND | wanted | inherited)
    for propagation in options.propagation:
        mount(None, target, None, propagation)
    if any(options.recursive):
        _set_recursively(target, *options.recursive)


def _flags(target: str) -> int:
    """The MS_* of the mount at `target`."""
    found = os.statvfs(target).f_flag
    flags = found & _PER_MOUNT & ~MS_NOSYMFOLLOW
    if found & _ST_RELATIME:
        flags |= MS_RELATIME
    if found & _ST_NOSYMFOLLOW:
        flags |= MS_NOSYMFOLLOW
    return flags


def _set_recursively(target: str, attr_set: int, attr_clear: int) -> None:
    attributes = _MOUNT_ATTR.pack(attr_set, attr_clear, 0, 0)
    number, size = NUMBERS["mount_setattr"], len(attributes)
    fd = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        if _mount_setattr(number, fd, b"", AT_EMPTY_PATH | _AT_RECURSIVE, attributes, size) < 0:
            fail("mount_setattr", target)
    finally:
        os.close(fd)


def _mount_overlay(source: str | None, target: str, options: MountOptions) -> None:
    """Mount more layers than fit into a page, by naming them relative to where they all are."""
    parts = options.data.split(",")
    lower = next((part for part in parts if part.startswith("lowerdir=")), "lowerdir=")
    layers = lower.removeprefix("lowerdir=").split(":")
    data = options.data
    common = "/"
    # A backslash escapes a comma or colon of a name, which is beyond this; `mount` will say so.
    if "\\" not in data and all(layer.startswith("/") for layer in layers):
        common = os.path.commonpath([os.path.dirname(layer) for layer in layers])
        relative = ":".join(os.path.relpath(layer, common) for layer in layers)
        data = ",".join("lowerdir=" + relative if part is lower else part for part in parts)
    target = os.path.abspath(target)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(common)
        mount(source, target, "overlay", options.flags, data)
    finally:
        os.fchdir(here)
        os.close(here)


def _magic(fd: int | str) -> str:
    return f"/proc/self/fd/{fd}"


def _mount_id(fd: int) -> int:
    info = read_small(f"/proc/self/fdinfo/{fd}").splitlines()
    return next(int(line.split()[1]) for line in info if line.startswith(b"mnt_id:"))


def _refuse_proc(fd: int, destination: str) -> None:
    """Refuse a procfs that a symlink led to: a mount there has evaded labels and masks before."""
    statfs = ctypes.create_string_buffer(256)
    if _fstatfs(fd, statfs) < 0:
        fail("fstatfs", destination)
    (magic,) = struct.unpack_from("l", statfs)  # f_type
    asked_for = os.path.normpath("/" + destination.lstrip("/")).split("/")[1]
    if magic == _PROC_SUPER_MAGIC and asked_for != "proc":
        raise OSError(errno.EPERM, "a symlink leads into /proc", destination)


def _make(root: int, destination: str, *, is_dir: bool) -> int:
    """Open `destination` inside `root`, O_PATH, after creating what is missing of it."""
    todo = deque(part for part in destination.split("/") if part not in ("", "."))
    if not todo:
        raise OSError(errno.EINVAL, "destination is the root", destination)
    try:
        return openat2(root, "/".join(todo), os.O_PATH, resolve=_INSIDE)
    except FileNotFoundError:
        pass
    done: list[str] = []
    symlinks = 0
    while todo:
        name = todo.popleft()
        if name == "..":
            del done[-1:]
            continue
        # One name at a time: neither mkdir nor O_EXCL follows a symlink, and the kernel vouches for
        # the directory. A symlink we follow ourselves, because its target may be missing, too.
        parent = openat2(root, "/".join(done) or ".", os.O_PATH | os.O_DIRECTORY, resolve=_INSIDE)
        try:
            link = _create(parent, name, is_dir=is_dir or bool(todo))
        finally:
            os.close(parent)
        if link is None:
            done.append(name)
            continue
        symlinks += 1
        if symlinks > _SYMLINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), destination)
        if link.startswith("/"):
            done.clear()
        todo.extendleft(reversed([part for part in link.split("/") if part not in ("", ".")]))
    return openat2(root, "/".join(done) or ".", os.O_PATH, resolve=_INSIDE)


def _create(parent: int, name: str, *, is_dir: bool) -> str | None:
    """Create `name` unless it exists; where it leads if it is a symlink."""
    try:
        if is_dir:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=parent))
    except FileExistsError:
        try:
            return os.readlink(name, dir_fd=parent)
        except OSError as e:
            if e.errno != errno.EINVAL:  # that is: no symlink
                raise
    return None
