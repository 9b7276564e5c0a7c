"""Task events, published to containerd in the order they happened. Runs in: shim.

containerd may be restarting when a container exits, and an exit event that is lost leaves the
container "running" for ever: an event stays at the head of the queue until containerd has
acknowledged it. It is sent again only if the connection was lost before that, so it comes twice
only where containerd ended between taking it and saying so.
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
_NEVER_DROPPED = (events_pb2.TaskExit, events_pb2.TaskDelete)
"""No more of them than containers and execs: they need no limit."""
_LIMIT = 1000
"""So many events of other kinds may wait. A container that runs out of memory again and again makes
them without end, also while containerd is away."""
_AWAY = (Code.UNAVAILABLE, Code.CANCELLED)
"""What calls end with that containerd has not taken: it has gone, or is about to go."""
_RETRY = (0.05, 1.0)
"""First and longest pause, in seconds, between attempts to reach containerd; the longest is well
within the time that a shim takes for its last events."""


_NEVER = Timestamp(seconds=-62135596800)
"""The first moment of the year 1, which Go takes for no time at all."""


def timestamp(nanoseconds: int) -> Timestamp:
    """Nanoseconds since the epoch, as protobuf has them; 0 is never."""
    if nanoseconds == 0:
        return _NEVER
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


class Publisher:
    """Forwards events to the containerd that listens at `address` (a unix socket path).

    Without an address nobody wants them: CRI-O waits for what it has started instead.
    """

    def __init__(self, address: str, namespace: str, log: Logger) -> None:
        self._address = address.removeprefix("unix://")
        self._namespace = namespace
        self._log = log
        self._queue: deque[ForwardRequest] = deque()
        self._dropped = 0
        self._client: Client | None = None
        self._sender: asyncio.Task[None] | None = None

    def publish(self, event: Message) -> None:
        """Queue one event and, with an idle connection, put it on the wire at once."""
        if not self._address:
            return
        if len(self._queue) >= _LIMIT and not isinstance(event, _NEVER_DROPPED):
            if not self._dropped:
                self._log.error("too many events wait for containerd: dropping", limit=_LIMIT)
            self._dropped += 1
            return
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
                # Without a time limit: a socket loses nothing while it is open. A containerd that
                # is slow to answer has the event, and would get it twice.
                await self._client.call(_SERVICE, "Forward", self._queue[0], Empty)
            except (OSError, RpcError) as error:
                if isinstance(error, RpcError) and error.code not in _AWAY:
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
        if self._dropped:
            self._log.error("events dropped", count=self._dropped)
            self._dropped = 0
        self._sender = None
