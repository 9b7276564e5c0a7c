"""From `process.args` to a loaded module. Runs in: guest, inside its rootfs.

The module's bytes come from the image. A guest that still has privileges hashes them and hands them
on, but does not parse them: a compiler that has none makes the artifact, and only artifacts of the
cache are loaded.
"""

import os
import socket
import stat
from collections.abc import Sequence
from typing import NamedTuple

from oci.runtime import Process, Spec
from shim.engines import select
from shim.engines.base import HEADER, Engine, Module, ModuleError, check_header
from shim.engines.cache import Artifact, ArtifactCache, key
from shim.engines.snapshot import snapshot
from shim.guest import control

ENGINE_ANNOTATION = "dev.pywasm.engine"
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Compiled(NamedTuple):
    """The entrypoint's artifact, and the engine that it is for."""

    path: str
    engine: Engine
    artifact: Artifact

    def load(self, function: str) -> Module:
        """Load the module, of which `function` can be run, and close the artifact.

        Executes nothing of it. Raises ModuleError naming the entrypoint.
        """
        try:
            module = self.engine.load(self.artifact.read())
            module.check(function)
        except ModuleError as error:
            raise ModuleError(f"{self.path}: {error}") from None
        self.artifact.close()
        return module


def split(argument: str) -> tuple[str, str]:
    """Split `module.wasm#function`; without a function it is `_start`."""
    path, _, function = argument.partition("#")
    return path, function or "_start"


def compiled(spec: Spec, channel: socket.socket, cache_directory: int) -> Compiled:
    """Find the entrypoint and get its artifact: cached, or made by a compiler of the shim.

    Raises ModuleError naming the entrypoint, EOFError if the shim is gone.
    """
    engine = select(spec.annotations.get(ENGINE_ANNOTATION, ""))
    path, _ = split(spec.process.args[0])
    fd = _open(path, spec.process)
    try:
        check_header(os.pread(fd, HEADER, 0))
        module, digest = snapshot(fd)
    except ModuleError as error:
        raise ModuleError(f"{path}: {error}") from None
    finally:
        os.close(fd)
    try:
        artifact = ArtifactCache(cache_directory).load(key(digest, engine.fingerprint()))
        if artifact is None:
            artifact = _ask(channel, path, control.Compile(engine.name, digest), module)
    finally:
        os.close(module)
    return Compiled(path, engine, artifact)


def _ask(channel: socket.socket, path: str, request: control.Compile, module: int) -> Artifact:
    control.send(channel, request, [module])
    answer, fds = control.receive(channel)
    if isinstance(answer, control.Refused):
        raise ModuleError(f"{path}: {answer.reason}")
    if not isinstance(answer, control.Compiled):
        raise EOFError
    return Artifact(fds[0], answer.length)


def _open(path: str, process: Process) -> int:
    error: OSError | None = None
    for candidate in _candidates(path, process):
        try:
            # O_NONBLOCK: a FIFO in the entrypoint's place must not hold the guest up.
            fd = os.open(candidate, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as failure:
            error = error or failure
            continue
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        error = IsADirectoryError(0, "not a regular file")
    reason = error.strerror if error else "not found"
    raise ModuleError(f"entrypoint {path!r}: {reason}")


def _candidates(path: str, process: Process) -> Sequence[str]:
    """Where execvp(3) would look, and the working directory and `/`, as images expect."""
    if "/" in path:
        return [os.path.join(process.cwd, path)]
    search = next((v[5:] for v in process.env if v.startswith("PATH=")), _DEFAULT_PATH)
    directories = [*(directory or "." for directory in search.split(":")), ".", "/"]
    return [os.path.join(process.cwd, directory, path) for directory in directories]
