"""The peer here is our own ttrpc server: containerd itself can hardly be made to fail on cue.

tests/integration/test_restart.py has the real one go away and come back.
"""

import asyncio
import socket
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from proto.events_pb2 import TaskCreate, TaskDelete, TaskExit, TaskStart
from proto.events_service_pb2 import ForwardRequest
from shim.daemon.events import Publisher
from shim.daemon.log import Logger
from shim.ttrpc import Code, Context, Method, RpcError, Server

LIFE = [
    TaskCreate(container_id="x"),
    TaskStart(container_id="x"),
    TaskExit(container_id="x"),
    TaskDelete(container_id="x"),
]


class Containerd:
    """Collects events; refuses those with a topic in `refuse`."""

    def __init__(self, path: Path, *refuse: str) -> None:
        self.path = path
        self.refuse = refuse
        self.seen: list[str] = []
        self.last = ForwardRequest()

    async def __aenter__(self) -> "Containerd":
        service = {"Forward": Method(ForwardRequest, self._forward)}
        self._server = Server({"containerd.services.events.ttrpc.v1.Events": service})
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        self._serving = asyncio.create_task(self._server.serve(listener))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed(0)
        await self._serving
        self.path.unlink()

    async def _forward(self, request: ForwardRequest, _: Context) -> Empty:
        self.last = request
        self.seen.append(request.envelope.topic)
        if request.envelope.topic in self.refuse:
            raise RpcError(Code.INVALID_ARGUMENT, "no such topic")
        return Empty()


def publisher(path: Path) -> Publisher:
    return Publisher(str(path), "k8s.io", Logger(str(path.parent), debug=True))


TOPICS = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


async def test_events_arrive_in_order(tmp_path: Path) -> None:
    async with Containerd(tmp_path / "events") as containerd:
        events = publisher(containerd.path)
        for event in LIFE:
            events.publish(event)
        await events.flush(5)
        assert containerd.seen == TOPICS
        envelope = containerd.last.envelope
        assert envelope.namespace == "k8s.io"
        assert envelope.event.type_url == "containerd.events.TaskDelete"
        assert TaskDelete.FromString(envelope.event.value).container_id == "x"
        assert envelope.timestamp.seconds > 0


async def test_events_wait_for_containerd(tmp_path: Path) -> None:
    containerd = Containerd(tmp_path / "events")
    events = publisher(containerd.path)
    for event in LIFE[:2]:
        events.publish(event)
    await asyncio.sleep(0.2)
    async with containerd:
        for event in LIFE[2:]:
            events.publish(event)
        await events.flush(5)
        assert containerd.seen == TOPICS


async def test_events_survive_containerds_restart(tmp_path: Path) -> None:
    containerd = Containerd(tmp_path / "events")
    events = publisher(containerd.path)
    async with containerd:
        events.publish(LIFE[0])
        await events.flush(5)
    for event in LIFE[1:]:
        events.publish(event)
    await asyncio.sleep(0.1)
    async with containerd:
        await events.flush(5)
    assert containerd.seen == TOPICS


async def test_an_event_that_containerd_refuses_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async with Containerd(tmp_path / "events", "/tasks/create") as containerd:
        events = publisher(containerd.path)
        for event in LIFE:
            events.publish(event)
        await events.flush(5)
        assert containerd.seen == TOPICS
