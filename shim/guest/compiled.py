"""From an open entrypoint to what can be run. Runs in: guest, inside its rootfs.

The bytes come from the image. A guest that still has privileges hashes them and hands them on, but
does not parse them: compilers that have none make the artifacts, and only artifacts of the cache
are loaded. Of a component those are a plan, and the code of each core module that the plan needs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple

from shim.compiler.planner import PLANNER
from shim.component.parts import HEADER as PARTS_HEADER
from shim.component.parts import Part, parts_of
from shim.engines import candidates, engines, flaws
from shim.engines.base import (
    HEADER,
    Compiler,
    Engine,
    Module,
    ModuleError,
    TryAgainError,
    check_header,
    is_component,
)
from shim.engines.cache import Artifact, Refusal, key
from shim.engines.snapshot import digest_now, snapshot
from shim.guest import control
from shim.guest.component import Component
from shim.guest.entrypoint import Found
from shim.guest.origin import Origin

_TEXT_HEADER: Final = 4096  # bytes; a comment in front of a text may be long


class Compiled(NamedTuple):
    """The entrypoint's artifacts, the engine that they are for, and why it is that one.

    That of a module is one; those of a component are of its core modules, and there is a plan.
    """

    path: str
    engine: Engine
    artifacts: Sequence[Artifact]
    plan: Artifact | None
    reason: str

    @property
    def can_be_mapped(self) -> bool:
        """Whether `load` could open an artifact by its name."""
        return self.engine.maps and any(artifact.name for artifact in self.artifacts)

    @property
    def fds(self) -> Iterator[int]:
        """The descriptors that `load` needs."""
        for artifact in self._all():
            yield artifact.fd

    def _all(self) -> Iterator[Artifact]:
        yield from self.artifacts
        if self.plan is not None:
            yield self.plan

    def load(self, function: str, *, mapped: bool) -> Module:
        """Load the program, of which `function` can be run, and close the artifacts.

        `mapped`, by their names in the working directory, they are shared with all who do so.
        Executes nothing of it. Raises ModuleError naming the entrypoint.
        """
        try:
            modules = [self._load(artifact, mapped=mapped) for artifact in self.artifacts]
            if self.plan is None:
                (module,) = modules
            else:
                module = Component(self.plan.read(), modules, self.engine)
            module.check(function)
        except ModuleError as error:
            raise ModuleError(f"{self.path}: {error}") from None
        for artifact in self._all():
            artifact.close()
        return module

    def _load(self, artifact: Artifact, *, mapped: bool) -> Module:
        # It may have been evicted since, and then has no name any more.
        if mapped and artifact.name and os.path.exists(artifact.name):
            return self.engine.load_file(artifact.name)
        return self.engine.load(artifact.read())


class _Source:
    """An entrypoint, and whom to ask for what is made of it."""

    def __init__(self, origin: Origin, fd: int) -> None:
        self._origin = origin
        self._fd = fd
        self._snapshot: int | None = None
        self._digest = digest_now(fd)
        self._cache = origin.cache()

    def close(self) -> None:
        if self._snapshot is not None:
            os.close(self._snapshot)

    def get(
        self,
        compiler: Compiler,
        variant: str,
        *,
        function: str | None = None,
        pages: int | None = None,
        checked: bool = True,
        part: Part | None = None,
    ) -> Artifact:
        """Return what the cache has, or has it made.

        Raises ModuleError, TryAgainError, EOFError.
        """
        variant = compiler.fingerprint() + variant
        found: Artifact | Refusal | control.Refused | None
        found = self._cache.load(key(self._digest, variant))
        if found is None:
            if self._snapshot is None:
                self._snapshot, self._digest = snapshot(self._fd)
            name = key(self._digest, variant)
            request = control.Compile(compiler.name, name, function, pages, checked, part)
            found = _ask(self._origin.channel, request, self._snapshot)
        if isinstance(found, Artifact):
            return found
        if isinstance(found, control.Refused) and found.again:
            raise TryAgainError(found.reason)
        raise ModuleError(found.reason)


def compiled(origin: Origin, entrypoint: Found) -> Compiled:
    """Get the artifacts of the open entrypoint, which is closed: cached, or made by compilers.

    Where the container names no engine, the first one that takes all of it is chosen, beginning
    with the preferred one. Raises ModuleError naming the entrypoint, TryAgainError if one engine
    may take it the next time, EOFError if the shim is gone.
    """
    path, named, fd, _ = entrypoint
    function: str | None = named
    annotations, preferred = origin.annotations, origin.preferred_engine
    refusals: dict[str, str] = {}
    kind = ModuleError
    with ExitStack() as closing:
        closing.callback(os.close, fd)
        plan: Artifact | None = None
        parts: list[Part] | list[None] = [None]
        try:
            component = _is_component(fd, path)
            source = _Source(origin, fd)
            closing.callback(source.close)
            if component:
                function = None
                plan = source.get(PLANNER, "")
                parts = parts_of(os.pread(plan.fd, PARTS_HEADER, 0))
        except ModuleError as error:
            raise type(error)(f"{path}: {error}") from None
        for engine in candidates(annotations.engine, preferred):
            try:
                artifacts = _artifacts(source, origin, engine, function, parts)
            except ModuleError as refusal:
                refusals[engine.name] = str(refusal)
                if isinstance(refusal, TryAgainError):
                    kind = TryAgainError
            else:
                reason = _reason(annotations.engine, preferred, engine, refusals)
                return Compiled(path, engine, artifacts, plan, reason)
    reasons = set(refusals.values())
    told = reasons.pop() if len(reasons) == 1 else f"no engine takes it: {_listed(refusals)}"
    raise kind(f"{path}: {told}")


def _is_component(fd: int, path: str) -> bool:
    """Tell whether a file is a component rather than a module. ModuleError if it is neither."""
    text = path.endswith(".wat")
    head = os.pread(fd, _TEXT_HEADER if text else HEADER, 0)
    check_header(head, text=text, component=True)
    return is_component(head)


def _artifacts(
    source: _Source,
    origin: Origin,
    engine: Engine,
    function: str | None,
    parts: Sequence[Part | None],
) -> list[Artifact]:
    """Get all that one engine makes of it. Raises ModuleError, TryAgainError, EOFError."""
    annotations = origin.annotations
    pages = annotations.memory_pages
    checked = annotations.engine not in origin.unsafe_engines
    limit = f" memory {pages}" if pages else ""
    condition = flaws.condition(engine, checked=checked) + limit
    with ExitStack() as failed:
        artifacts = []
        for part in parts:
            of = "" if part is None else f" part {part.offset}+{part.length}"
            artifact = source.get(
                engine, condition + of, function=function, pages=pages, checked=checked, part=part
            )
            failed.callback(artifact.close)
            artifacts.append(artifact)
        failed.pop_all()
    return artifacts


def _listed(refusals: Mapping[str, str]) -> str:
    return "; ".join(f"{engine}: {reason}" for engine, reason in refusals.items())


def _reason(demanded: str, preferred: str, engine: Engine, refusals: Mapping[str, str]) -> str:
    if refusals:
        return f"refused by {_listed(refusals)}"
    if demanded:
        return "the container's annotation"
    if engine.name == preferred:
        return "the node's configuration"
    return "preferred" if len(engines()) > 1 else "the only one here"


def _ask(
    channel: socket.socket, request: control.Compile, module: int
) -> Artifact | control.Refused:
    control.send(channel, request, [module])
    answer, fds = control.receive(channel)
    if isinstance(answer, control.Refused):
        return answer
    if not isinstance(answer, control.Compiled):
        raise EOFError
    return Artifact(fds[0], answer.length, answer.name)
