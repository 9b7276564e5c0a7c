"""`/dev/stdin`, `/dev/fd/N`, `/proc/self/fd/N`: a guest's own descriptors as paths (library).

Runs in the guest. To Linux they are links of the kernel's, which nothing here follows, in a procfs
that most guests do not have, and their numbers are not the guest's. So where the kernel has found
no way, the path is walked once more, to see whether it leads to one of these names.
"""

from __future__ import annotations

import errno as linux
import os
import re
import stat
from collections import deque
from collections.abc import Mapping
from typing import Final, TypeAlias

from shim.wasi import rights
from shim.wasi.descriptors import Descriptor
from shim.wasi.errors import NotCapable, failure
from shim.wasi.filetypes import DIRECTORY, REGULAR_FILE

_NO_WAY: Final = (linux.ENOENT, linux.ELOOP)  # without a procfs, and with one
_STREAMS: Final = {b"stdin": 0, b"stdout": 1, b"stderr": 2}
_NAMES: Final = re.compile(rb"/dev/(?:(std\w+)|fd/(\d{1,9}))|/proc/(self|\d+)/fd/(\d{1,9})")
_ABOVE: Final = (b"/dev/", b"/proc/", b"/")
_SYMLINKS: Final = 40  # as many as the kernel follows in one path


Numbered: TypeAlias = Mapping[int, Descriptor]
"""A guest's descriptors by the numbers that it has for them: all, or the standard streams."""


def own(numbered: Numbered, where: Descriptor, path: bytes, error: OSError) -> Descriptor:
    """Return the open descriptor that a path leads to, of which the kernel has said `error`.

    Raises that again for any other path.
    """
    if error.errno in _NO_WAY and not where.confined:
        name = path.rpartition(b"/")[2]
        if name in _STREAMS or name.isdigit() or _target(where, path) is not None:
            found = numbered.get(_walk(where, path))
            if found is not None:
                return found
    raise error


def link(numbered: Numbered, where: Descriptor, path: bytes) -> bytes | None:
    """Return what `/proc/self/fd/N`, by any name, points to; None if the path is no such link.

    Raises EINVAL for a file, whose name nobody has kept.
    """
    if where.confined or not path.rpartition(b"/")[2].isdigit():
        return None
    found = numbered.get(_walk(where, path))
    if found is None:
        return None
    attributes = os.fstat(found.fd)
    for is_kind, kind in ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket")):
        if is_kind(attributes.st_mode):
            return b"%s:[%d]" % (kind.encode(), attributes.st_ino)
    raise failure(linux.EINVAL)


def again(found: Descriptor, base: int, inheriting: int, *, emptied: bool) -> Descriptor:
    """Return a descriptor once more, with those of the rights that it has itself.

    Its position is shared, where Linux would open the file anew. Raises EACCES if it can be used
    for nothing that is asked for.
    """
    use = base & (rights.FD_READ | rights.FD_WRITE)
    base &= found.base
    if found.kind == DIRECTORY:  # reading it needs a position of its own
        flags = os.O_WRONLY if use & rights.FD_WRITE else os.O_RDONLY  # EISDIR is the kernel's word
        fd = os.open(b".", flags, dir_fd=found.fd)
    elif use and not use & base:
        raise failure(linux.EACCES)
    else:
        if emptied and found.kind == REGULAR_FILE and base & rights.FD_WRITE:
            if found.given_up & rights.FD_FILESTAT_SET_SIZE:
                raise NotCapable
            os.ftruncate(found.fd, 0)
        fd = os.dup(found.fd)
    made = Descriptor(
        fd,
        found.kind,
        base,
        inheriting & found.inheriting,
        readonly=found.readonly,
        confined=found.confined,
    )
    made.given_up = found.given_up
    return made


def _walk(where: Descriptor, path: bytes) -> int:
    """Return the number at which a path ends that the kernel would not follow; -1 for any other."""
    here = _root_or_not(path) or b"."
    todo = deque(_parts(path))
    links = 0
    while todo:
        number = _named(where, here, b"/".join(todo))
        if number is not None:
            return number
        here += b"/" + todo.popleft()
        target = _target(where, here)
        if target is None:
            continue  # if there is nothing there, nothing is below it either
        links += 1
        if links > _SYMLINKS:
            break
        here = _root_or_not(target) or here.rpartition(b"/")[0]
        todo.extendleft(reversed(_parts(target)))
    return -1


def _root_or_not(path: bytes) -> bytes:
    return path[:1] if path.startswith(b"/") else b""


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _target(where: Descriptor, path: bytes) -> bytes | None:
    """Return what a symlink points to; None if it is none, or if there is nothing."""
    try:
        return os.readlink(path, dir_fd=where.fd)
    except OSError:
        return None


def _named(where: Descriptor, here: bytes, rest: bytes) -> int | None:
    """Return the number if `rest`, in the directory `here`, is the name of a descriptor."""
    for directory in _ABOVE:
        match = _NAMES.fullmatch(directory + rest)
        if match and _same(where, here, directory):
            stream, of_dev, process, of_proc = match.groups()
            if stream:
                return _STREAMS.get(stream)
            if process in (None, b"self", b"%d" % os.getpid()):
                return int(of_dev or of_proc)
    return None


def _same(where: Descriptor, here: bytes, directory: bytes) -> bool:
    try:
        return os.path.samestat(os.stat(here, dir_fd=where.fd), os.stat(directory))
    except OSError:
        return False
