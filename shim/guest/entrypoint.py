"""From `process.args` to the file that is meant. Runs in: guest, inside its rootfs."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from oci.runtime import Process
from shim.engines.base import HEADER, START, ModuleError
from shim.linux.inside import is_below, read_inside
from shim.linux.libc import describe

_MISSING = (errno.ENOENT, errno.ENOTDIR)
_NATIVE = (b"\x7fELF", b"#!")
_INITS = ("docker-init", "podman-init", "catatonit", "tini", "tini-static", "dumb-init")
_INIT_OPTIONS = ("-p", "-e", "-r", "--rewrite")
"""Those of them that take a value which may be an argument of its own."""
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def without_init(process: Process) -> Process:
    """Return the process without an init that it is the command of, if it is named like a module.

    `docker run --init`, and tini or dumb-init in an image: a guest has no children to reap, and
    ends at signals as it is.
    """
    init, *rest = process.args or ("",)
    if os.path.basename(init) not in _INITS:
        return process
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--":
            break
        if option in _INIT_OPTIONS and rest:
            rest.pop(0)
    command = replace(process, args=tuple(rest))
    return command if rest and is_named_module(command) else process


class Found(NamedTuple):
    """The file that `process.args[0]` names, and the export of the module that it may be."""

    path: str
    function: str
    fd: int
    looked_at: Sequence[str]
    """Where it was looked for; it was found at the last one."""


def find(process: Process, root: int, proc: int) -> Found:
    """Find the entrypoint inside `root`, and open it; `proc` is the host's /proc.

    Raises ModuleError naming it.
    """
    looked_at: list[str] = []
    for path, function in _readings(process.args[0]):
        error = OSError(errno.ENOENT, "not found")
        for place in _places(path, process):
            looked_at.append(place)
            try:
                return Found(path, function, read_inside(root, place, proc), looked_at)
            except OSError as e:
                # As execvp(3), which tells of what is missing only if there was nothing else.
                if error.errno in _MISSING:
                    error = e
        if error.errno not in (*_MISSING, errno.ENAMETOOLONG):
            break
    reason = str(error.strerror).removeprefix("openat2: ")
    raise ModuleError(f"entrypoint {path!r}: {reason}")


def _readings(argument: str) -> Iterator[tuple[str, str]]:
    """Yield what `module.wasm#function` may mean, a path and an export.

    First what has the longest path, for a file and an export may have a `#` in their names.
    """
    yield argument, START
    for end in dict.fromkeys((argument.rfind("#"), argument.find("#"))):
        if end >= 0:
            yield argument[:end], argument[end + 1 :] or START


def is_named_module(process: Process) -> bool:
    """Tell whether a container's program is named like a module: then it is taken for one."""
    return any(path.endswith((".wasm", ".wat")) for path, _ in _readings(process.args[0]))


def is_native(root: int, proc: int, process: Process, covered: Collection[str] = ()) -> bool:
    """Tell whether a container's program is one for the kernel: an ELF file, or a script.

    As its first bytes say. `root` is the directory that is about to be the root. What cannot be
    found or read is no native program; nor, yet, is one that may be another as soon as something
    is mounted on `covered`.
    """
    try:
        found = find(process, root, proc)
    except ModuleError:
        return False
    fd = found.fd
    try:
        if covered:
            looked_at = [*found.looked_at, _inside(root, fd)]
            if any(is_below(other, mount) for other in looked_at for mount in covered):
                return False
        return os.pread(fd, HEADER, 0).startswith(_NATIVE)
    finally:
        os.close(fd)


def _inside(root: int, fd: int) -> str:
    """Where in `root` a file is that symlinks may have led to."""
    return describe(fd).removeprefix(describe(root))


def native(process: Process, root: int, proc: int) -> str | None:
    """Return the path of the program if it is one for the kernel to execute, and no module.

    As root, for a program may be executed that cannot be read. Raises ModuleError if there is none,
    OSError.
    """
    found = find(process, root, proc)
    try:
        if found.path == process.args[0] and os.pread(found.fd, HEADER, 0).startswith(_NATIVE):
            return found.looked_at[-1]
        return None
    finally:
        os.close(found.fd)


def _places(path: str, process: Process) -> Sequence[str]:
    """Where execvp(3) would look, and the working directory and `/`, as images expect."""
    if "/" in path:
        return [os.path.join(process.cwd, path)]
    search = next((v[5:] for v in process.env if v.startswith("PATH=")), _DEFAULT_PATH)
    directories = [*(directory or "." for directory in search.split(":")), ".", "/"]
    return [os.path.join(process.cwd, directory, path) for directory in directories]
