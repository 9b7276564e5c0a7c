"""SIGKILL for each process at each moment of a container's life.

Afterwards containerd's view is right, nothing is left, and the next container works.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from proto import mount_pb2, task_pb2
from proto.api import tasks_pb2
from shim.engines import select
from tests.integration import client as api
from tests.integration import images, keeper, specs
from tests.integration.conftest import Containers
from tests.integration.containerd import PYWASM, Containerd, eventually, parent_of
from tests.shim.compiler.test_process import SLOW

PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
STATES = {
    "created": task_pb2.CREATED,
    "running": task_pb2.RUNNING,
    "exec": task_pb2.RUNNING,
    "paused": task_pb2.PAUSED,
    "stopped": task_pb2.STOPPED,
}


class Place:
    """A containerd that may be killed, and its client."""

    def __init__(self, daemon: Containerd, image: images.Image, directory: Path) -> None:
        self.daemon, self.directory = daemon, directory
        self._image = image
        self.client = api.Client(daemon)
        self.containers = Containers(self.client, image)

    def live(self, moment: str) -> Life:
        """Bring a new container to some moment of its life; to "compiling" before any other."""
        return Life(self, moment)

    def find(self, name: str) -> list[int]:
        """The pids of the processes of that name."""
        found = []
        for pid in self.daemon.processes():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                    found.append(pid)
        return found

    def launchers(self) -> list[int]:
        """The pids of launchers that were executed for `start`."""
        return [pid for pid, line in self.daemon.processes().items() if line.endswith(" start")]

    @contextlib.contextmanager
    def starting(self) -> Iterator[tuple[Life, int]]:
        """Have a container whose launcher waits for the zygote, whose pid is the second."""
        self.run()  # so that there is one
        (zygote,) = self.daemon.zygotes()
        os.kill(zygote, signal.SIGSTOP)
        try:
            life = self.live("starting")
            eventually(self.launchers)
            yield life, zygote
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(zygote, signal.SIGCONT)

    def run(self) -> None:
        """Run an ordinary container to its end."""
        containers = Containers(self.client, self._image)
        hello = containers.new(PYWASM, specs.usual("/hello.wasm"))
        hello.run()
        assert self.client.wait(hello.name) == 0
        containers.remove()

    def close(self) -> None:
        """Remove what is left on purpose, and look for the rest."""
        try:
            self.containers.remove()
            for compiler in self.find("pywasm-compiler"):  # which would go on for some time
                os.kill(compiler, signal.SIGKILL)
            self.run()
            assert self.daemon.leftovers() == []
        finally:
            self.daemon.scrub()
            self.client.close()


class Life:
    """A container at one moment of its life."""

    def __init__(self, place: Place, moment: str) -> None:
        self.place, self.client = place, place.client
        guests = {"compiling": "/slow.wasm", "stopped": "/exit3.wasm"}
        spec = specs.usual(guests.get(moment, "/idle.wasm"))
        self.container = place.containers.new(PYWASM, spec)
        self.name = self.container.name
        self.end_status = 3 if moment == "stopped" else 137
        self.state = (STATES.get(moment), 3 if moment == "stopped" else 0)
        self.creating: Any = None
        if moment in ("starting", "compiling"):
            self._begin(moment)
            return
        self.pid = self.container.create()
        self.shim = parent_of(self.pid)
        if moment == "created":
            return
        self.client.start(self.name)
        if moment == "stopped":
            assert self.client.wait(self.name) == 3
        elif moment == "paused":
            self.client.tasks.Pause(tasks_pb2.PauseTaskRequest(container_id=self.name))
        elif moment == "exec":
            self._execute()

    def _begin(self, moment: str) -> None:
        if moment == "starting":
            rootfs = self.client.prepare(self.name, self.container.image.chain_id)
        else:
            directory = self.place.directory
            # Never the same: an artifact would be found.
            slow = SLOW[select().name] + b"\0\4\1x" + os.urandom(2)
            (directory / "slow.wasm").write_bytes(slow)
            options = ["rbind", "ro"]
            rootfs = [mount_pb2.Mount(type="bind", source=str(directory), options=options)]
        request = tasks_pb2.CreateTaskRequest(container_id=self.name, rootfs=rootfs)
        self.creating = self.client.tasks.future("Create", request)
        if moment == "compiling":
            # Before there is a shim, a new zygote has a compiler for its rehearsal.
            eventually(lambda: self.place.find("pywasm-shim"))
            eventually(lambda: self.place.find("pywasm-compiler"))
            (self.shim,) = self.place.find("pywasm-shim")
            children = Path(f"/proc/{self.shim}/task/{self.shim}/children").read_text().split()
            (self.pid,) = {int(pid) for pid in children} - {*self.place.find("pywasm-foreman")}

    def _execute(self) -> None:
        process = AnyMessage(type_url=PROCESS_TYPE, value=b'{"args": ["/idle.wasm"], "cwd": "/"}')
        self.client.tasks.Exec(
            tasks_pb2.ExecProcessRequest(container_id=self.name, exec_id="e", spec=process)
        )
        request = tasks_pb2.StartRequest(container_id=self.name, exec_id="e")
        self.exec_pid = self.client.tasks.Start(request).pid

    def seen(self) -> tuple[int, int]:
        """State and exit status, as containerd has them."""
        process = self.client.state(self.name)
        return process.status, process.exit_status

    def gone(self) -> bool:
        """Whether containerd has no such task."""
        try:
            self.client.state(self.name)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.NOT_FOUND)
        return False

    def create_failed(self) -> str:
        """Wait for the error that Create ends with."""
        with pytest.raises(grpc.RpcError) as caught:
            self.creating.result(20)
        assert self.gone()
        return str(caught.value.details())

    def finish(self) -> None:
        """Kill and delete it."""
        with contextlib.suppress(grpc.RpcError):  # stopped
            self.client.kill(self.name)
        assert self.client.wait(self.name) == self.end_status
        assert self.client.delete(self.name) == self.end_status


@pytest.fixture(scope="module")
def daemon(containerd: Containerd, image: images.Image) -> Iterator[Containerd]:
    """One that may be killed, of the same version as the others' one."""
    with Containerd(containerd.bin_dir) as made:
        made.load(image.tar)
        yield made


@pytest.fixture
def place(daemon: Containerd, image: images.Image, tmp_path: Path) -> Iterator[Place]:
    made = Place(daemon, image, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("moment", ["compiling", "created", "running", "paused", "exec"])
def test_of_a_guest(place: Place, moment: str) -> None:
    life = place.live(moment)
    os.kill(life.pid, signal.SIGKILL)
    if moment == "compiling":
        assert "ended while it was set up (status 137)" in life.create_failed()
        return
    if moment == "paused":  # what is frozen on cgroup v1 does not even die
        place.client.tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id=life.name))
    eventually(lambda: life.seen() == (task_pb2.STOPPED, 137))
    life.finish()


def test_of_a_compiler(place: Place) -> None:
    """Under whichever engine: to try again is of use, and containerd says so."""
    life = place.live("compiling")
    while not life.creating.done():
        for pid in place.find("pywasm-compiler"):
            os.kill(pid, signal.SIGKILL)
    assert "the compiler failed (signal 9)" in life.create_failed()
    assert life.creating.code() == grpc.StatusCode.UNAVAILABLE


def test_of_an_exec(place: Place) -> None:
    life = place.live("exec")
    os.kill(life.exec_pid, signal.SIGKILL)
    request = tasks_pb2.WaitRequest(container_id=life.name, exec_id="e")
    assert place.client.tasks.Wait(request).exit_status == 137
    assert life.seen() == life.state
    life.finish()


@pytest.mark.parametrize("moment", ["compiling", *STATES])
def test_of_a_shim(place: Place, moment: str) -> None:
    events = api.Events(place.client)
    life = place.live(moment)
    os.kill(life.shim, signal.SIGKILL)
    if moment == "compiling":
        assert "ttrpc: closed" in life.create_failed()
    else:
        # What containerd tells of it, having executed `delete`.
        ends = [e for t, e in events.until(life.name, "/tasks/delete") if t == "/tasks/exit"]
        assert (ends[-1].pid, ends[-1].exit_status) == (life.pid, 137)
        if moment != "stopped":
            assert len(ends) == 1
    eventually(life.gone)
    events.close()


def test_of_a_shim_before_create(place: Place) -> None:
    with place.starting() as (life, _):
        os.kill(place.daemon._pid, signal.SIGSTOP)
    eventually(lambda: place.find("pywasm-shim"))
    eventually(lambda: not place.launchers())
    (shim,) = place.find("pywasm-shim")
    os.kill(shim, signal.SIGKILL)
    os.kill(place.daemon._pid, signal.SIGCONT)
    life.create_failed()
    # Where containerd could not connect it executes nothing that could tidy up.
    eventually(lambda: not place.daemon.processes())
    for socket_file in Path(place.daemon.run_dir, "s").glob("[0-9a-f]*"):
        socket_file.unlink()
    for group in keeper.cgroups_of(place.daemon.namespace):
        if group.endswith(f"/{life.name}"):
            os.rmdir(group)


def test_of_a_zygote(place: Place) -> None:
    """Nobody notices."""
    lives = [place.live(moment) for moment in ("compiling", *STATES)]
    for zygote in place.daemon.zygotes():
        os.kill(zygote, signal.SIGKILL)
    compiling, *others = lives
    assert not compiling.creating.done()
    compiling.creating.cancel()  # containerd then has it killed
    eventually(compiling.gone)
    for life in others:
        assert life.seen() == life.state
        life.finish()


def test_of_a_zygote_before_it_has_forked(place: Place) -> None:
    with place.starting() as (life, zygote):
        os.kill(zygote, signal.SIGKILL)
    assert life.creating.result(20).pid
    life.finish()


def test_of_containerd(place: Place) -> None:
    lives = [place.live(moment) for moment in ("compiling", *STATES)]
    place.daemon.end(signal.SIGKILL)
    place.daemon.start()
    place.client.reconnect()
    compiling, *others = lives
    eventually(compiling.gone)
    for life in others:
        if life.end_status == 3 and life.gone():
            continue  # 1.7 deletes what has stopped at its start
        assert life.seen() == life.state
        life.finish()


def test_of_containerd_before_create(place: Place) -> None:
    with place.starting() as (life, _):
        place.daemon.end(signal.SIGKILL)
    eventually(lambda: place.find("pywasm-shim"))
    place.daemon.start()
    place.client.reconnect()
    eventually(life.gone)
