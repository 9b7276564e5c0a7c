"""runtime-spec documents for containers that the tests create through the API: library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NAMESPACES = ("mount", "pid", "ipc", "uts", "network")


def minimal(*args: str) -> dict[str, Any]:
    """The least that makes a container: a root and a process."""
    return {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": list(args), "cwd": "/"},
    }


def usual(
    *args: str,
    env: Sequence[str] = (),
    user: tuple[int, int] = (0, 0),
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a client such as ctr writes, without the parts that no test here looks at.

    `Containers.new` adds the cgroup path, which depends on the container's name.
    """
    spec = minimal(*args)
    spec["process"].update(
        env=["PATH=/usr/bin:/bin", *env],
        user={"uid": user[0], "gid": user[1]},
        noNewPrivileges=True,
        capabilities={},
    )
    spec["mounts"] = [{"destination": "/proc", "type": "proc", "source": "proc", "options": []}]
    spec["annotations"] = dict(annotations or {})
    spec["linux"] = {
        "namespaces": [{"type": kind} for kind in NAMESPACES],
        "resources": {},
    }
    return spec
