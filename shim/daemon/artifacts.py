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
from shim.engines.base import Engine, ModuleError
from shim.engines.cache import Artifact, ArtifactCache, key, open_directory


class Artifacts:
    """The artifact cache below a state directory."""

    def __init__(self, state_directory: str, log: Logger) -> None:
        """Open the cache. Raises OSError if its directory cannot be trusted."""
        self.directory = open_directory(os.path.join(state_directory, "artifacts"))
        self._cache = ArtifactCache(self.directory, report=log.warning)
        self._log = log
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def make(self, engine_name: str, digest: bytes, module: int) -> Artifact:
        """Compile the module in the sealed file `module` and keep the artifact.

        The caller closes what is returned. Raises ModuleError if the module is refused, OSError if
        the machine has no room for a compiler.
        """
        engine = select(engine_name)
        name = key(digest, engine.fingerprint())
        # Of several guests that ask for one module at the same time, the first has it compiled.
        async with self._locks.setdefault(name, asyncio.Lock()):
            return self._cache.load(name) or await self._compile(engine, name, module)

    async def _compile(self, engine: Engine, name: bytes, module: int) -> Artifact:
        outputs = [os.memfd_create("artifact", os.MFD_CLOEXEC)]
        try:
            outputs.insert(0, self._cache.draft())
        except OSError as error:
            self._log.warning("no room for an artifact on disk", error=error)
        compilation = compiler.start(engine, name, module, outputs)
        self._log.debug("compiling", artifact=name.hex(), engine=engine.name, pid=compilation.pid)
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
        return self._cache.store(name, compilation.result())
