"""A container's image, where it is the shim that mounts it. Runs in: shim.

A guest mounts its own, but not from a device: it may be under the container's device rules already.
And to mount a filesystem of a device may take its time, for which the loop does not wait.
"""

import os
from collections.abc import Sequence

from shim.daemon.containers.apart import apart
from shim.guest import control, rootfs
from shim.linux import mounts

ROOTFS = "rootfs"
"""In the bundle, where containerd's specs have the image."""

_NO_DEVICE = {"overlay", "bind"}


def from_device(layers: Sequence[control.Mount]) -> bool:
    """Whether to mount these may take a device, and time."""
    return any(layer.type not in _NO_DEVICE or layer.target for layer in layers)


async def mount(layers: Sequence[control.Mount], tree: int, target: str) -> None:
    """Mount an image on `target`; or place `tree`, where that is not -1 but such an image.

    Raises OSError, SpecError.
    """
    os.makedirs(target, 0o711, exist_ok=True)
    if tree >= 0:
        mounts.place_tree(tree, target)
    elif from_device(layers):
        await apart(lambda: rootfs.mount_image(layers, target))
    else:
        rootfs.mount_image(layers, target)


async def detached(layers: Sequence[control.Mount], target: str) -> int:
    """Mount an image, on `target` first and then nowhere; returns it as `mounts.copy_tree`.

    Raises OSError, SpecError.
    """
    try:
        await mount(layers, -1, target)
        return mounts.copy_tree(target)
    finally:
        mounts.umount_all(target)
