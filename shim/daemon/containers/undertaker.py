"""The last reference to a container's rootfs, dropped where nobody waits for it. Runs in: shim.

Unmounting an overlay makes the kernel sync the filesystem of its upper directory. A guest whose
mount namespace held the last reference would do that while it exits, 5 ms here and longer on a disk
with more to write, and the news of its exit would wait for it. The shim therefore keeps a reference
and drops it after Delete: with its own end, if that comes soon, and otherwise in a child.

The rootfs of a native container is mounted on the host, and unmounted there at Delete: the same.

Only for overlay: a filesystem on a block device has to be gone when containerd removes the device.
"""

import asyncio
import os

from shim.linux import clone, files, mounts

_PATIENCE = 0.5
"""Seconds for Shutdown to follow a Delete: then no child has to be made."""

_held: list[int] = []


def hold(pid: int) -> int:
    """Return a reference to the root of a process."""
    return os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)


def umount(path: str) -> None:
    """Unmount what is mounted on `path`, and hold it for a while. Raises OSError."""
    try:
        rootfs = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # then nothing is mounted there
    try:
        mounts.umount_all(path)
    finally:
        bury(rootfs)


def bury(rootfs: int) -> None:
    """Drop the reference `rootfs` soon, without blocking now."""
    if not _held:
        asyncio.get_running_loop().call_later(_PATIENCE, _bury_held)
    _held.append(rootfs)


def _bury_held() -> None:
    loop = asyncio.get_running_loop()
    # The child's references have to be the last ones, so it waits until ours are gone.
    wait, go = os.pipe()

    def entry() -> None:
        files.keep_only([wait, *_held])
        os.read(wait, 1)

    def reap() -> None:
        loop.remove_reader(child.pidfd)
        clone.wait(child.pidfd)
        os.close(child.pidfd)

    child = clone.clone(entry)
    loop.add_reader(child.pidfd, reap)
    for fd in (wait, *_held, go):
        os.close(fd)
    _held.clear()
