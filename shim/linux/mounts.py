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
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from oci.decoding import SpecError
from shim.linux import copy_up
from shim.linux.files import AT_EMPTY_PATH, RESOLVE_NO_SYMLINKS
from shim.linux.inside import Owner, create_inside, magic, mount_id, open_inside, reopen_mounted
from shim.linux.libc import LIBC, NUMBERS, describe, fail, system_call
from shim.linux.procfs import is_procfs

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
    "rnorelatime": (0, 0),
    "rnoatime": (_ATTR_NOATIME, _ATTR_ATIME),
    "ratime": (0, _ATTR_ATIME),
    "rstrictatime": (_ATTR_STRICTATIME, _ATTR_ATIME),
    "rnostrictatime": (0, _ATTR_ATIME),
    "rnosymfollow": (_ATTR_NOSYMFOLLOW, 0),
    "rsymfollow": (0, _ATTR_NOSYMFOLLOW),
}
OPTIONS: Final = frozenset(
    (*_SET, *_CLEAR, *_PROPAGATION, *_RECURSIVE, "idmap", "ridmap", "tmpcopyup")
)
"""All that are not a filesystem's own."""
_ATTR_IDMAP: Final = 0x100000
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_MOVE_FROM_DESCRIPTOR: Final = 0x04  # MOVE_MOUNT_F_EMPTY_PATH
_MOVE_TO_MAGIC: Final = 0x10  # MOVE_MOUNT_T_SYMLINKS: the target is a link, from /proc/self/fd
_MOUNT_ATTR: Final = struct.Struct("=4Q")  # struct mount_attr: set, clear, propagation, userns_fd

# What may be mounted on inside a container's /proc: files that lxcfs has better ones of. Anything
# else there, a volume's owner would have a say in what the kernel is told and tells.
_ON_PROC: Final = frozenset(
    "/proc/" + name
    for name in (
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "slabinfo",
        "stat",
        "swaps",
        "uptime",
        "sys/crypto/fips_enabled",
        "sys/kernel/ns_last_pid",
    )
)

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
_open_tree = system_call(ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_move_mount = system_call(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)


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
    id_map: str = ""
    """`idmap` or `ridmap`, for the mount or for all below it, too (Linux 5.12)."""
    copy_up: bool = False
    """`tmpcopyup`: a tmpfs begins with what it covers."""


def parse_options(options: Iterable[str]) -> MountOptions:
    """Sort mount options; of two that contradict each other the later one holds.

    A name nobody knows is for the filesystem. `x-*` and `X-*` are comments of other programs.
    """
    flags = clear = attr_set = attr_clear = 0
    propagation = []
    data = []
    id_map = ""
    copy_up = False
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
        elif option in ("idmap", "ridmap"):
            id_map = option
        elif option == "tmpcopyup":
            copy_up = True
        elif not option.startswith(("x-", "X-")):
            data.append(option)
    recursive = (attr_set, attr_clear)
    rest = ",".join(data)
    return MountOptions(flags, clear, tuple(propagation), recursive, rest, id_map, copy_up)


def propagation_flags(name: str, field: str = "linux.rootfsPropagation") -> int:
    """MS_SHARED and the like, by name. Raises SpecError naming the field."""
    try:
        return _PROPAGATION[name]
    except KeyError:
        raise SpecError(f"{field}: unknown propagation {name!r}") from None


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


def umount_all(target: str) -> None:
    """Unmount all that is mounted on the path `target`, one upon the other, or below it.

    What is in use goes as soon as it is not. Raises OSError.
    """
    flags = UMOUNT_NOFOLLOW
    while True:
        try:
            umount(target, flags)
        except OSError as e:
            if e.errno in (errno.EINVAL, errno.ENOENT):
                return  # no mount point, or not even a directory
            if e.errno != errno.EBUSY or flags & MNT_DETACH:
                raise
            flags |= MNT_DETACH


def pivot_root(new_root: str | bytes, put_old: str | bytes) -> None:
    """Change the root of every process of this mount namespace (pivot_root(2))."""
    if _pivot_root(NUMBERS["pivot_root"], _c(new_root), _c(put_old)) < 0:
        fail("pivot_root", new_root)


def isolate(rootfs: str, propagation: str = "") -> None:
    """Separate this process's mounts from the host's, as `linux.rootfsPropagation` allows.

    By default what the host mounts and unmounts later still arrives here, and nothing gets out.
    With a shared one a volume may be shared with the host in both directions. What is mounted on
    `rootfs`, an absolute path, never gets out. Raises SpecError for a name nobody knows; OSError.
    """
    flags = propagation_flags(propagation) if propagation else MS_REC | MS_SLAVE
    mount(None, "/", None, flags)
    if flags & MS_REC and flags & (MS_SLAVE | MS_PRIVATE):
        return
    flags = MS_SLAVE if flags & MS_SLAVE else MS_PRIVATE
    while True:
        try:
            mount(None, rootfs, None, flags)
            return
        except OSError as e:
            # No mount point. The mount that it is on is further up.
            if e.errno != errno.EINVAL or rootfs == "/":
                raise
        rootfs = os.path.dirname(rootfs)


def share_root(propagation: str) -> None:
    """Let the mounts of a new root travel as `linux.rootfsPropagation` says, after `enter_root`."""
    flags = propagation_flags(propagation) if propagation else 0
    if flags & (MS_SHARED | MS_UNBINDABLE):
        mount(None, "/", None, flags)


def enter_root(root: int) -> None:
    """Make the mount `root` is open on the root and working directory, and drop the old one.

    For a process in a mount namespace of its own. `root` itself has to be a mount point, and it and
    the mount it is on must not be shared.
    """
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(root)
        # The same directory twice stacks the old root on the new one, where it needs no directory.
        try:
            pivot_root(".", ".")
        except OSError as e:
            raise OSError(e.errno, e.strerror, describe(root)) from None
        os.fchdir(old)
    finally:
        os.close(old)
    # What is unmounted here must not be unmounted on the host.
    mount(None, ".", None, MS_REC | MS_SLAVE)
    umount(".", MNT_DETACH)
    os.chdir("/")


def mount_all(source: str | None, target: str, fstype: str, options: MountOptions) -> None:
    """Mount on the path `target` with everything that `options` ask for, or nothing.

    For paths nobody hostile can change: a bundle's rootfs; otherwise `mount_at`.
    """
    options = _complete(fstype, options)
    _attach(source, target, fstype, options)
    try:
        configure(target, options)
    except OSError:
        with suppress(OSError):
            umount(target, MNT_DETACH)
        raise


def mount_at(
    root: int,
    destination: str,
    source: str | None,
    fstype: str,
    options: MountOptions,
    *,
    user_namespace: int | None = None,
    owner: Owner | None = None,
) -> None:
    """Mount on the path `destination` inside the directory `root` (an O_PATH descriptor will do).

    Symlinks on the way are an image's, so they are followed as if `root` was the root already.
    What is missing is created, for `owner`: a directory, or an empty file for a bind of something
    else. A bind's ids are mapped as by a user namespace where the options ask for it.
    Needs /proc. Raises OSError with the destination as its filename.
    """
    try:
        _mount_at(root, destination, source, fstype, options, user_namespace, owner)
    except OSError as e:
        if e.filename == destination:
            raise
        ours = e.filename is None or str(e.filename).startswith(magic(""))
        what = e.strerror if ours else f"{e.strerror} ({e.filename})"
        raise OSError(e.errno, what, destination) from e


def _mount_at(
    root: int,
    destination: str,
    source: str | None,
    fstype: str,
    options: MountOptions,
    user_namespace: int | None,
    owner: Owner | None,
) -> None:
    options = _complete(fstype, options)
    bound = os.stat(source) if source is not None and options.flags & MS_BIND else None
    below, existed = _place(root, destination, fstype, bound, owner)
    try:
        _guard_proc(root, below, destination, fstype, source if bound else None)
        if fstype == "tmpfs" and existed and "mode=" not in options.data:
            # As runc: /tmp stays for everybody.
            mode = f"mode={stat.S_IMODE(os.fstat(below).st_mode):o}"
            options = options._replace(data=",".join(filter(None, (mode, options.data))))
        writable = options
        if source and bound and options.id_map:
            if user_namespace is None:
                raise OSError(errno.EINVAL, f"{options.id_map}: without mappings", destination)
            bind_mapped(
                source,
                magic(below),
                user_namespace,
                recursive=bool(options.flags & MS_REC),
                map_all=options.id_map == "ridmap",
            )
        else:
            if options.copy_up:
                writable = options._replace(flags=options.flags & ~MS_RDONLY)
            _attach(source, magic(below), fstype, writable)
        # The descriptor is of what was there before; flags are for what is there now.
        above = reopen_mounted(root, destination, below, bound)
        try:
            if options.copy_up:
                _copy_up(below, above)
            configure(magic(above), options)
            if writable != options:
                seal(above)
        except OSError:
            with suppress(OSError):
                umount(magic(above), MNT_DETACH)
            raise
        finally:
            os.close(above)
    finally:
        os.close(below)


def seal(fd: int) -> None:
    """Make the mount that `fd` is on the root of read-only, with its other flags as they are."""
    flags = flags_of(magic(fd)) | MS_RDONLY
    mount(None, magic(fd), None, MS_REMOUNT | MS_BIND | flags)


def _copy_up(below: int, above: int) -> None:
    fds = [os.open(magic(fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for fd in (below, above)]
    try:
        copy_up.copy(*fds)
    finally:
        for fd in fds:
            os.close(fd)


def _place(
    root: int, destination: str, fstype: str, bound: os.stat_result | None, owner: Owner | None
) -> tuple[int, bool]:
    """Open the mount point, and say whether it was there."""
    is_dir = bound is None or stat.S_ISDIR(bound.st_mode)
    # On these, everything relies on being what and where they claim: no symlinks at all.
    resolve = RESOLVE_NO_SYMLINKS if fstype in ("proc", "sysfs") else 0
    try:
        below, existed = open_inside(root, destination.lstrip("/") or ".", resolve=resolve), True
    except FileNotFoundError:
        below, existed = create_inside(root, destination, is_dir=is_dir, owner=owner), False
    except OSError as e:
        if e.errno == errno.ELOOP and resolve:
            what = f"{fstype} is not mounted through a symlink"
            raise OSError(e.errno, what, destination) from None
        raise
    same = os.path.samestat(os.fstat(below), os.fstat(root))
    if same and mount_id(below) == mount_id(root):
        os.close(below)
        raise OSError(errno.EINVAL, "destination is the root", destination)
    return below, existed


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


def bind_mapped(
    source: str, target: str, user_namespace: int, *, recursive: bool, map_all: bool
) -> None:
    """Bind with ids mapped as in a user namespace; what is below only if `map_all` (Linux 5.12).

    A copy of the mount is mapped while nobody sees it, then moved to its place. Raises OSError:
    EINVAL where the filesystem does not map ids.
    """
    tree = copy_tree(source, recursive=recursive)
    try:
        attributes = _MOUNT_ATTR.pack(_ATTR_IDMAP, 0, 0, user_namespace)
        flags = AT_EMPTY_PATH | (_AT_RECURSIVE if map_all else 0)
        number, size = NUMBERS["mount_setattr"], len(attributes)
        if _mount_setattr(number, tree, b"", flags, attributes, size) < 0:
            fail("mount_setattr, to map ids", source)
        place_tree(tree, target)
    finally:
        os.close(tree)


def copy_tree(source: str, *, recursive: bool = True) -> int:
    """Copy the mount at `source`, and what is below it; nobody sees the copy, a descriptor, yet.

    Raises OSError (open_tree(2)).
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    tree: int = _open_tree(NUMBERS["open_tree"], _AT_FDCWD, os.fsencode(source), flags)
    if tree < 0:
        fail("open_tree", source)
    return tree


def place_tree(tree: int, target: str) -> None:
    """Mount what `copy_tree` has returned, here or in another mount namespace, on `target`.

    The descriptor stays open. Raises OSError (move_mount(2)).
    """
    flags = _MOVE_FROM_DESCRIPTOR | _MOVE_TO_MAGIC
    path = os.fsencode(target)
    if _move_mount(NUMBERS["move_mount"], tree, b"", _AT_FDCWD, path, flags) < 0:
        fail("move_mount", target)


def configure(target: str, options: MountOptions) -> None:
    """Flags of a bind, propagation and recursive attributes, for the mount at `target`."""
    if options.flags & MS_BIND and (options.flags | options.clear) & _PER_MOUNT:
        has = flags_of(target)
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


def flags_of(target: str | int) -> int:
    """The MS_* of the mount at `target`, a path or a descriptor."""
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


def _guard_proc(root: int, below: int, destination: str, fstype: str, bound: str | None) -> None:
    """Refuse to cover a part of a procfs: what is mounted there has evaded labels and masks."""
    if not is_procfs(below):
        return
    inside = describe(below).removeprefix(describe(root))
    if inside in _ON_PROC and bound:
        return
    if inside == "/proc":
        if fstype == "proc":
            return
        if bound is not None:
            source = os.open(bound, os.O_PATH | os.O_CLOEXEC)
            try:
                if is_procfs(source):
                    return
            finally:
                os.close(source)
    raise OSError(errno.EPERM, f"nothing may be mounted in /proc ({inside})", destination)
