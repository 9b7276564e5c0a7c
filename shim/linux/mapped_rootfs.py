"""A rootfs whose ids are mapped for a user namespace (library).

containerd's snapshotters say so by options that no filesystem has: `uidmap` and `gidmap`, each a
list of `container-id:host-id:size`. An overlay takes its lower layers mapped; the upper one has the
right owner already.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from oci.decoding import SpecError
from oci.linux import IDMapping
from shim.linux import mounts, user_namespace
from shim.linux.mounts import MountOptions, parse_options

_SCAFFOLD: Final = "mode=700,size=1m"


def mount(source: str | None, target: str, fstype: str, options: Sequence[str]) -> None:
    """Mount one of the mounts of a rootfs, with all that its options ask for.

    As `mounts.mount_all`, for a path that nobody hostile can change. Raises SpecError for a mapping
    that is none, OSError.
    """
    mappings = {
        name: _parse(option, value)
        for option in options
        for name, equals, value in (option.partition("="),)
        if equals and name in ("uidmap", "gidmap")
    }
    parsed = parse_options(o for o in options if not o.startswith(("uidmap=", "gidmap=")))
    if not mappings:
        mounts.mount_all(source, target, fstype, parsed)
        return
    if len(mappings) < 2:
        raise SpecError(f"rootfs: {target}: expected both uidmap and gidmap")
    namespace = user_namespace.create(mappings["uidmap"], mappings["gidmap"])
    try:
        if fstype == "overlay":
            _mount_overlay(source, target, parsed, namespace)
        elif source and (parsed.flags & mounts.MS_BIND or fstype in ("bind", "rbind")):
            whole = bool(parsed.flags & mounts.MS_REC) or fstype == "rbind"
            mounts.bind_mapped(source, target, namespace, recursive=whole, map_all=whole)
            mounts.configure(target, parsed._replace(flags=parsed.flags | mounts.MS_BIND))
        else:
            raise SpecError(f"rootfs: {target}: a {fstype} is not mounted with ids mapped")
    finally:
        os.close(namespace)


def _parse(option: str, value: str) -> list[IDMapping]:
    mappings = []
    for part in value.split(","):
        numbers = part.split(":")
        if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
            raise SpecError(f"rootfs: {option}: expected container-id:host-id:size")
        inner, outer, size = map(int, numbers)
        try:
            mappings.append(IDMapping(container_id=inner, host_id=outer, size=size))
        except ValueError as error:
            raise SpecError(f"rootfs: {option}: {error}") from None
    return mappings


def _mount_overlay(source: str | None, target: str, options: MountOptions, namespace: int) -> None:
    """Mount the layers, mapped, in a tmpfs at `target`, and the overlay over it.

    They have to be somewhere, and nobody else gets to see them there.
    """
    parts = options.data.split(",")
    lower = next((part for part in parts if part.startswith("lowerdir=")), "lowerdir=")
    layers = lower.removeprefix("lowerdir=").split(":")
    mounts.mount("tmpfs", target, "tmpfs", 0, _SCAFFOLD)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(target)
        for number, layer in enumerate(layers):
            os.mkdir(str(number))
            mounts.bind_mapped(layer, str(number), namespace, recursive=False, map_all=False)
        names = ":".join(map(str, range(len(layers))))
        data = ",".join("lowerdir=" + names if part is lower else part for part in parts)
        mounts.mount(source, target, "overlay", options.flags, data)
        for propagation in options.propagation:
            mounts.mount(None, target, None, propagation)
    except OSError:
        with suppress(OSError):
            mounts.umount(target, mounts.MNT_DETACH)
        raise
    finally:
        os.fchdir(here)
        os.close(here)
