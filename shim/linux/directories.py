"""Directories that only root may enter: sockets, artifacts, locks (library)."""

import os
import stat


def private_directory(path: str) -> None:
    """Make `path` (and its parents) a directory of mode 0700, or check that it is one already.

    Raises PermissionError where somebody else owns it, may write to it, or put a link in its place.
    """
    try:
        os.mkdir(path, 0o700)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        os.mkdir(path, 0o700)
    except FileExistsError:
        status = os.lstat(path)
        shared = status.st_mode & 0o022
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or shared:
            raise PermissionError(
                f"{path}: expected a directory that only its owner may write to"
            ) from None
