"""Who a process is and what it may do: user, capabilities, limits, names (library).

The order of some is the point. While it is still root, a process calls

    set_user(..., keep_capabilities=True)
    set_capabilities(...)
    no_new_privs()

which `become` does for a process of the runtime-spec.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import resource
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from oci.linux import NO_ID
from oci.runtime import Process
from shim.linux.libc import LIBC, NUMBERS, fail, system_call

CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""capabilities(7), in the order of the kernel's numbers."""
FILE_CAPABILITIES: Final = frozenset(
    ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID")
)
"""Those that override permissions of files."""
_NUMBER: Final = {name: number for number, name in enumerate(CAPABILITIES)}

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36

RLIMITS: Final = {
    name: int(getattr(resource, name))
    for name in dir(resource)
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
} | {"RLIMIT_LOCKS": 10}  # of no effect since Linux 2.6, and unknown to Python
"""getrlimit(2), with the kernel's numbers."""
_RLIM_INFINITY: Final = 2**63  # OCI writes the kernel's 2**64 - 1; from here on Python needs its -1
_UMASK: Final = 0o022
_NGROUPS_MAX: Final = 65536
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_HEADER: Final = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
# Effective, permitted, inheritable: of capabilities 0 to 31, then of 32 to 63.
_SETS: Final = struct.Struct("=6I")

_syscall = system_call(ctypes.c_char_p, ctypes.c_char_p)

_setfsuid = LIBC.setfsuid
_setfsuid.argtypes = (ctypes.c_uint,)
_setfsgid = LIBC.setfsgid
_setfsgid.argtypes = (ctypes.c_uint,)
_prctl = LIBC.prctl
_prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
_sethostname = LIBC.sethostname
_sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_setdomainname = LIBC.setdomainname
_setdomainname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)


class Identity(NamedTuple):
    """Who a process acts as for a while: ids of the host, and effective capabilities."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    capabilities: frozenset[str] = frozenset()


@contextmanager
def acting_as(identity: Identity) -> Iterator[None]:
    """Access files, and use capabilities, as somebody else in the block; 40 µs.

    For a process that is root and alone. Its user stays root's, so nobody else can signal or trace
    it meanwhile. Raises OSError (setfsuid(2), capset(2)).
    """
    groups, held = os.getgroups(), _held()
    try:
        os.setgroups(identity.groups)
        _set_filesystem_ids(identity.uid, identity.gid)
        # After the ids, a change of which also changes this set.
        _capset(held & _bits(identity.capabilities), held, 0)
        yield
    finally:
        _capset(held, held, 0)
        _set_filesystem_ids(0, 0)
        os.setgroups(groups)


def _set_filesystem_ids(uid: int, gid: int) -> None:
    for set_id, number, name in ((_setfsgid, gid, "gid"), (_setfsuid, uid, "uid")):
        set_id(number)
        # It tells nothing but what it was before; an id that there is not changes nothing.
        if set_id(0xFFFFFFFF) & 0xFFFFFFFF != number:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), f"{name} {number}")


def effective_capabilities(process: Process) -> frozenset[str]:
    """What `become` leaves in force, if the kernel allows all that is asked for."""
    sets = process.capabilities
    if process.user.uid == 0:
        return frozenset(sets.effective).intersection(sets.permitted)
    # What execve(2) leaves to another user than root. Clients write the same sets for every
    # user, and rely on that one who is not root does not get them.
    return frozenset(sets.permitted).intersection(sets.inheritable, sets.ambient)


def become(process: Process) -> list[str]:
    """Take the user and the privileges of `process`, for good; 0.2 ms.

    Returns the capabilities that were not granted, for the log, as `set_capabilities` does. Nobody
    without CAP_SYS_PTRACE on the host can look into this process afterwards, not even with the same
    user: a neighbour in the same PID namespace is not to be trusted with what a runtime has in its
    memory. Raises OSError that names the culprit.
    """
    user, capabilities = process.user, process.capabilities
    # The umask of whoever started containerd is nobody's business; runc has the same one.
    umask = _UMASK if user.umask is None else user.umask
    set_user(user.uid, user.gid, user.additional_gids, umask, keep_capabilities=True)
    effective = effective_capabilities(process)
    missing = set_capabilities(
        bounding=capabilities.bounding,
        effective=capabilities.effective if user.uid == 0 else effective,
        inheritable=capabilities.inheritable,
        permitted=capabilities.permitted if user.uid == 0 else effective,
        ambient=capabilities.ambient,
    )
    if process.no_new_privileges:
        no_new_privs()
    # After a change of user, the kernel decides by fs.suid_dumpable.
    set_dumpable(False)
    return missing


def set_user(
    uid: int,
    gid: int,
    additional_gids: Sequence[int] = (),
    umask: int | None = None,
    *,
    keep_capabilities: bool = False,
) -> None:
    """Become the user; real, effective, saved and filesystem ids all change, for good.

    Another user than root loses all capabilities, unless they are kept for `set_capabilities`.
    Raises OSError that names the id.
    """
    if len(additional_gids) > _NGROUPS_MAX:
        raise OSError(errno.EINVAL, f"more than {_NGROUPS_MAX}", "additional gids")
    prctl(_PR_SET_KEEPCAPS, int(keep_capabilities))
    culprit = f"additional gids {list(additional_gids)}"
    ids = (("uid", uid), ("gid", gid), *(("additional gids", each) for each in additional_gids))
    for name, number in ids:
        if not 0 <= number < NO_ID:  # -1, which setresuid(2) takes for "as it is": root
            raise OSError(errno.EINVAL, "no id", f"{name} {number}")
    try:
        os.setgroups(additional_gids)
        culprit = f"gid {gid}"
        os.setresgid(gid, gid, gid)
        culprit = f"uid {uid}"
        os.setresuid(uid, uid, uid)
    except OSError as e:
        what = "not mapped in the user namespace" if e.errno == errno.EINVAL else e.strerror
        raise OSError(e.errno, what, culprit) from None
    if umask is not None:
        os.umask(umask & 0o777)  # what the kernel takes of it


def no_new_privs() -> None:
    """Never gain privileges by an exec again, nor may any child."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_capabilities(
    *,
    bounding: Iterable[str] = (),
    effective: Iterable[str] = (),
    inheritable: Iterable[str] = (),
    permitted: Iterable[str] = (),
    ambient: Iterable[str] = (),
) -> list[str]:
    """Keep these capabilities ("CAP_KILL") and no others. Needs CAP_SETPCAP to reduce `bounding`.

    Returns the names that were not granted: unknown, not held by this process, or against the
    kernel's rules between the sets. To fail on those is not for a runtime (runtime-spec, config.md,
    "Linux Process"). Raises OSError if something that should go could not be taken away.
    """
    requested = [set(names) for names in (bounding, effective, inheritable, permitted, ambient)]
    bound, effect, inherit, permit, ambience = map(_bits, requested)
    held = _held()
    # A change of user has emptied the effective set; this call needs CAP_SETPCAP back.
    _capset(held, held, 0)
    kept = 0
    for number in range(last_capability() + 1):
        if bound & 1 << number:
            kept |= prctl(_PR_CAPBSET_READ, number) << number
            continue
        try:
            prctl(_PR_CAPBSET_DROP, number)
        except PermissionError:
            if prctl(_PR_CAPBSET_READ, number):
                raise
    permit &= held
    effect &= permit
    inherit &= kept
    _capset(effect, permit, inherit)
    prctl(_PR_SET_KEEPCAPS, 0)
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    ambience &= permit & inherit
    for number in range(ambience.bit_length()):
        if ambience & 1 << number:
            prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
    granted = [kept, effect, inherit, permit, ambience]
    return sorted(
        {
            name
            for names, bits in zip(requested, granted, strict=True)
            for name in names
            if name not in _NUMBER or not bits & 1 << _NUMBER[name]
        }
    )


@functools.cache
def last_capability() -> int:
    """The highest number that this kernel knows: 42 system calls, of which forks know the end."""
    for number in range(64):
        try:
            prctl(_PR_CAPBSET_READ, number)
        except OSError:
            return number - 1
    return 63


def _bits(names: Iterable[str]) -> int:
    return sum(1 << _NUMBER[name] for name in names if name in _NUMBER)


def may(capability: str) -> bool:
    """Tell whether this process has a capability, such as "CAP_SYS_ADMIN"."""
    return bool(_held() & _bits({capability}))


def _held() -> int:
    """The permitted set of this process."""
    data = ctypes.create_string_buffer(_SETS.size)
    if _syscall(NUMBERS["capget"], _HEADER, data) < 0:
        fail("capget")
    _, low, _, _, high, _ = _SETS.unpack(data.raw)
    return int(low | high << 32)


def _capset(effective: int, permitted: int, inheritable: int) -> None:
    sets = (effective, permitted, inheritable)
    data = _SETS.pack(*(bits & 0xFFFFFFFF for bits in sets), *(bits >> 32 for bits in sets))
    if _syscall(NUMBERS["capset"], _HEADER, data) < 0:
        fail("capset", f"effective {effective:#x}, permitted {permitted:#x}")


def prctl(option: int, *arguments: int) -> int:
    """Do what `option` says to this process. Raises OSError with its number (prctl(2))."""
    result: int = _prctl(option, *arguments, *(0,) * (4 - len(arguments)))
    if result < 0:
        fail("prctl", f"option {option}")
    return result


def set_pdeathsig(signo: int) -> None:
    """Get `signo` (0: nothing) when the parent's thread ends; a change of user cancels it."""
    prctl(_PR_SET_PDEATHSIG, signo)


def set_dumpable(dumpable: bool) -> None:
    """Allow, or not, core dumps, ptrace and the like by others of the same user."""
    prctl(_PR_SET_DUMPABLE, int(dumpable))


def set_child_subreaper() -> None:
    """Become the parent of descendants whose parent ends."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_rlimit(name: str, soft: int, hard: int) -> None:
    """Set a limit by its OCI name, such as "RLIMIT_NOFILE"; values are unsigned 64-bit.

    Raises OSError with the name: EINVAL if nobody knows it or soft exceeds hard, EPERM for a hard
    limit that may not be raised.
    """
    number = RLIMITS.get(name)
    if number is None:
        raise OSError(errno.EINVAL, "unknown resource limit", name)
    limits = [resource.RLIM_INFINITY if n >= _RLIM_INFINITY else n for n in (soft, hard)]
    try:
        resource.prlimit(0, number, (limits[0], limits[1]))
    except ValueError as e:
        raise OSError(errno.EINVAL, f"soft {soft}, hard {hard}: {e}", name) from None
    except OSError as e:
        raise OSError(e.errno, f"soft {soft}, hard {hard}: {e.strerror}", name) from None


def set_hostname(name: str) -> None:
    """Set the host name of this UTS namespace, at most 64 bytes."""
    encoded = os.fsencode(name)
    if _sethostname(encoded, len(encoded)) < 0:
        fail("sethostname", name)


def set_domainname(name: str) -> None:
    """Set the NIS domain name of this UTS namespace, at most 64 bytes."""
    encoded = os.fsencode(name)
    if _setdomainname(encoded, len(encoded)) < 0:
        fail("setdomainname", name)
