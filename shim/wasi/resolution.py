"""Where a path leads (library; runs in the guest).

The kernel resolves every path, with `openat2`: what `..`, an absolute path or a symlink means is
never decided here, and none of its own links (`/proc/*/root`) is followed. Leaving a directory that
is confined ends in `NotCapable` (RESOLVE_BENEATH). From one that is not, a preopen of a container
that has all of its root, a path leads where it leads in any container: this process's root is the
container's, so that is where `..` ends and absolute symlinks begin, and the mounts on the way say
what may be written. From a directory that the program has opened below such a preopen, symlinks
lead as far, but the program's own `..` does not, as WASI has it.

Where a call acts on a name rather than on a file (unlink, rename, ...), the directory of that name
is opened the same way, and the kernel is handed the last component as it stands: none of these
calls follows a symlink or walks into `..` there.

WASI has no working directory either. To wasi-libc and all that is built on it, `/data.txt` and
`data.txt` are the same: `data.txt`, relative to the preopened directory `/`. The container's
working directory therefore lies over that preopen, see `start`.
"""

from __future__ import annotations

import errno as linux
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from shim.linux.files import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2
from shim.wasi.descriptors import Descriptor
from shim.wasi.errors import NotCapable, failure

_BENEATH: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS


def whole(path: bytes) -> bytes:
    """Return a path. Raises EINVAL for one with a NUL: the kernel would take the part before it."""
    if b"\0" in path:
        raise failure(linux.EINVAL)
    return path


def look_up(directory: Descriptor, path: bytes, flags: int, mode: int = 0) -> int:
    """Open `path` with `flags` of open(2). Raises `NotCapable` where it leaves what confines it."""
    if directory.preopen is None or directory.confined:
        try:
            return _beneath(directory, path, flags, mode)
        except NotCapable:
            # Else only symlinks can have led out.
            if directory.confined or path.startswith(b"/") or b".." in path.split(b"/"):
                raise
    return openat2(directory.fd, path, flags, mode, RESOLVE_NO_MAGICLINKS)


def _beneath(directory: Descriptor, path: bytes, flags: int, mode: int = 0) -> int:
    try:
        return openat2(directory.fd, path, flags, mode, _BENEATH)
    except OSError as error:
        if error.errno == linux.EXDEV:
            raise NotCapable from None
        raise


def resolve(directory: Descriptor, path: bytes, *, follow: bool) -> int:
    """Return an O_PATH descriptor, for the caller to close, of what `path` names."""
    flags = os.O_PATH if follow else os.O_PATH | os.O_NOFOLLOW
    return look_up(directory, path, flags)


@contextmanager
def parent(directory: Descriptor, path: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield a descriptor of the directory that holds `path`, and the name there.

    Slashes at the end stay with the name, since they mean something to the kernel: `a/b//` is the
    name `b//` in `a`.
    """
    slash = _last_slash(path)
    name = path[slash + 1 :]
    if name.rstrip(b"/") == b"..":  # is there, and may be out of reach
        os.close(look_up(directory, path, os.O_PATH))
    elif name.endswith(b"/"):  # so may be what a symlink of this name leads to
        with suppress(OSError):
            os.close(look_up(directory, path, os.O_PATH))
    if slash < 0:
        yield directory.fd, path
        return
    # An absolute path (or nothing but slashes) has a parent that starts at `/`.
    fd = look_up(directory, path[: slash + 1] or path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd, path[slash + 1 :]
    finally:
        os.close(fd)


def _last_slash(path: bytes) -> int:
    """Return where the slash before the last component is, -1 if there is none."""
    bare = path.rstrip(b"/")
    return bare.rfind(b"/") if bare else len(path) - 1


def start(
    directory: Descriptor, path: bytes, *, creating: bool = False
) -> tuple[Descriptor, bytes]:
    """Return where to look `path` up: these two as they are, unless a working directory is set.

    With one, what exists there is preferred to what exists in `/`. What does not exist in either is
    created in the first that has a directory for it. So relative paths start in the working
    directory, and absolute ones, and those that a libc made of them by itself (Go does, from PWD),
    reach all of `/` but what the working directory hides: its entries' namesakes, and `/` itself,
    which arrives as `.`.

    A path that leaves the working directory starts there, with the rights of `/`.
    """
    cwd = directory.cwd
    if cwd is None or path.startswith(b"/"):
        return directory, path
    found = _exists(_beneath, cwd, path)
    if found is None:
        return directory, (cwd.preopen or b"").lstrip(b"/") + b"/" + path
    if found or path.startswith(b"./"):
        return cwd, path
    if creating and not _exists(look_up, directory, path):
        holder = path[: _last_slash(path) + 1] or b"."
        if _exists(_beneath, cwd, holder):
            return cwd, path
    return directory, path


def _exists(
    look: Callable[[Descriptor, bytes, int], int],
    directory: Descriptor,
    path: bytes,
    flags: int = os.O_PATH,
) -> bool | None:
    """Tell whether there is such a name; None if it leads out of where `look` looks."""
    try:
        os.close(look(directory, path, flags))
    except NotCapable:
        return None
    except FileNotFoundError:  # or a symlink to nothing
        return not flags & os.O_NOFOLLOW and _exists(look, directory, path, flags | os.O_NOFOLLOW)
    except NotADirectoryError:
        return False
    except OSError:
        pass  # it is there in some way, and what is wrong with it the caller will hear
    return True
