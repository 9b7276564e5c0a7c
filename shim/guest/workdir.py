"""The working directory, `process.cwd`: a path of the spec or the image. Runs in: guest."""

import os

from oci.runtime import Process, SpecError
from shim.linux import credentials
from shim.linux.inside import Owner, create_inside, open_directory, open_inside


def make(process: Process, root: int, owner: Owner | None) -> None:
    """Make it inside `root` if the image has none, for `owner`. Raises OSError, SpecError.

    As runc: that is before the root is made read-only.
    """
    _check(process)
    try:
        try:
            fd = open_inside(root, process.cwd)
        except FileNotFoundError:
            fd = create_inside(root, process.cwd, is_dir=True, owner=owner)
    except OSError as error:
        raise _named(process, error) from None
    os.close(fd)


def enter(process: Process, root: int, identity: credentials.Identity) -> None:
    """Go there, inside `root`, this process's own. Raises OSError, SpecError.

    As who the program is going to be; but a user may well be where he could not go, as under runc.
    """
    _check(process)
    try:
        try:
            with credentials.acting_as(identity):
                fd = open_directory(root, process.cwd)
        except PermissionError:
            fd = open_directory(root, process.cwd)
        os.fchdir(fd)
        os.close(fd)
        # The kernel's word that it is inside: getcwd(2) fails elsewhere.
        os.getcwd()
    except OSError as error:
        raise _named(process, error) from None


def _check(process: Process) -> None:
    if not process.cwd.startswith("/"):
        raise SpecError(f"process.cwd: expected an absolute path, got {process.cwd!r}")


def _named(process: Process, error: OSError) -> OSError:
    return OSError(error.errno, os.strerror(error.errno or 0), f"process.cwd: {process.cwd}")
