"""Files of an administrator, replaced whole or not at all (`pywasm`)."""

import os
import shutil
import stat

BACKUP = ".before-pywasm"
"""Ends the name of a file's copy as it was before our first change. No `*.toml` matches it."""


def replace(path: str, text: str, was: os.stat_result | None = None) -> None:
    """Give `path` this content; mode, owner and labels stay, and so does a link to it.

    Where there is no such file, mode and owner are those of what `was` there or is repeated.
    """
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):
        _write(path, text, os.stat(path), like=path)
    else:
        _write(path, text, was)


def back_up(path: str, text: str) -> None:
    """Keep this content of a file beside it, for whoever may read the file and nobody else."""
    path = os.path.realpath(path)
    _write(path + BACKUP, text, os.stat(path), like=path)


def _write(path: str, text: str, status: os.stat_result | None, like: str = "") -> None:
    """Write a file and put it in the place of what is at `path`, which is not followed."""
    new = f"{path}.{os.getpid()}"
    try:
        with open(new, "x", encoding="utf-8", newline="", opener=_private) as file:
            if status is not None:
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode) if status else 0o644)
            if like:
                shutil.copystat(like, new)  # extended attributes, too
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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # nobody else has it open before its mode is the right one


def restore(path: str, text: str | None, was: os.stat_result | None = None) -> None:
    """Give `path` this content, as `replace` does, or, for None, take it away."""
    if text is None:
        path = os.path.realpath(path)
        os.unlink(path)
        _sync(os.path.dirname(path))
    else:
        replace(path, text, was)


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
