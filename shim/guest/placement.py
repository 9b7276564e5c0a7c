"""Where a container is in the cgroup trees, and who puts it there. Runs in: shim and guest.

`linux.cgroupsPath` decides: a path is made by us in the cgroup filesystem; `slice:prefix:name` is a
scope of systemd's, to which it belongs on a machine that systemd runs, and a path like any other
where it does not. Clients write the one or the other with the `SystemdCgroup` of their options.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from oci.linux import Resources
from shim.linux.cgroups import Cgroup
from shim.linux.systemd.manager import Systemd
from shim.linux.systemd.scope import Scope, limit_properties, scope_properties

_BOOTED: Final = "/run/systemd/system"  # sd_booted(3)


class Placement(NamedTuple):
    """A container's cgroup, and its scope if it is systemd's."""

    cgroup: Cgroup
    scope: Scope | None

    @classmethod
    def for_path(cls, cgroups_path: str) -> Placement:
        """The place that a `linux.cgroupsPath` names. Raises OSError as `Cgroup.for_path`."""
        if is_systemd(cgroups_path):
            scope = Scope.for_path(cgroups_path)
            return cls(Cgroup.for_path("/" + scope.path.lstrip("/")), scope)
        return cls(Cgroup.for_path(cgroups_path), None)

    @classmethod
    def of_process(cls, pid: int, cgroups_path: str) -> Placement:
        """The place where a runtime has put a process, because of a `linux.cgroupsPath`.

        Raises OSError as `Cgroup.of_process`.
        """
        scope = Scope.for_path(cgroups_path) if is_systemd(cgroups_path) else None
        return cls(Cgroup.of_process(pid), scope)

    @property
    def born_in(self) -> bool:
        """Whether a process is cloned into it, instead of moving there."""
        return self.scope is None and self.cgroup.unified

    def enter(self, resources: Resources, description: str) -> None:
        """Move this process there, unless it was born there, and bring the limits into force.

        Raises OSError that names what was refused.
        """
        if self.scope is not None:
            with _systemd(self.scope) as systemd:
                properties = scope_properties([0], slice=self.scope.slice, description=description)
                properties += self._limit_properties(systemd, resources)
                systemd.start(self.scope, properties)
        if not self.born_in:
            self.cgroup.create()
            # On cgroup v1 the kernel makes the caller wait for a grace period.
            self.cgroup.attach()
        self.cgroup.limit(resources)

    def vacate(self) -> None:
        """Let systemd forget a scope that has no process any more, so that it can be made anew.

        Raises OSError.
        """
        if self.scope is not None:
            with _systemd(self.scope) as systemd:
                systemd.stop(self.scope)

    def update(self, resources: Resources) -> None:
        """Change the limits that are given. Raises OSError that names what was refused."""
        if self.scope is not None:
            with _systemd(self.scope) as systemd:
                properties = self._limit_properties(systemd, resources, update=True)
                systemd.update(self.scope, properties)
        self.cgroup.limit(resources, update=True)

    def _limit_properties(
        self, systemd: Systemd, resources: Resources, *, update: bool = False
    ) -> list[tuple[str, tuple[str, object]]]:
        unified, version = self.cgroup.unified, systemd.version()
        return limit_properties(resources, unified=unified, version=version, update=update)


def _systemd(scope: Scope) -> Systemd:
    try:
        return Systemd()
    except OSError as error:
        name = f"linux.cgroupsPath: {scope.unit}"
        raise OSError(error.errno, error.strerror, name) from None


def is_systemd(cgroups_path: str) -> bool:
    """Whether this names a scope, and there is systemd to make it."""
    return names_scope(cgroups_path) and systemd_runs()


def names_scope(cgroups_path: str) -> bool:
    """Whether this is a `slice:prefix:name`, and no path."""
    return "/" not in cgroups_path and cgroups_path.count(":") == 2


def systemd_runs() -> bool:
    """Whether systemd runs this machine."""
    return os.path.isdir(_BOOTED)
