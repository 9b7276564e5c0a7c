"""The mounts of a runtime-spec, in order, inside a root that may be hostile (library).

What a filesystem's type alone implies is here; how a mount is made is in `mounts`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress

from oci.decoding import SpecError
from oci.linux import Linux
from oci.runtime import Mount
from shim.linux import mounts, security_labels, user_namespace
from shim.linux.cgroups.trees import hierarchies, own_directory
from shim.linux.cgroups.trees import own as own_cgroups
from shim.linux.inside import open_inside, split_inside
from shim.linux.user_namespace import Ids

_CGROUP_FLAGS = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC


def mount(root: int, entry: Mount, linux: Linux) -> None:
    """Mount one entry of `mounts`. A read-only tmpfs is writable until `seal`.

    Needs the host's /proc and /sys, and the privileges of the host's root. Raises SpecError and
    OSError naming the destination.
    """
    options = mounts.parse_options(entry.options)
    ids = user_namespace.ids(linux)
    if entry.type in ("cgroup", "cgroup2"):
        _mount_cgroup(root, entry, options, linux, ids)
        return
    if _is_bind(entry, options):
        if options.data:
            raise SpecError(f"mounts: {entry.destination}: {options.data}: not of a bind mount")
    else:
        if options.id_map or entry.uid_mappings or entry.gid_mappings:
            raise SpecError(f"mounts: {entry.destination}: only bind mounts map ids")
        data = ids.mount_data(entry.type, options.data)
        data = security_labels.mount_data(entry.type, data, linux.mount_label)
        options = options._replace(data=data)
    if _sealed_later(entry):
        options = options._replace(flags=options.flags & ~mounts.MS_RDONLY)
    namespace = _mapping(entry, options, ids)
    if namespace is not None and not options.id_map:
        options = options._replace(id_map="idmap")
    try:
        mounts.mount_at(
            root,
            entry.destination,
            entry.source or None,
            entry.type,
            options,
            user_namespace=namespace,
            owner=ids.root(),
        )
    finally:
        if namespace is not None:
            os.close(namespace)


def seal(root: int, entries: Sequence[Mount]) -> None:
    """Make each tmpfs read-only that asks for it, after all mount points in them were made."""
    for entry in entries:
        if _sealed_later(entry):
            fd = open_inside(root, entry.destination)
            try:
                mounts.seal(fd)
            finally:
                os.close(fd)


def _is_bind(entry: Mount, options: mounts.MountOptions) -> bool:
    return entry.type in ("bind", "rbind") or bool(options.flags & mounts.MS_BIND)


def _sealed_later(entry: Mount) -> bool:
    options = mounts.parse_options(entry.options)
    return entry.type == "tmpfs" and bool(options.flags & mounts.MS_RDONLY)


def _mapping(entry: Mount, options: mounts.MountOptions, ids: Ids) -> int | None:
    """A user namespace with the mount's ids, or those of the container; None without any."""
    if not (options.id_map or entry.uid_mappings or entry.gid_mappings):
        return None
    own = entry.uid_mappings or entry.gid_mappings
    uids, gids = (entry.uid_mappings, entry.gid_mappings) if own else ids
    if not (uids and gids):
        raise SpecError(f"mounts: {entry.destination}: expected both uid and gid mappings")
    return user_namespace.create(uids, gids)


def _mount_cgroup(
    root: int, entry: Mount, options: mounts.MountOptions, linux: Linux, ids: Ids
) -> None:
    """What `cgroup` is on this machine: the v2 hierarchy, or a directory of those of v1.

    With a cgroup namespace they begin at the container's own cgroup by themselves; without, on v1,
    only that is bound.
    """
    destination, owner = entry.destination, ids.root()
    trees = [tree for tree in hierarchies() if not tree.is_v2 and entry.type == "cgroup"]
    has_namespace = any(namespace.type == "cgroup" for namespace in linux.namespaces)
    if not trees and not has_namespace:
        # Not a mount of its own: in the first cgroup namespace its options are those of the whole
        # machine, which would lose nsdelegate by it.
        bind = options._replace(flags=options.flags | mounts.MS_BIND)
        own = own_cgroups()
        for tree in hierarchies():
            if tree.is_v2:
                source = own_directory(tree, own)
                mounts.mount_at(root, destination, source, "bind", bind, owner=owner)
        return
    if not trees:
        try:
            mounts.mount_at(root, destination, "cgroup", "cgroup2", options, owner=owner)
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.EBUSY):
                raise
            bind = options._replace(flags=options.flags | mounts.MS_BIND)
            for tree in hierarchies():
                mounts.mount_at(root, destination, tree.mount, "bind", bind, owner=owner)
        return
    data = ids.mount_data("tmpfs", "mode=755,size=64k")
    top = mounts.MountOptions(_CGROUP_FLAGS, 0, options.propagation, data=data)
    mounts.mount_at(root, destination, "cgroup", "tmpfs", top, owner=owner)
    own = own_cgroups()
    for tree in trees:
        name = os.path.basename(tree.mount)
        place = f"{destination}/{name}"
        flags = _CGROUP_FLAGS | options.flags & mounts.MS_RDONLY
        if has_namespace:
            controllers = ",".join(sorted(tree.controllers))
            data = f"none,{controllers}" if controllers.startswith("name=") else controllers
            each = mounts.MountOptions(flags, data=data)
            mounts.mount_at(root, place, "cgroup", "cgroup", each, owner=owner)
        else:
            each = mounts.MountOptions(flags | mounts.MS_BIND | mounts.MS_REC)
            mounts.mount_at(root, place, own_directory(tree, own), "bind", each, owner=owner)
        for controller in tree.controllers - {name}:
            if "=" not in controller:
                parent, link = split_inside(root, f"{destination}/{controller}")
                with suppress(FileExistsError):
                    os.symlink(name, link, dir_fd=parent)
                os.close(parent)
    if options.flags & mounts.MS_RDONLY:
        fd = open_inside(root, destination)
        try:
            mounts.seal(fd)
        finally:
            os.close(fd)
