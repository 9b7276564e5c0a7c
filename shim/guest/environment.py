"""The environment of a program: what the spec says, and a home. Runs in: guest.

As runc makes it: of a variable that is given twice the last one counts, and who has no HOME, or an
empty one, gets that of its user in the container's /etc/passwd. Where there is none, runc says `/`;
a module is given no variable then that nobody has written down.
"""

import os
from collections.abc import Iterable

from msgspec.structs import replace

from oci.runtime import Process, SpecError
from shim.linux.inside import read_inside

_USERS = "/etc/passwd"
_MOST = 1 << 20  # bytes of it
_LONGEST = 4095  # bytes of a path


def unique(process: Process) -> Process:
    """Return the process with each variable once. Raises SpecError for what is no variable."""
    variables: dict[str, str] = {}
    for index, variable in enumerate(process.env):
        name, equals, value = variable.partition("=")
        if not (name and equals):  # what it is is not repeated: it may be a secret
            raise SpecError(f"process.env[{index}]: expected NAME=VALUE")
        variables.pop(name, None)
        variables[name] = value
    return replace(process, env=tuple(f"{name}={value}" for name, value in variables.items()))


def with_home(process: Process, root: int, proc: int) -> Process:
    """Return the process with its user's HOME inside `root`; `proc` is the host's /proc."""
    if any(variable.startswith("HOME=") and variable != "HOME=" for variable in process.env):
        return process
    home = _home(process.user.uid, root, proc)
    if not home:
        return process
    others = (variable for variable in process.env if variable != "HOME=")
    return replace(process, env=(*others, f"HOME={home}"))


def _home(uid: int, root: int, proc: int) -> str:
    """Look a user's home up; "" if there is none that could be one."""
    try:
        fd = read_inside(root, _USERS, proc)
    except OSError:  # none, or none that this user may read
        return ""
    try:
        # What the kernel makes up has no size, and may be waited for.
        users = os.pread(fd, min(os.fstat(fd).st_size, _MOST), 0)
    except OSError:
        return ""
    finally:
        os.close(fd)
    home = _home_of(uid, users.splitlines())
    return home if len(home) <= _LONGEST and "\0" not in home else ""


def _home_of(uid: int, users: Iterable[bytes]) -> str:
    """Find it in lines of passwd(5)."""
    for user in users:
        fields = user.split(b":")
        if len(fields) >= 6 and fields[2] == b"%d" % uid:
            return os.fsdecode(fields[5])
    return ""
