"""What is being compiled on this node, so that nothing is twice, and not too much at a time.

Runs in: shim, and foreman (`shim.compiler.foreman`).

In one directory there is a file for each compilation, with the name of the artifact. Its foreman
holds a lock on it (flock(2)), which ends with that process whatever becomes of it; the file's group
says whose the compilation is, as in the cache. A file that is not locked is nobody's. Why there
will be no artifact is written to the file before it goes, for those who have it open: others who
want the same.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from shim.guest import control
from shim.linux.files import is_locked

AT_ONCE: Final = 16
"""Compilations of a node. An engine takes all processors for one."""
OF_ONE: Final = 4
"""Those of one tenant (`shim.engines.cache`)."""

_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_VERDICT_BYTES: Final = 4096
_decode: Final = msgspec.msgpack.Decoder(control.Refused).decode


class Claim(NamedTuple):
    """The right to compile something, for as long as the file is open in any process."""

    fd: int
    name: str
    directory: int

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def settle(self, verdict: control.Refused | None = None) -> None:
        """Take the file away, when the artifact can be found; or say why there will be none."""
        if verdict is not None:
            with suppress(OSError):  # no room for it: then the others find out by themselves
                os.pwrite(self.fd, msgspec.msgpack.encode(verdict), 0)
        with suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self.directory)
        fcntl.flock(self.fd, fcntl.LOCK_UN)


class Running(NamedTuple):
    """Somebody else's claim to what was asked for; `since` is in nanoseconds since the epoch."""

    fd: int
    since: int

    def is_over(self) -> bool:
        """Whether it is any more."""
        return not is_locked(self.fd)

    def verdict(self) -> control.Refused | None:
        """Why there is no artifact, if it is over, and that is known and good for others too."""
        said = os.pread(self.fd, _VERDICT_BYTES, 0)
        return _decode(said) if said else None

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def claim(directory: int, key: bytes, owner: int) -> Claim | Running | None:
    """Claim the making of an artifact for a tenant; None if it has to be tried again later.

    Nobody else may claim anything at that moment: so the bounds hold exactly. Raises OSError.
    """
    alone = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owners = []
        for name in os.listdir(alone):
            running = _running(directory, name)
            if running is not None:
                if name == key.hex():
                    return running
                owners.append(os.fstat(running.fd).st_gid)
                running.close()
        if len(owners) >= AT_ONCE or owners.count(owner) >= OF_ONE:
            return None
        return _new(directory, key.hex(), owner)
    except BlockingIOError:
        return None
    finally:
        os.close(alone)


def _running(directory: int, name: str) -> Running | None:
    """Open a claim; one that is nobody's any more is removed. None if there is none."""
    with suppress(FileNotFoundError):
        fd = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=directory)
        if is_locked(fd):
            return Running(fd, os.fstat(fd).st_mtime_ns)
        os.close(fd)
        os.unlink(name, dir_fd=directory)
    return None


def _new(directory: int, name: str, owner: int) -> Claim:
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchown(fd, -1, owner)
    except OSError:
        os.unlink(name, dir_fd=directory)
        os.close(fd)
        raise
    return Claim(fd, name, directory)
