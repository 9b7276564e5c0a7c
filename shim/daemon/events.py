"""Task events, published to containerd in the order they happened. Runs in: shim.

containerd may be restarting when a container exits, and an exit event that is lost leaves the
container "running" for ever: an event stays at the head of the queue until containerd has
acknowledged it.
"""

import asyncio
import time
from collections import deque

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from proto import events_pb2
from proto.envelope_pb2 import Envelope
from proto.events_service_pb2 import ForwardRequest
from shim.daemon.log import Logger
from shim.ttrpc import Client, Code, RpcError

_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_TOPICS: dict[type[Message], str] = {
    events_pb2.TaskCreate: "/tasks/create",
    events_pb2.TaskStart: "/tasks/start",
    events_pb2.TaskExit: "/tasks/exit",
    events_pb2.TaskDelete: "/tasks/delete",
    events_pb2.TaskExecAdded: "/tasks/exec-added",
    events_pb2.TaskExecStarted: "/tasks/exec-started",
    events_pb2.TaskOOM: "/tasks/oom",
    events_pb2.TaskPaused: "/tasks/paused",
    events_pb2.TaskResumed: "/tasks/resumed",
}
_CALL_TIMEOUT = 5.0
_RETRY = (0.05, 2.0)
"""First and longest pause, in seconds, between attempts to reach containerd."""


def timestamp(nanoseconds: int) -> Timestamp:
    """Nanoseconds since the epoch, as protobuf has them."""
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


class Publisher:
    """Forwards events to the containerd that listens at `address` (a unix socket path)."""

    def __init__(self, address: str, namespace: str, log: Logger) -> None:
        self._address = address.removeprefix("unix://")
        self._namespace = namespace
        self._log = log
        self._queue: deque[ForwardRequest] = deque()
        self._client: Client | None = None
        self._sender: asyncio.Task[None] | None = None

    def publish(self, event: Message) -> None:
        """Queue one event and, with an idle connection, put it on the wire at once."""
        envelope = Envelope(
            timestamp=timestamp(time.time_ns()),
            namespace=self._namespace,
            topic=_TOPICS[type(event)],
            # Not Any.Pack(): containerd's type URLs are the bare message name.
            event=Any(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString()),
        )
        self._queue.append(ForwardRequest(envelope=envelope))
        if self._sender is None:
            self._sender = asyncio.create_task(self._drain())

    async def flush(self, timeout: float) -> None:
        """Wait until everything is acknowledged, or `timeout` seconds."""
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=timeout)
        if self._queue:
            self._log.error("events lost: containerd is away", count=len(self._queue))

    async def _drain(self) -> None:
        pause, longest = _RETRY
        while self._queue:
            try:
                if self._client is None or self._client.closed:
                    self._client = await Client.connect(self._address)
                await self._client.call(
                    _SERVICE, "Forward", self._queue[0], Empty, timeout=_CALL_TIMEOUT
                )
            except (OSError, RpcError) as error:
                if isinstance(error, RpcError) and error.code not in (
                    Code.UNAVAILABLE,
                    Code.DEADLINE_EXCEEDED,
                    Code.CANCELLED,
                ):
                    # containerd has seen it and does not want it: repeating would block all that
                    # follow.
                    self._log.error(
                        "event refused", topic=self._queue.popleft().envelope.topic, error=error
                    )
                    continue
                self._log.debug("containerd is away, event waits", error=error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
                continue
            self._queue.popleft()
            pause = _RETRY[0]
        self._sender = None
