"""Compiled modules for this shim's guests: the cache's writer, and its compilers. Runs in: shim.

Guests look into the cache themselves and ask here only for what it does not have.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Collection, Mapping
from weakref import WeakValueDictionary

from shim.compiler import process as compiler
from shim.daemon.log import Logger
from shim.engines import select
from shim.engines.base import ModuleError
from shim.engines.cache import Artifact, ArtifactCache, Refusal, open_directory, tenant
from shim.guest import control
from shim.guest.annotations import Annotations, is_crio
from shim.guest.origin import Origin
from shim.linux.readonly import open_readonly

_AT_ONCE = 2
"""Compilations of one shim. An engine takes all processors for one."""

_TENANT, _CRIO_TENANT = "io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"
"""Annotations with the Kubernetes namespace, of containerd's CRI and of CRI-O."""


class Artifacts:
    """The artifact cache below a state directory, for containers of one containerd namespace."""

    def __init__(
        self,
        state_directory: str,
        namespace: str,
        preferred_engine: str,
        log: Logger,
        unsafe_engines: Collection[str] = (),
    ) -> None:
        """Open the cache. Raises OSError if its directory cannot be trusted.

        The engines are the node's settings.
        """
        self._preferred_engine = preferred_engine
        self._unsafe_engines = unsafe_engines
        self._writable = open_directory(os.path.join(state_directory, "artifacts"))
        # What guests load from. One that is root could change what it holds open, or its times.
        flags = os.O_RDONLY | os.O_DIRECTORY
        self._directory = open_readonly(f"/proc/self/fd/{self._writable}", flags)
        self._namespace = namespace
        self._log = log
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def close(self) -> None:
        """Close the cache."""
        os.close(self._writable)
        os.close(self._directory)

    def origin(self, channel: socket.socket, owner: int, annotations: Annotations) -> Origin:
        """Return what a guest of `owner` takes along; `channel` is its end."""
        engines = self._preferred_engine, self._unsafe_engines
        return Origin(channel, self._directory, owner, annotations, *engines)

    def owner(self, annotations: Mapping[str, str]) -> int:
        """Return whose the artifacts of a container are: a Kubernetes namespace's, if it has one.

        Not the container's, or a pod that is made again and again would be many.
        """
        name = annotations.get(_CRIO_TENANT if is_crio(annotations) else _TENANT, "")
        return tenant(f"{self._namespace}/{name}")

    def _cache(self, owner: int) -> ArtifactCache:
        return ArtifactCache(self._writable, owner=owner, report=self._log.warning)

    def touch(self, owner: int, key: bytes, *, verified: bool) -> None:
        """Note that a guest has used an artifact, and `verified` it if it did."""
        self._cache(owner).touch(key, verified)

    async def make(self, owner: int, request: control.Compile, module: int) -> Artifact | Refusal:
        """Have the module in the sealed file `module` compiled, and keep the artifact.

        The caller closes the artifact. Raises ModuleError where a limit of time or memory was in
        the way, OSError if the machine has no room for a compiler.
        """
        kept = self._cache(owner)
        # Of several guests that ask for one module at the same time, the first has it compiled.
        async with self._locks.setdefault(request.key, asyncio.Lock()):
            known = kept.load(request.key)
            if known is None:
                async with self._slots:
                    known = await self._compile(owner, kept, request, module)
        return known if isinstance(known, Refusal) else self._readonly(known)

    def _readonly(self, artifact: Artifact) -> Artifact:
        """Open an artifact of the cache again, as guests get it."""
        if not artifact.name:
            return artifact
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(artifact.name, flags, dir_fd=self._directory)
        finally:
            artifact.close()
        return artifact._replace(fd=fd)

    def keep(self, owner: int, key: bytes, fd: int) -> None:
        """Keep a seccomp filter that a guest has compiled; takes `fd` over."""
        try:
            self._cache(owner).keep_filter(key, fd)
        except (ValueError, OSError) as error:
            self._log.warning("not kept", artifact=key.hex(), error=error)

    async def _compile(
        self, owner: int, kept: ArtifactCache, request: control.Compile, module: int
    ) -> Artifact | Refusal:
        engine = select(request.engine)
        limits = compiler.Limits().for_size(os.fstat(module).st_size)
        with contextlib.ExitStack() as drafts:
            outputs = [os.memfd_create("artifact", os.MFD_CLOEXEC)]
            try:
                outputs.insert(0, drafts.enter_context(kept.draft(limits.artifact)))
            except OSError as error:
                self._log.warning("no room for an artifact on disk", error=error)
            compilation = compiler.start(
                engine,
                request.key,
                module,
                outputs,
                owner=owner,
                function=request.function,
                memory_pages=request.memory_pages,
                checked=request.checked or engine.name not in self._unsafe_engines,
            )
            self._log.debug(
                "compiling", artifact=request.key.hex(), engine=engine.name, pid=compilation.pid
            )
            await self._ended(compilation)
            try:
                return kept.store(request.key, compilation.result())
            except compiler.Refused as refused:
                kept.refuse(request.key, str(refused))
                return Refusal(str(refused))

    async def _ended(self, compilation: compiler.Compilation) -> None:
        """Wait for the end, and bring it about when it is time, or if nobody wants it any more."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            timer.cancel()
            loop.remove_reader(compilation.pidfd)
            over.set_result(None)

        loop.add_reader(compilation.pidfd, end)
        # Here and not in the compiler, which may be broken, or stopped.
        timer = loop.call_later(compilation.time, compilation.expire)
        try:
            await asyncio.shield(over)
        except asyncio.CancelledError:
            over.add_done_callback(lambda _: _discard(compilation))
            compilation.kill()
            await asyncio.shield(over)
            raise


def _discard(compilation: compiler.Compilation) -> None:
    with contextlib.suppress(ModuleError, OSError):
        os.close(compilation.result())
