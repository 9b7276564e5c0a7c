"""The peer here is our own ttrpc server: containerd itself can hardly be made to fail on cue.

tests/integration/test_restart.py has the real one go away and come back.
"""

import asyncio
import os
import socket
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from proto.events_pb2 import TaskCreate, TaskDelete, TaskExit, TaskOOM, TaskStart
from proto.events_service_pb2 import ForwardRequest
from shim.daemon.api import events as events_module
from shim.daemon.api.events import Publisher
from shim.daemon.log import Logger
from shim.ttrpc import Code, Context, Method, RpcError, Server
from tests.shim.daemon.patience import patiently

LIFE = [
    TaskCreate(container_id="x"),
    TaskStart(container_id="x"),
    TaskExit(container_id="x"),
    TaskDelete(container_id="x"),
]


class Containerd:
    """Collects events; refuses those with a topic in `refuse`, and answers while `open` is set."""

    def __init__(self, path: Path, *refuse: str) -> None:
        self.path = path
        self.refuse = refuse
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.last = ForwardRequest()
        self.deadlines: set[float | None] = set()
        self.open = asyncio.Event()
        self.open.set()

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

    async def _forward(self, request: ForwardRequest, context: Context) -> Empty:
        self.last = request
        self.seen.append(request.envelope.topic)
        self.ids.append(TaskExit.FromString(request.envelope.event.value).container_id)
        self.deadlines.add(context.deadline)
        await self.open.wait()
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


async def test_each_event_comes_once_and_in_order_however_often_containerd_restarts(
    tmp_path: Path,
) -> None:
    containerd = Containerd(tmp_path / "events")
    events = publisher(containerd.path)
    names = [f"x{number}" for number in range(60)]
    for start in range(0, len(names), 20):
        async with containerd:
            for name in names[start : start + 10]:
                events.publish(TaskExit(container_id=name))
            async for _ in patiently():
                if len(containerd.ids) >= start + 5:  # it ends with some on their way
                    break
        for name in names[start + 10 : start + 20]:
            events.publish(TaskExit(container_id=name))
        await asyncio.sleep(0.06)
    async with containerd:
        await events.flush(5)
    assert containerd.ids == names


async def test_an_event_comes_again_if_containerd_died_before_it_said_thanks(
    tmp_path: Path,
) -> None:
    containerd = Containerd(tmp_path / "events")
    events = publisher(containerd.path)
    async with containerd:
        containerd.open.clear()
        for name in "abc":
            events.publish(TaskExit(container_id=name))
        async for _ in patiently():
            if containerd.ids:
                break
        for connection in list(containerd._server._connections):
            connection.abort()
    containerd.open.set()
    async with containerd:
        await events.flush(5)
    # Nobody can know whether it counts: twice is better than never.
    assert containerd.ids == ["a", "a", "b", "c"]


async def test_a_slow_containerd_is_not_told_twice(tmp_path: Path) -> None:
    async with Containerd(tmp_path / "events") as containerd:
        events = publisher(containerd.path)
        containerd.open.clear()
        events.publish(TaskExit(container_id="a"))
        events.publish(TaskExit(container_id="b"))
        await asyncio.sleep(0.3)
        assert containerd.ids == ["a"]
        containerd.open.set()
        await events.flush(5)
        assert containerd.ids == ["a", "b"]
        assert containerd.deadlines == {None}


async def test_what_waits_is_bounded_and_no_end_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_LIMIT", 10)
    log = Log(tmp_path)
    containerd = Containerd(tmp_path / "events")
    events = publisher(containerd.path)
    for _ in range(100):
        events.publish(TaskOOM(container_id="x"))
    events.publish(TaskExit(container_id="x"))
    events.publish(TaskOOM(container_id="y"))
    events.publish(TaskDelete(container_id="x"))
    async with containerd:
        await events.flush(5)
        assert containerd.seen == ["/tasks/oom"] * 10 + ["/tasks/exit", "/tasks/delete"]
        lines = log.lines()
        assert sum("dropping" in line for line in lines) == 1
        assert any("count=91" in line for line in lines)
        events.publish(TaskOOM(container_id="x"))
        await events.flush(5)
        assert containerd.seen[-1] == "/tasks/oom"


async def test_events_that_nobody_wants_do_not_wait_for_anybody(tmp_path: Path) -> None:
    log = Log(tmp_path)
    events = Publisher("", "default", Logger(str(tmp_path), debug=True))
    others = asyncio.all_tasks()
    for event in LIFE:
        events.publish(event)
    assert asyncio.all_tasks() == others
    await events.flush(5)
    assert log.lines() == []


class Log:
    """The FIFO that a shim's log goes to."""

    def __init__(self, bundle: Path) -> None:
        os.mkfifo(bundle / "log")
        self._fd = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)

    def lines(self) -> list[str]:
        try:
            return os.read(self._fd, 1 << 16).decode().splitlines()
        except BlockingIOError:
            return []
        finally:
            os.close(self._fd)
