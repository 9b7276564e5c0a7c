"""The files of one cgroup directory (library).

The kernel takes a value in one `write`, and what it has against it belongs into a message that
names the file and, for whoever wrote the spec, its field.

Of a cgroup that somebody removes between the open and what follows it (systemd does, as soon as its
last process has ended) the kernel says ENODEV. Here it is ENOENT, as a moment later.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from shim.linux.files import read_small

_LARGEST = 1 << 16


def write(path: str, value: str) -> None:
    """Write a value to a file. Raises OSError, which names both."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as e:
        if e.errno == errno.ENODEV:
            raise _gone(path) from None
        raise OSError(e.errno, f"write {value!r}: {e.strerror}", path) from None
    finally:
        os.close(fd)


def read(path: str) -> str:
    """The content of a file, without the newline at its end. Raises OSError."""
    try:
        return read_small(path).decode().rstrip("\n")
    except OSError as e:
        if e.errno == errno.ENODEV:
            raise _gone(path) from None
        raise


class Setting(NamedTuple):
    """A value for a file, and the field of `linux.resources` that asks for it."""

    field: str
    file: str
    value: str


class Directory:
    """A cgroup's directory, opened when it is first needed.

    Every name is looked up in that directory: it must not have a slash (ValueError).
    """

    def __init__(self, find: Callable[[], str]) -> None:
        """`find` returns its path, or raises OSError if there can be none."""
        self._find = find
        self._fd = -1
        self.path = ""
        """Empty until a file has been used."""

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def fd(self) -> int:
        """Its descriptor (O_PATH)."""
        if self._fd < 0:
            self.path = self._find()
            self._fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._fd

    def open(self, file: str, flags: int) -> int:
        """Open one of its files, which is the caller's to close. Raises OSError, with its path."""
        if "/" in file or "\0" in file:
            raise ValueError(f"not a file of a cgroup: {file!r}")
        directory = self.fd
        try:
            # The kernel's filesystem has no symlinks, but this may be a directory of somebody else.
            return os.open(file, flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
        except OSError as e:
            raise OSError(e.errno, e.strerror, f"{self.path}/{file}") from None

    def has(self, file: str) -> bool:
        """Whether there is such a file."""
        try:
            os.stat(file, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def read(self, file: str) -> str:
        """The content of a file, without the newline at its end. Raises OSError."""
        fd = self.open(file, os.O_RDONLY)
        try:
            data = b""
            while chunk := os.read(fd, _LARGEST):
                data += chunk
        except OSError as e:
            if e.errno == errno.ENODEV:
                raise _gone(f"{self.path}/{file}") from None
            raise
        finally:
            os.close(fd)
        return data.decode().rstrip("\n")

    def set(self, field: str, file: str, *values: str) -> None:
        """Write to a file, once for each value. Raises OSError, which names file and field."""
        try:
            fd = self.open(file, os.O_WRONLY)
        except OSError as e:
            raise refusal(e.errno, field, e.strerror, e.filename) from None
        try:
            for value in values:
                try:
                    os.write(fd, value.encode())
                except OSError as e:
                    raise refusal(
                        e.errno, field, f"write {value!r}: {e.strerror}", f"{self.path}/{file}"
                    ) from None
        finally:
            os.close(fd)

    def set_together(self, settings: list[Setting]) -> None:
        """Write values that the kernel checks against each other, in an order that it accepts.

        A quota must fit its period and a memory limit the one of memory and swap, the old as well
        as the new: which of them has to go first depends on what was there before. Raises OSError.
        """
        while settings:
            refused: list[Setting] = []
            last: OSError | None = None
            for setting in settings:
                try:
                    self.set(*setting)
                except OSError as e:
                    if e.errno != errno.EINVAL:
                        raise
                    refused.append(setting)
                    last = last or e
            if last is not None and len(refused) == len(settings):
                raise last
            settings = refused


def _gone(path: str) -> OSError:
    return OSError(errno.ENOENT, "the cgroup has been removed", path)


def refusal(number: int | None, field: str, reason: str | None, path: str | None = None) -> OSError:
    """The error for a field of `linux.resources` that cannot be had."""
    return OSError(number or errno.EINVAL, f"linux.resources.{field}: {reason}", path)
