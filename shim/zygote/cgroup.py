"""A cgroup for the zygote and the shims that it forks. Runs in: zygote.

A zygote would live in the cgroup of whoever asked for a shim first: an administrator's session, a
job, a service. When that ends, its cgroup is emptied, and with it would go all pods of the node. So
a zygote moves before its first fork. Its shims stay there with it: where containerd leaves them,
too, in the cgroup of whoever forked them, unless the runtime's options name another (`ShimCgroup`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from shim.guest.placement import systemd_runs
from shim.linux.cgroups import Cgroup, Hierarchy, hierarchies
from shim.linux.cgroups.trees import own
from shim.linux.systemd.manager import Systemd
from shim.linux.systemd.scope import Scope, scope_properties

PATH: Final = "/pywasm"
"""Where systemd does not run, and in hierarchies of v1 that it does not use. It stays."""

_SLICE: Final = "system.slice"
_NAMED: Final = "name=systemd"
_NO_LIMIT: Final = 2**64 - 1
_PATIENCE: Final = 2.0  # seconds: a container is waiting


def enter() -> None:
    """Move this process there. Raises OSError, and then it may be there in some hierarchies only.

    Blocks, on cgroup v1 for one grace period of the kernel, for systemd for some milliseconds.
    """
    systemd, here = systemd_runs(), own()
    ours = [
        tree
        for tree in hierarchies()
        # The root does not end; and all shims in one would be one of many who want a processor.
        if here.get(tree.controllers) != "/" and not (systemd and _is_systemds(tree))
    ]
    if ours:
        cgroup = Cgroup.for_path(PATH, ours)
        cgroup.create()
        cgroup.attach()
    if systemd:
        _enter_scope()


def remove() -> None:
    """Take the one that stays away, when no zygote and no shim is left."""
    with suppress(OSError):  # of another installation, or not to be had here
        Cgroup.for_path(PATH).delete(patience=_PATIENCE)  # a zygote may have to end yet


def _is_systemds(tree: Hierarchy) -> bool:
    """Whether only systemd makes cgroups there; the controllers of v1 it shares."""
    return tree.is_v2 or _NAMED in tree.controllers


def _enter_scope() -> None:
    # Others may be alive, or their shims: of an earlier zygote, or another build's.
    scope = Scope(_SLICE, f"pywasm-{os.urandom(4).hex()}.scope")
    properties = scope_properties([0], slice=scope.slice, description="pywasm: zygote and shims")
    # There is a limit for whoever names none. Containers have their own.
    properties.append(("TasksMax", ("t", _NO_LIMIT)))
    with Systemd(timeout=_PATIENCE) as systemd:
        systemd.start(scope, properties)
