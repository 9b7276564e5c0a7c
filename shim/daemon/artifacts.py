"""Compiled modules for this shim's guests: the cache's writer, and its compilers. Runs in: shim.

Guests look into the cache themselves and ask here only for what it does not have.
"""

import asyncio
import contextlib
import os
from weakref import WeakValueDictionary

from shim import compiler
from shim.daemon.log import Logger
from shim.engines import select
from shim.engines.base import ModuleError
from shim.engines.cache import Artifact, ArtifactCache, Refusal, open_directory
from shim.guest import control
from shim.linux.readonly import open_readonly


class Artifacts:
    """The artifact cache below a state directory."""

    def __init__(self, state_directory: str, preferred_engine: str, log: Logger) -> None:
        """Open the cache. Raises OSError if its directory cannot be trusted."""
        self.preferred_engine = preferred_engine
        self._writable = open_directory(os.path.join(state_directory, "artifacts"))
        self._cache = ArtifactCache(self._writable, report=log.warning)
        # What guests load from. One that is root could change what it holds open, or its times.
        flags = os.O_RDONLY | os.O_DIRECTORY
        self.directory = open_readonly(f"/proc/self/fd/{self._writable}", flags)
        self._log = log
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        """Close the cache."""
        os.close(self._writable)
        os.close(self.directory)

    def touch(self, key: bytes, *, verified: bool) -> None:
        """Note that a guest has used an artifact, and `verified` it if it did."""
        self._cache.touch(key, verified)

    async def make(self, request: control.Compile, module: int) -> Artifact | Refusal:
        """Have the module in the sealed file `module` compiled, and keep the artifact.

        The caller closes the artifact. Raises ModuleError where a limit of time or memory was in
        the way, OSError if the machine has no room for a compiler.
        """
        # Of several guests that ask for one module at the same time, the first has it compiled.
        async with self._locks.setdefault(request.key, asyncio.Lock()):
            known = self._cache.load(request.key) or await self._compile(request, module)
        return known if isinstance(known, Refusal) else self._readonly(known)

    def _readonly(self, artifact: Artifact) -> Artifact:
        """Open an artifact of the cache again, as guests get it."""
        if not artifact.name:
            return artifact
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(artifact.name, flags, dir_fd=self.directory)
        finally:
            artifact.close()
        return artifact._replace(fd=fd)

    def keep(self, key: bytes, fd: int) -> None:
        """Keep a seccomp filter that a guest has compiled; takes `fd` over."""
        try:
            self._cache.keep_filter(key, fd)
        except (ValueError, OSError) as error:
            self._log.warning("not kept", artifact=key.hex(), error=error)

    async def _compile(self, request: control.Compile, module: int) -> Artifact | Refusal:
        engine = select(request.engine)
        outputs = [os.memfd_create("artifact", os.MFD_CLOEXEC)]
        try:
            outputs.insert(0, self._cache.draft())
        except OSError as error:
            self._log.warning("no room for an artifact on disk", error=error)
        compilation = compiler.start(
            engine, request.key, module, outputs, memory_pages=request.memory_pages
        )
        self._log.debug(
            "compiling", artifact=request.key.hex(), engine=engine.name, pid=compilation.pid
        )
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        loop.add_reader(compilation.pidfd, ended.set_result, None)
        try:
            await ended
        except asyncio.CancelledError:
            compilation.kill()
            with contextlib.suppress(ModuleError, OSError):
                os.close(compilation.result())
            raise
        finally:
            loop.remove_reader(compilation.pidfd)
        try:
            return self._cache.store(request.key, compilation.result())
        except compiler.Refused as refused:
            self._cache.refuse(request.key, str(refused))
            return Refusal(str(refused))
