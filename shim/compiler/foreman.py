"""Who has a module compiled, and keeps the artifact, whatever becomes of who wanted it.

Runs in: foreman, a fork of the shim for one compilation; `start` in the shim.

A compilation may take longer than a client waits, and than its pod lives: so a shim, which ends
with the pod, is not the one to see it through. A foreman is privileged as its shim is, and has as
little to do with the module: it starts the compiler, waits, writes to the cache, tells the shim if
that is still there, and ends. It ends the compiler when its time is up, and when it ends itself the
kernel ends the compiler.

If that takes more than a moment it moves to a cgroup below that of all compilers
(`shim.compiler.cgroup`): a shim may live in its pod's, and who is left there when the pod goes is
killed. A small module would only be kept waiting by the move.
"""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import ExitStack, suppress
from typing import Final

from shim.compiler import cgroup, process
from shim.compiler.claims import Claim
from shim.compiler.planner import PLANNER
from shim.daemon.log import Logger
from shim.engines.base import Compiler, ModuleError, TryAgainError
from shim.engines.cache import Artifact, ArtifactCache
from shim.guest import control
from shim.linux import clone, files
from shim.linux.title import set_title

TITLE: Final = "pywasm-foreman"
_MOMENT: Final = 500  # milliseconds


class Job:
    """What is to be compiled, for whom, and where the artifact is to be kept."""

    def __init__(
        self,
        engine: Compiler,
        request: control.Compile,
        module: int,
        owner: int,
        cache: ArtifactCache,
        claim: Claim,
        *,
        checked: bool,
        log: Logger,
    ) -> None:
        """`owner`, `module` and `checked` as in `process.start`; the claim is to the artifact."""
        self._engine = engine
        self._request = request
        self._module = module
        self._owner = owner
        self._cache = cache
        self._claim = claim
        self._checked = checked
        self._log = log

    def start(self, channel: socket.socket) -> clone.Child:
        """Clone a foreman for it, who says on `channel` what one answers Compile, or Failed.

        The claim is the foreman's, and over with it. The conditions and errors of `clone` apply.
        """
        return clone.clone(lambda: self._live(channel))

    def _live(self, channel: socket.socket) -> None:
        os.setsid()
        own = (self._module, self._cache.directory, self._claim.fd, self._claim.directory)
        files.keep_only(fd for fd in (*own, channel.fileno(), self._log.fileno()) if fd >= 0)
        set_title(TITLE, TITLE, self._engine.name, self._request.key.hex())
        began = time.monotonic()
        answer, fds = self._make()
        with suppress(OSError):  # nobody may be there any more
            control.send(channel, answer, fds)
        seconds = round(time.monotonic() - began, 1)
        name = self._request.key.hex()
        if isinstance(answer, control.Compiled):
            self._log.info("compiled", artifact=name, seconds=seconds)
        else:
            self._log.info("not compiled", artifact=name, seconds=seconds, reason=answer.reason)

    def _make(self) -> tuple[control.Compiled | control.Refused | control.Failed, list[int]]:
        """Have it compiled and kept; returns the answer, and the descriptors that go with it."""
        verdict = None
        try:
            artifact = self._compile()
            return control.Compiled(artifact.length, artifact.name), [artifact.fd]
        except process.UnfitError as error:
            return control.Refused(str(error)), []  # of this function: others ask for themselves
        except ModuleError as error:
            verdict = control.Refused(str(error), isinstance(error, TryAgainError))
            if isinstance(error, process.Refused):
                self._cache.refuse(self._request.key, str(error))
            return verdict, []
        except OSError as error:
            return control.Failed(control.reason(error), False, error.errno or 0), []
        finally:
            self._claim.settle(verdict)

    def _compile(self) -> Artifact:
        """Return the artifact, kept. Raises ModuleError, OSError as `Compilation.result`."""
        request = self._request
        if request.engine == PLANNER.name:
            PLANNER.prepare()
        limits = process.Limits().for_size(os.fstat(self._module).st_size)
        with ExitStack() as drafts:
            outputs = [os.memfd_create("artifact", os.MFD_CLOEXEC)]
            try:
                outputs.insert(0, drafts.enter_context(self._cache.draft(limits.artifact)))
            except OSError as error:
                self._log.warning("no room for an artifact on disk", error=error)
            compilation = process.start(
                self._engine,
                request.key,
                self._module,
                outputs,
                owner=self._owner,
                function=request.function,
                memory_pages=request.memory_pages,
                part=request.part,
                checked=self._checked,
            )
            ended = select.poll()
            ended.register(compilation.pidfd, select.POLLIN)
            if not ended.poll(_MOMENT):
                with suppress(OSError):  # where there are none, or none that we may make
                    cgroup.enter_foremen()
                # Here and not in the compiler, which may be broken, or stopped.
                if not ended.poll(compilation.time * 1000 - _MOMENT):
                    compilation.expire()
            return self._cache.store(request.key, compilation.result())
