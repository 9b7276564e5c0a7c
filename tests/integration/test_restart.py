"""containerd goes away and comes back; containers, and the news of their end, outlast that."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from proto import task_pb2
from tests.integration import images, specs
from tests.integration.client import Client, Events
from tests.integration.conftest import Containers, import_image, program
from tests.integration.containerd import PYWASM, Containerd, eventually


@pytest.fixture
def own(containerd: Containerd, image: images.Image) -> Iterator[Containerd]:
    """A containerd for one test, of the same version as the others' one."""
    with Containerd(containerd.bin_dir) as daemon:
        import_image(daemon, image)
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
