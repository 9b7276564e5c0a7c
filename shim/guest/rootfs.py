"""The guest's filesystem: the rootfs mounts of the request, the spec's mounts, and nothing else.

Runs in: guest.

All of it happens in the guest's own mount namespace. Nothing is mounted on the host, so nothing can
be left there.
"""

import os
from collections.abc import Collection, Iterable

from oci.runtime import Mount, Spec
from shim.guest.annotations import KERNEL_FILESYSTEMS
from shim.guest.control import Mount as RootfsMount
from shim.linux import mounts


def isolate() -> None:
    """Hide this process's mounts from the host. The host's unmounts still arrive here."""
    mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_SLAVE)


def build(
    bundle: str,
    spec: Spec,
    rootfs_mounts: Iterable[RootfsMount],
    kernel_filesystems: Collection[str] = (),
) -> list[Mount]:
    """Mount everything and make the rootfs this process's root.

    Of the kernel's filesystems only those of the types given are mounted. Returns the spec's mounts
    that the guest sees. Raises OSError naming the mount that failed.
    """
    path = os.path.join(bundle, spec.root.path)
    for mount in rootfs_mounts:
        options = mounts.parse_options(mount.options)
        if mount.target:
            # Inside what is mounted already, which may be an image with symlinks of its own.
            root = _open(path)
            mounts.mount_at(root, mount.target, mount.source, mount.type, options)
            os.close(root)
        else:
            mounts.mount_all(mount.source, path, mount.type, options)
    # pivot_root wants a mount point, also where the bundle brings a plain directory.
    mounts.mount(path, path, None, mounts.MS_BIND | mounts.MS_REC)
    root = _open(path)
    hidden = KERNEL_FILESYSTEMS.difference(kernel_filesystems)
    visible = [mount for mount in spec.mounts if mount.type not in hidden]
    for entry in visible:
        mounts.mount_at(
            root,
            entry.destination,
            entry.source or None,
            entry.type,
            mounts.parse_options(entry.options),
        )
    os.close(root)
    if spec.root.readonly:
        # Only now: mount points that an image does not have were to be made.
        mounts.mount_all(path, path, "bind", mounts.parse_options(["rbind", "ro"]))
    root = _open(path)
    mounts.enter_root(root)
    os.close(root)
    return visible


def _open(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
