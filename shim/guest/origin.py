"""What a guest has from its shim. Runs in: guest."""

import socket
from collections.abc import Collection
from dataclasses import dataclass

from shim.engines.cache import ArtifactCache
from shim.guest import control
from shim.guest.annotations import Annotations


@dataclass(frozen=True, slots=True)
class Origin:
    """What every guest takes along from its shim's memory."""

    channel: socket.socket
    artifacts: int
    """Directory of the artifact cache."""
    owner: int
    """Who uses it; see `shim.engines.cache`."""
    annotations: Annotations
    preferred_engine: str
    unsafe_engines: Collection[str]
    """Those that may be demanded even for a module that they are known to get wrong."""

    def cache(self) -> ArtifactCache:
        """Return the cache, which only the shim may change."""

        def touch(key: bytes, verified: bool) -> None:
            control.send(self.channel, control.Touch(key, verified))

        return ArtifactCache(self.artifacts, owner=self.owner, touch=touch)
