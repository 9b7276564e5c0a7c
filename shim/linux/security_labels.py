"""AppArmor profiles and SELinux labels for a process that never executes another (library).

Runtimes usually name the label for the next execve. Here there is none: the process becomes the
container's program as it is, and has to change its own label. AppArmor lets an unconfined process
do that. SELinux wants a policy that grants `process setcurrent` and a `dyntransition` to the type,
and a process with a single thread. After no_new_privs, AppArmor only takes a profile that allows
less, and SELinux asks for one permission more: label first.

See https://docs.kernel.org/admin-guide/LSM/ and proc_pid_attr(5).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from typing import Final

from oci.decoding import SpecError
from shim.linux import procfs
from shim.linux.files import read_small

_APPARMOR: Final = "/sys/module/apparmor/parameters/enabled"
_SELINUX: Final = "/sys/fs/selinux/status"
_LABELLED: Final = frozenset({"tmpfs", "devpts", "ramfs", "hugetlbfs", "overlay"})


def apparmor_enabled() -> bool:
    """Whether this kernel enforces AppArmor profiles. Needs the host's /sys."""
    try:
        return read_small(_APPARMOR).startswith(b"Y")
    except OSError:
        return False


def selinux_enabled() -> bool:
    """Whether this kernel runs with an SELinux policy. Needs the host's /sys."""
    return os.path.exists(_SELINUX)


def check(apparmor_profile: str, selinux_label: str, mount_label: str) -> None:
    """Raise SpecError for a label that this kernel would not enforce. Needs the host's /sys."""
    if apparmor_profile and not apparmor_enabled():
        raise SpecError(f"process.apparmorProfile: {apparmor_profile}: AppArmor is not enabled")
    for field, label in (
        ("process.selinuxLabel", selinux_label),
        ("linux.mountLabel", mount_label),
    ):
        if label and not selinux_enabled():
            raise SpecError(f"{field}: {label}: SELinux is not enabled")
        if '"' in label or "\n" in label:
            raise SpecError(f"{field}: {label!r} is no label")


def apply_apparmor(profile: str, proc: int) -> None:
    """Confine this process by the profile. `proc` is from `procfs.open_proc`.

    Raises OSError with the field as its filename: ENOENT for a profile that is not loaded.
    """
    try:
        try:
            procfs.write(proc, "thread-self/attr/apparmor/current", f"changeprofile {profile}")
        except FileNotFoundError:
            # The older place, which belongs to the first of several security modules; or the
            # profile is missing, which is then said again.
            procfs.write(proc, "thread-self/attr/current", f"changeprofile {profile}")
    except OSError as e:
        what = "no such profile is loaded" if e.errno == errno.ENOENT else e.strerror
        raise OSError(e.errno, f"{profile}: {what}", "process.apparmorProfile") from None


def apply_selinux(label: str, proc: int) -> None:
    """Give this process the label. `proc` is from `procfs.open_proc`.

    Raises OSError with the field as its filename: EACCES where the policy has no dyntransition to
    it, EINVAL for a label that the policy does not know.
    """
    try:
        procfs.write(proc, "thread-self/attr/current", label)
    except OSError as e:
        what = e.strerror
        if e.errno in (errno.EACCES, errno.EPERM):
            what = "the policy does not allow this process setcurrent and dyntransition"
        raise OSError(e.errno, f"{label}: {what}", "process.selinuxLabel") from None


def mount_data(fstype: str, data: str, label: str, *, types: Collection[str] = _LABELLED) -> str:
    """Filesystem options with `linux.mountLabel` added, for the types that take a label."""
    if not label or fstype not in types or "context=" in data:
        return data
    context = f'context="{label}"'
    return f"{data},{context}" if data else context
