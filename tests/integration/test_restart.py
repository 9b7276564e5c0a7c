"""containerd goes away and comes back; containers, and the news of their end, outlast that."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from proto import task_pb2
from proto.api import tasks_pb2
from tests.integration import images, specs
from tests.integration.client import Client, Events
from tests.integration.conftest import Containers, program
from tests.integration.containerd import PYWASM, Containerd, eventually

PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"


@pytest.fixture
def own(containerd: Containerd, image: images.Image) -> Iterator[Containerd]:
    """A containerd for one test, of the same version as the others' one."""
    with Containerd(containerd.bin_dir) as daemon:
        daemon.load(image.tar)
        yield daemon
        assert daemon.leftovers() == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_restart(own: Containerd, image: images.Image, runtime: str, how: signal.Signals) -> None:
    client = Client(own)
    containers = Containers(client, image)
    container = containers.new(runtime, specs.usual(program(runtime, "idle")))
    pid = container.run()
    own.end(how)
    assert os.path.exists(f"/proc/{pid}")
    own.start()
    client.reconnect()
    state = client.state(container.name)
    assert (state.status, state.pid) == (task_pb2.RUNNING, pid)
    client.kill(container.name)
    assert client.wait(container.name) == 137
    client.delete(container.name)
    containers.remove()
    client.close()


def test_exit_while_away(own: Containerd, image: images.Image) -> None:
    """The exit event comes as soon as there is somebody to take it."""
    client = Client(own)
    containers = Containers(client, image)
    container = containers.new(PYWASM, specs.usual("/idle.wasm"))
    pid = container.run()

    own.end()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    # The event would now race our subscription: nobody takes events until we listen.
    own.start(events_at=own.address + ".later")
    client.reconnect()
    events = Events(client)
    own.open_events()

    seen = events.until(container.name, "/tasks/exit")
    # 1.6 then keeps the ended task for its client to delete; 1.7 deletes it at its start, and may
    # have done so by now.
    life = [("/tasks/exit", 137), ("/tasks/delete", 137)]
    assert [(topic, event.exit_status) for topic, event in seen] in (life[:1], life)
    events.close()
    containers.remove()
    client.close()


def execute(client: Client, name: str) -> int:
    """Start an exec `e` that runs until it is killed; return its pid."""
    process = AnyMessage(type_url=PROCESS_TYPE, value=b'{"args": ["/idle.wasm"], "cwd": "/"}')
    request = tasks_pb2.ExecProcessRequest(container_id=name, exec_id="e", spec=process)
    client.tasks.Exec(request)
    return int(client.tasks.Start(tasks_pb2.StartRequest(container_id=name, exec_id="e")).pid)


def test_lives_that_go_on_and_end_while_away(own: Containerd, image: images.Image) -> None:
    """States, exit statuses and times are found again, and each end is told of once."""
    client = Client(own)
    containers = Containers(client, image)
    made = {
        kind: containers.new(PYWASM, specs.usual("/idle.wasm")).name
        for kind in ("runs", "paused", "executes", "executed", "ended", "ended too")
    }
    names = {name: kind for kind, name in made.items()}
    pids = {names[c.name]: c.run() for c in containers._made}
    client.tasks.Pause(tasks_pb2.PauseTaskRequest(container_id=made["paused"]))
    execs = {kind: execute(client, made[kind]) for kind in ("executes", "executed")}

    own.end(signal.SIGKILL)
    before = time.time_ns()
    victims = {
        pids["ended"]: signal.SIGTERM,
        pids["ended too"]: signal.SIGKILL,
        execs["executed"]: signal.SIGTERM,
    }
    for pid, signum in victims.items():
        os.kill(pid, signum)
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in victims))
    after = time.time_ns()
    own.start(events_at=own.address + ".later")
    client.reconnect()
    events = Events(client)
    own.open_events()

    # What went on.
    running, paused = task_pb2.RUNNING, task_pb2.PAUSED
    for kind, status in (("runs", running), ("paused", paused), ("executes", running)):
        state = client.state(made[kind])
        assert (state.status, state.pid) == (status, pids[kind])
    client.tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id=made["paused"]))
    assert client.state(made["paused"]).status == running
    request = tasks_pb2.GetRequest(container_id=made["executes"], exec_id="e")
    process = client.tasks.Get(request).process
    assert (process.status, process.pid) == (running, execs["executes"])
    client.tasks.Kill(
        tasks_pb2.KillRequest(container_id=made["executes"], exec_id="e", signal=signal.SIGTERM)
    )
    for kind in ("executes", "executed"):
        waited = client.tasks.Wait(tasks_pb2.WaitRequest(container_id=made[kind], exec_id="e"))
        assert waited.exit_status == 143
    assert before <= waited.exited_at.ToNanoseconds() <= after

    # What ended, of which 1.7 then deletes the containers.
    for kind, exit_status in (("ended", 143), ("ended too", 137)):
        (exit_event, *_) = (
            e for t, e in events.until(made[kind], "/tasks/exit") if t == "/tasks/exit"
        )
        assert (exit_event.id, exit_event.pid) == (made[kind], pids[kind])
        assert exit_event.exit_status == exit_status
        assert before <= exit_event.exited_at.ToNanoseconds() <= after

    containers.remove()
    for kind in ("runs", "paused", "executes", "executed"):
        events.until(made[kind], "/tasks/delete")
    ends = [(e.container_id, e.id, e.exit_status) for t, e in events._seen if t == "/tasks/exit"]
    assert sorted(ends) == sorted(
        [
            (made["executes"], "e", 143),
            (made["executed"], "e", 143),
            (made["ended"], made["ended"], 143),
            *((name, name, 137) for kind, name in made.items() if kind != "ended"),
        ]
    )
    events.close()
    client.close()
