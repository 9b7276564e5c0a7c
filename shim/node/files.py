"""Files of an administrator, replaced whole or not at all (`pywasm`)."""

import os
import shutil

BACKUP = ".before-pywasm"
"""Ends the name of a file's copy as it was before our first change. No `*.toml` matches it."""


def replace(path: str, text: str) -> None:
    """Give `path` this content; mode, owner and labels stay, and so does a link to it."""
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new = f"{path}.{os.getpid()}"
    try:
        with open(new, "x", encoding="utf-8", newline="") as file:
            os.fchmod(file.fileno(), 0o644)
            try:
                status = os.stat(path)
            except FileNotFoundError:
                pass
            else:
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
                shutil.copystat(path, new)  # extended attributes, too
            file.write(text)
            file.flush()
            os.utime(new)
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        if os.path.lexists(new):
            os.unlink(new)
        raise
    _sync(os.path.dirname(path))


def restore(path: str, text: str | None) -> None:
    """Give `path` this content or, for None, take it away."""
    if text is None:
        path = os.path.realpath(path)
        os.unlink(path)
        _sync(os.path.dirname(path))
    else:
        replace(path, text)


def link(path: str, target: str) -> bool:
    """Make a symbolic link, or let an existing one point to `target`; return whether it is new.

    Raises FileExistsError if something else has that name.
    """
    if os.path.islink(path):
        if os.readlink(path) == target:
            return False
    elif os.path.lexists(path):
        raise FileExistsError(f"{path}: is no link of pywasm's")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new = f"{path}.{os.getpid()}"
    os.symlink(target, new)
    os.replace(new, path)
    return True


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
