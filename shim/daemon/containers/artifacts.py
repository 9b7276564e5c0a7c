"""Compiled modules for this shim's guests, and who makes them. Runs in: shim.

Guests look into the cache themselves and ask here only for what it does not have. A foreman has it
made (`shim.compiler.foreman`), for all who want it.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Collection, Iterator, Mapping

from shim.compiler import claims
from shim.compiler.foreman import Job
from shim.compiler.planner import PLANNER
from shim.daemon.log import Logger, timestamp
from shim.engines import select
from shim.engines.base import ModuleError, TryAgainError
from shim.engines.cache import Artifact, ArtifactCache, Refusal, open_directory, tenant
from shim.guest import control
from shim.guest.annotations import Annotations, is_crio
from shim.guest.origin import Origin
from shim.linux.readonly import open_readonly
from shim.linux.reaping import ended

_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
"""Seconds between two looks at what others are having compiled."""
_LATE = 5
"""Looks after which it is worth to be told of."""

_TENANT, _CRIO_TENANT = "io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"
"""Annotations with the Kubernetes namespace, of containerd's CRI and of CRI-O."""


class Artifacts:
    """The artifact cache below a state directory, for containers of one containerd namespace.

    What is being compiled stands in the run directory, to which shims can always write.
    """

    def __init__(
        self,
        state_directory: str,
        run_directory: str,
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
        self._claims = os.path.join(run_directory, "compiling")
        self._foremen: set[asyncio.Future[int]] = set()

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

    async def make(self, owner: int, request: control.Compile, module: int) -> Artifact:
        """Have the module in the sealed file `module` compiled, and keep the artifact.

        Whoever is cancelled does not wait any more; the compilation goes on. The caller closes the
        artifact. Raises ModuleError, TryAgainError as `Compilation.result`; OSError if the machine
        has no room for a compiler.
        """
        kept = self._cache(owner)
        directory = open_directory(self._claims)
        try:
            pauses = enumerate(_pauses())
            while True:
                claimed = claims.claim(directory, request.key, owner)
                # After that: if nobody makes it any more, it may be there now.
                known = kept.load(request.key)
                if known is not None:
                    _give_back(claimed)
                    if isinstance(known, Refusal):
                        raise ModuleError(known.reason)
                    return self._readonly(known)
                if isinstance(claimed, claims.Claim):
                    return await self._compile(owner, kept, request, module, claimed)
                if claimed is not None:
                    await self._join(request, claimed)
                    continue
                number, pause = next(pauses)
                if number == _LATE:
                    self._log.info(
                        "waits to be compiled, behind others", artifact=request.key.hex()
                    )
                await asyncio.sleep(pause)
        finally:
            os.close(directory)

    async def _join(self, request: control.Compile, running: claims.Running) -> None:
        """Wait until somebody else's compilation is over. Raises ModuleError if it came to that."""
        since = timestamp(running.since)
        self._log.info("is being compiled already", artifact=request.key.hex(), since=since)
        try:
            for pause in _pauses():
                if running.is_over():
                    break
                await asyncio.sleep(pause)
            verdict = running.verdict()
        finally:
            running.close()
        if verdict is not None:
            raise _error(verdict)

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
        self,
        owner: int,
        kept: ArtifactCache,
        request: control.Compile,
        module: int,
        claim: claims.Claim,
    ) -> Artifact:
        """Have a foreman see to it, and wait for what he says."""
        with contextlib.closing(claim), contextlib.ExitStack() as failed:
            failed.callback(claim.settle)
            engine = PLANNER if request.engine == PLANNER.name else select(request.engine)
            checked = request.checked or engine.name not in self._unsafe_engines
            job = Job(engine, request, module, owner, kept, claim, checked=checked, log=self._log)
            ours, theirs = control.pair()
            failed.callback(ours.close)
            with theirs:
                foreman = job.start(theirs)
            failed.pop_all()
        self._log.info(
            "compiling",
            artifact=request.key.hex(),
            engine=engine.name,
            bytes=os.fstat(module).st_size,
            foreman=foreman.pid,
        )
        # Not cancelled with who waits: then he would be ended.
        reaping = asyncio.ensure_future(ended(foreman))
        self._foremen.add(reaping)
        reaping.add_done_callback(self._foremen.discard)
        with ours:
            return await self._answer(ours)

    async def _answer(self, channel: socket.socket) -> Artifact:
        """Wait for what a foreman says. Raises ModuleError, OSError."""
        loop, said_something = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(channel, said_something.set)
        try:
            await said_something.wait()
        finally:
            loop.remove_reader(channel)
        try:
            said, fds = control.receive(channel)
        except EOFError:
            raise TryAgainError("the compilation was ended from outside") from None
        if isinstance(said, control.Compiled):
            return self._readonly(Artifact(fds[0], said.length, said.name))
        if isinstance(said, control.Failed):
            raise OSError(said.number, said.reason)
        assert isinstance(said, control.Refused)
        raise _error(said)


def _pauses() -> Iterator[float]:
    pause = _PAUSE
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE)


def _error(verdict: control.Refused) -> ModuleError:
    return (TryAgainError if verdict.again else ModuleError)(verdict.reason)


def _give_back(claimed: claims.Claim | claims.Running | None) -> None:
    if isinstance(claimed, claims.Claim):
        claimed.settle()
    if claimed is not None:
        claimed.close()
