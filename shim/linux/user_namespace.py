"""User namespaces: made with their mappings, entered last (library). See user_namespaces(7).

A process enters its user namespace when everything else is done. Until then it is the host's root:
it can mount the host's directories, make device nodes, raise limits, write sysctls, and needs
nobody's help with its mappings. Afterwards its capabilities reach no further than the ids that it
was given. The other namespaces stay the host's, so it is less than root even in its own: it cannot
mount in them, or configure their network. What such a process makes on a filesystem before, it has
to make in the host's ids; `Ids` translates.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from oci.decoding import SpecError
from oci.linux import NO_ID, IDMapping, Linux
from shim.linux import clone
from shim.linux.inside import Owner

_NS_GET_USERNS: Final = 0xB701
_WITH_OWNER: Final = frozenset({"tmpfs", "hugetlbfs", "ramfs"})
# Of a devpts the owner named would get every terminal, also one that another user opens.
_WITH_IDS: Final = _WITH_OWNER | {"proc", "devpts"}


class Ids(NamedTuple):
    """The ids of a container as the host's; without mappings they are the same."""

    uids: Sequence[IDMapping] = ()
    gids: Sequence[IDMapping] = ()

    def uid(self, uid: int) -> int:
        """The host's uid. Raises SpecError for one that is not mapped."""
        return _host(self.uids, uid, "uid")

    def gid(self, gid: int) -> int:
        """The host's gid. Raises SpecError for one that is not mapped."""
        return _host(self.gids, gid, "gid")

    def mount_data(self, fstype: str, data: str) -> str:
        """A filesystem's options, with the owner they name, or else root, as the host's."""
        if not (self.uids or self.gids) or fstype not in _WITH_IDS:
            return data
        options = []
        missing = {"uid": 0, "gid": 0} if fstype in _WITH_OWNER else {}
        for option in filter(None, data.split(",")):
            name, _, value = option.partition("=")
            if name in ("uid", "gid") and value.isdecimal():
                missing.pop(name, None)
                options.append(self._owner(name, int(value)))
            else:
                options.append(option)
        options += [self._owner(name, value) for name, value in missing.items()]
        return ",".join(options)

    def root(self) -> Owner | None:
        """The host's ids of the container's root; None where it is the host's root itself."""
        return Owner(self.uid(0), self.gid(0)) if self.uids or self.gids else None

    def _owner(self, name: str, number: int) -> str:
        return f"{name}={self.uid(number) if name == 'uid' else self.gid(number)}"


def _host(mappings: Iterable[IDMapping], number: int, kind: str) -> int:
    if not 0 <= number < NO_ID:  # chown(2) takes it for "as it is"
        raise SpecError(f"{kind} {number}: no id")
    if not mappings:
        return number
    for mapping in mappings:
        if 0 <= number - mapping.container_id < mapping.size:
            return mapping.host_id + number - mapping.container_id
    raise SpecError(f"linux.{kind}Mappings: {kind} {number} is not mapped")


def ids(linux: Linux) -> Ids:
    """The ids of a container, from its mappings."""
    return Ids(linux.uid_mappings, linux.gid_mappings)


def check(linux: Linux) -> None:
    """Raise SpecError unless mappings and the user namespace fit together."""
    namespaces = [namespace for namespace in linux.namespaces if namespace.type == "user"]
    mapped = bool(linux.uid_mappings), bool(linux.gid_mappings)
    if any(mapped) and not namespaces:
        raise SpecError("linux.uidMappings, gidMappings: there is no user namespace")
    if namespaces and not namespaces[0].path and not all(mapped):
        field = "gidMappings" if mapped[0] else "uidMappings"
        raise SpecError(f"linux.{field}: expected for a new user namespace")


def create(uids: Sequence[IDMapping], gids: Sequence[IDMapping]) -> int:
    """Make a user namespace with these mappings; a descriptor of it, close-on-exec.

    For `enter`, and for the mappings of a mount. Needs the host's /proc. Raises OSError naming the
    mapping that the kernel refuses.
    """
    # A namespace's mappings are written from outside, while somebody is in it. The child has
    # nothing else to do than to be there.
    child = clone.clone(signal.pause, clone.CLONE_NEWUSER)
    try:
        # Not `child.pid`: /proc may number processes for another PID namespace than ours.
        directory = f"/proc/{clone.pid_of(child.pidfd)}"
        write_mappings(directory, uids, gids)
        return os.open(f"{directory}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        clone.wait(child.pidfd)
        os.close(child.pidfd)


def write_mappings(directory: str, uids: Sequence[IDMapping], gids: Sequence[IDMapping]) -> None:
    """Write the mappings of a process's new user namespace; its /proc directory is given."""
    for name, mappings in (("uid", uids), ("gid", gids)):
        lines = "".join(f"{m.container_id} {m.host_id} {m.size}\n" for m in mappings)
        fd = os.open(f"{directory}/{name}_map", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, lines.encode())
        except OSError as e:
            what = f"{lines.strip()!r}: {e.strerror}"
            raise OSError(e.errno, what, f"linux.{name}Mappings") from None
        finally:
            os.close(fd)


def of_namespace(path: str) -> int:
    """Open the user namespace that another namespace belongs to. Raises OSError (ioctl_nsfs(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(fd, _NS_GET_USERNS)
    finally:
        os.close(fd)


def enter(fd: int) -> None:
    """Enter the user namespace of a descriptor, with all capabilities in it and none outside.

    The ids stay the host's, and are nobody's in there, until `credentials.set_user`. Raises
    OSError: EINVAL for the namespace that this process is in, EPERM for one that is not below it.
    """
    clone.setns(fd, clone.CLONE_NEWUSER)
