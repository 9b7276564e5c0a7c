"""The guest's filesystem: the rootfs mounts of the request, the spec's mounts, and nothing else.

Runs in: guest.

All of it happens in the guest's own mount namespace. Nothing is mounted on the host, so nothing can
be left there.
"""

import os
from collections.abc import Collection, Iterable, Sequence

from oci.runtime import Mount, Spec
from shim.guest import workdir
from shim.guest.annotations import KERNEL_FILESYSTEMS
from shim.guest.control import Mount as RootfsMount
from shim.linux import devices, mapped_rootfs, masks, mounts, spec_mounts, user_namespace


def visible_mounts(spec: Spec, kernel_filesystems: Collection[str]) -> list[Mount]:
    """Return the spec's mounts without those of the kernel's filesystems that are not asked for."""
    hidden = KERNEL_FILESYSTEMS.difference(kernel_filesystems)
    return [mount for mount in spec.mounts if mount.type not in hidden]


def build(path: str, spec: Spec, visible: Sequence[Mount]) -> int:
    """Mount all but the image, which is at `path`; returns the directory for `enter`.

    Raises OSError naming the mount that failed, SpecError.
    """
    # pivot_root wants a mount point, also where the bundle brings a plain directory.
    mounts.mount(path, path, None, mounts.MS_BIND | mounts.MS_REC)
    root = open_root(path)
    linux, ids = spec.linux, user_namespace.ids(spec.linux)
    for entry in visible:
        spec_mounts.mount(root, entry, linux)
    if any(entry.destination.rstrip("/") == "/dev" for entry in visible):
        # An image's own /dev is left as it is: nobody asked for another.
        devices.create(root, linux.devices, ids)
        devices.create_links(root, ids)
    workdir.make(spec.process, root, ids.root())
    # Only now: mount points that an image does not have were to be made.
    spec_mounts.seal(root, visible)
    masks.mask(root, linux.masked_paths, linux.mount_label)
    masks.make_readonly(root, linux.readonly_paths)
    if spec.root.readonly:
        mounts.seal(root)
    return root


def mount_image(rootfs_mounts: Iterable[RootfsMount], path: str) -> None:
    """Mount an image on a directory that nobody hostile can change. Raises OSError, SpecError."""
    for mount in rootfs_mounts:
        if mount.target:
            # Inside what is mounted already, which may be an image with symlinks of its own.
            root = open_root(path)
            options = mounts.parse_options(mount.options)
            mounts.mount_at(root, mount.target, mount.source, mount.type, options)
            os.close(root)
        else:
            mapped_rootfs.mount(mount.source, path, mount.type, mount.options)


def enter(root: int, propagation: str) -> None:
    """Make the directory `build` returned this process's root, and let go of the host's."""
    mounts.enter_root(root)
    mounts.share_root(propagation)
    os.close(root)


def open_root(path: str) -> int:
    """Open what is to be the root, to look up paths inside. Raises OSError."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
