"""The sysctls of a container: those that belong to its namespaces, and no others (library).

See sysctl(8). Most of /proc/sys is the machine's; what a namespace has of its own is a short list,
and where that namespace is shared with the host, so is the setting.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Final

from oci.decoding import SpecError
from oci.linux import Namespace
from shim.linux import procfs

_IPC: Final = frozenset(
    f"kernel/{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni")
) | {"kernel/shm_rmid_forced"}
_NSFS: Final = {"ipc": "ipc", "network": "net", "uts": "uts", "user": "user"}


def check(sysctls: Mapping[str, str], namespaces: Sequence[Namespace]) -> None:
    """Raise SpecError for a sysctl of a namespace that is not the container's own.

    To be called while this process is in the host's namespaces: a container whose namespace is
    given by a path has its own, unless that is the one of this process.
    """
    own: dict[str, bool] = {}
    for name in sysctls:
        path = _path(name)
        if path == "kernel/hostname":
            raise SpecError(f"{_field(name)}: there is the field `hostname` for it")
        needed = _namespace(path)
        if needed is None:
            raise SpecError(f"{_field(name)}: belongs to no namespace, it would be the host's")
        if needed not in own:
            own[needed] = _is_own(needed, namespaces)
        if not own[needed]:
            raise SpecError(f"{_field(name)}: without a {needed} namespace it would be the host's")


def write(sysctls: Mapping[str, str], proc: int) -> None:
    """Write them, in the namespaces of this process. `proc` is from `procfs.open_proc`.

    Raises OSError with the sysctl's field as its filename.
    """
    for name, value in sysctls.items():
        try:
            procfs.write(proc, f"sys/{_path(name)}", value)
        except OSError as e:
            why = "unknown to the kernel" if e.errno == errno.ENOENT else e.strerror
            raise OSError(e.errno, why, _field(name)) from None


def _field(name: str) -> str:
    return f"linux.sysctl[{name!r}]"


def _path(name: str) -> str:
    """The file below /proc/sys; where the first separator is a slash, dots are part of names."""
    slash, dot = name.find("/"), name.find(".")
    path = name
    if slash < 0 or 0 <= dot < slash:
        path = name.translate({ord("."): "/", ord("/"): "."})
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise SpecError(f"{_field(name)}: not the name of a sysctl")
    return path


def _namespace(path: str) -> str | None:
    if path in _IPC or path.startswith("fs/mqueue/"):
        return "ipc"
    if path == "kernel/domainname":
        return "uts"
    area, _, _ = path.partition("/")
    return {"net": "network", "user": "user"}.get(area)


def _is_own(kind: str, namespaces: Sequence[Namespace]) -> bool:
    for namespace in namespaces:
        if namespace.type == kind:
            if not namespace.path:
                return True
            ours = os.stat(f"/proc/self/ns/{_NSFS[kind]}")
            return not os.path.samestat(os.stat(namespace.path), ours)
    return False
