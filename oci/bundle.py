"""A bundle directory's ``config.json``, whole or in outline. A library.

The guest reads the whole; the shim outlives many guests and must not keep their arguments and
environment, which carry secrets, so it reads an `Outline`. A string that was on the heap can stay
there long after it is freed. Here the text lies in a mapping of its own, which is gone afterwards,
and the decoder passes over what the outline has no field for without copying it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from stat import S_ISREG
from typing import Any

from msgspec import field

from oci.decoding import DocumentDecoder, SpecError
from oci.linux import Section, TimeOffset
from oci.runtime import ConsoleSize, Hook, Spec, decode

__all__ = ["Outline", "OutlineNamespace", "SpecError", "read_outline", "read_spec"]

CONFIG = "config.json"
MAX_SIZE = 16 << 20  # bytes; etcd takes 1.5 MiB of pod, and a seccomp profile is some 20 KiB


class OutlineNamespace(Section, frozen=True, kw_only=True):
    """As in the spec, save that the type is not judged here."""

    type: str = ""
    path: str = ""


class OutlineHooks(Section, frozen=True, kw_only=True):
    """The hooks that run on the host. What is in them is the node's, no secret of the container."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()

    @property
    def before_root(self) -> bool:
        """Whether there are some to run before the container's root is entered."""
        return bool(self.prestart or self.create_runtime)


class Outline(Section, frozen=True, kw_only=True):
    """What a shim may know of a container's config; empty where the config says nothing."""

    annotations: Mapping[str, str] = field(default_factory=dict)
    namespaces: tuple[OutlineNamespace, ...] = ()
    cgroups_path: str = ""
    terminal: bool = False
    console_size: ConsoleSize | None = None
    root_path: str = ""
    oci_version: str = ""
    time_offsets: Mapping[str, TimeOffset] = field(default_factory=dict)
    hooks: OutlineHooks = OutlineHooks()


class _Process(Section, frozen=True, kw_only=True):
    terminal: bool = False
    console_size: ConsoleSize | None = None


class _Root(Section, frozen=True, kw_only=True):
    path: str = ""


class _Linux(Section, frozen=True, kw_only=True):
    namespaces: tuple[OutlineNamespace, ...] = ()
    cgroups_path: str = ""
    time_offsets: Mapping[str, TimeOffset] = field(default_factory=dict)


class _Config(Section, frozen=True, kw_only=True):
    oci_version: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    hooks: OutlineHooks = OutlineHooks()
    linux: _Linux = _Linux()
    process: _Process = _Process()
    root: _Root = _Root()


class _AnyProcess(Section, frozen=True, kw_only=True):
    terminal: Any = None
    console_size: Any = None


class _AnyConfig(Section, frozen=True, kw_only=True):
    oci_version: Any = None
    annotations: Any = None
    hooks: Any = None
    linux: Any = None
    process: _AnyProcess | None = None
    root: Any = None


_outline = DocumentDecoder(_Config, CONFIG, generic=_AnyConfig)


def read_outline(bundle: str | int) -> Outline:
    """Return the outline of the config in a bundle, given by path or directory descriptor.

    Raises `SpecError` where there is no config, where it is no JSON, and where a field of the
    outline has the wrong type; the rest of the config is not judged.
    """
    with _text(bundle) as data:
        config = _outline.decode(data)
    return Outline(
        annotations=config.annotations,
        namespaces=config.linux.namespaces,
        cgroups_path=config.linux.cgroups_path,
        terminal=config.process.terminal,
        console_size=config.process.console_size,
        root_path=config.root.path,
        oci_version=config.oci_version,
        time_offsets=config.linux.time_offsets,
        hooks=config.hooks,
    )


def read_spec(bundle: str | int) -> Spec:
    """Return the whole config in a bundle, given by path or directory descriptor.

    Raises `SpecError` where there is none, and where it cannot be decoded.
    """
    with _text(bundle) as data:
        return decode(data)


@contextmanager
def _text(bundle: str | int) -> Iterator[mmap]:
    # Read into a mapping, not mapped from the file: a file that shrinks then kills nobody.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        if isinstance(bundle, int):
            fd = os.open(CONFIG, flags, dir_fd=bundle)
        else:
            fd = os.open(os.path.join(bundle, CONFIG), flags)
    except OSError as error:
        where = f" in {bundle}" if isinstance(bundle, str) else ""
        raise SpecError(f"{CONFIG}: {os.strerror(error.errno or 0)}{where}") from None
    try:
        status = os.fstat(fd)
        if not S_ISREG(status.st_mode):
            raise SpecError(f"{CONFIG}: not a regular file")
        if not 0 < status.st_size <= MAX_SIZE:
            problem = f"larger than {MAX_SIZE} bytes" if status.st_size else "empty"
            raise SpecError(f"{CONFIG}: {problem}")
        with mmap(-1, status.st_size, flags=MAP_PRIVATE | MAP_ANONYMOUS) as text:
            if os.readv(fd, [text]) != status.st_size:
                raise SpecError(f"{CONFIG}: changed while it was read")
            yield text
    finally:
        os.close(fd)
