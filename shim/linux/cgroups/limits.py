"""What `linux.resources` of the runtime-spec asks for, brought into force (library).

A number of 0 is the same as none where the kernel knows no limit of 0, as in runc.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Final

from oci.linux import Resources
from shim.linux.cgroups import limits_v1, limits_v2
from shim.linux.cgroups.device_filter import attach_device_filter
from shim.linux.cgroups.device_rules import container_rules
from shim.linux.cgroups.files import Directory, read, refusal, write
from shim.linux.cgroups.trees import Hierarchy, v2_controllers

_V2_NAMES: Final = {"blkio": "io"}


def apply(
    directories: Iterable[tuple[Hierarchy, str]], resources: Resources, *, update: bool
) -> None:
    """Write everything that is given in `resources` to the files of a cgroup.

    An update leaves devices as they are, as runc does: to change them under a process that runs
    would take away everything for a moment. Raises OSError; what came before stays in force.
    """
    v1 = {name: path for tree, path in directories for name in tree.controllers}
    v2 = next(((tree, path) for tree, path in directories if tree.is_v2), None)
    with ExitStack() as stack:

        def directory(find: Callable[[], str]) -> Directory:
            return stack.enter_context(Directory(find))

        if v2 is not None and not v1:
            _unified(directory(lambda: v2[1]), resources, update=update)
            return
        for file in resources.unified:
            raise refusal(errno.EOPNOTSUPP, "unified", f"{file!r}: this machine has cgroup v1")
        for name, set_in_v1 in limits_v1.CONTROLLERS.items():
            in_v2 = _V2_NAMES.get(name, name)
            if name in v1:
                set_in_v1(directory(partial(v1.__getitem__, name)), resources)
            elif v2 is not None and in_v2 in v2_controllers(v2[0].mount):
                here = directory(partial(_switch_on, *v2, in_v2))
                limits_v2.CONTROLLERS[in_v2](here, resources)
            else:
                set_in_v1(directory(partial(_missing, name)), resources)
        if update:
            return
        rules = container_rules(resources.devices)
        if "devices" in v1 or v2 is None:
            limits_v1.devices(directory(lambda: v1.get("devices") or _missing("devices")), rules)
        else:
            attach_device_filter(directory(lambda: v2[1]), rules)


def _unified(directory: Directory, resources: Resources, *, update: bool) -> None:
    limits_v2.refuse_v1_only(resources)
    for set_in_v2 in limits_v2.CONTROLLERS.values():
        set_in_v2(directory, resources)
    if not update:
        attach_device_filter(directory, container_rules(resources.devices))
    limits_v2.unified(directory, resources)


def _missing(controller: str) -> str:
    raise OSError(errno.ENOENT, f"no cgroup hierarchy has the {controller} controller")


def _switch_on(tree: Hierarchy, path: str, controller: str) -> str:
    """Have a v2 controller beside v1, where `create` has switched on none; returns `path`."""
    parent = tree.mount
    for name in path[len(tree.mount) + 1 :].split("/"):
        control = f"{parent}/cgroup.subtree_control"
        if controller not in read(control).split():
            write(control, f"+{controller}")
        parent = f"{parent}/{name}"
    return path
