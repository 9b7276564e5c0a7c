"""A container's life through containerd's gRPC API, beside the reference shim's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from proto import task_pb2
from tests.integration import specs
from tests.integration.client import Client, Events
from tests.integration.conftest import Containers, program
from tests.integration.containerd import PYWASM, RUNC, Containerd, eventually, parent_of

NOT_FOUND = grpc.StatusCode.NOT_FOUND
ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS
# The reference shim refuses, too, but does not say why in its status.
WRONG_STATE = {
    PYWASM: grpc.StatusCode.FAILED_PRECONDITION,
    RUNC: grpc.StatusCode.UNKNOWN,
}


def usual(runtime: str, guest: str, *args: str) -> dict[str, Any]:
    return specs.usual(program(runtime, guest), *args)


def refused(call: Callable[..., object], *args: object) -> Any:
    """The `grpc.StatusCode` of a call that has to fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args)
    return caught.value.code()


def test_events_come_in_order(
    client: Client, containers: Containers, events: Events, runtime: str
) -> None:
    container = containers.new(runtime, usual(runtime, "exit3"))
    name = container.name
    pid = container.create()
    waiting = client.wait_later(name)
    assert client.start(name) == pid
    assert waiting.result(20).exit_status == 3
    assert client.delete(name) == 3

    seen = events.until(name, "/tasks/delete")
    topics = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert [topic for topic, _ in seen] == topics
    create, start, end, delete = (event for _, event in seen)
    assert [create.pid, start.pid, end.pid, delete.pid] == [pid] * 4
    assert create.bundle == f"{client.containerd.state_dir}/{name}"
    assert create.rootfs[0].type in ("overlay", "bind")
    assert (end.id, end.exit_status) == (name, 3)
    assert delete.exit_status == 3
    assert end.exited_at.ToNanoseconds() == delete.exited_at.ToNanoseconds() > 0


def test_states(client: Client, containers: Containers, runtime: str) -> None:
    container = containers.new(runtime, usual(runtime, "idle"))
    name = container.name
    container.fifos("stdout", "stderr")
    readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in container.stdio.values()]
    pid = container.create()
    state = client.state(name)
    assert (state.status, state.pid) == (task_pb2.CREATED, pid)
    assert os.path.exists(f"/proc/{pid}")

    client.start(name)
    state = client.state(name)
    assert (state.status, state.pid) == (task_pb2.RUNNING, pid)
    assert state.stdout == container.stdio["stdout"]
    assert client.pids(name) == [pid]

    client.kill(name)
    assert client.wait(name) == 137
    state = client.state(name)
    assert (state.status, state.exit_status) == (task_pb2.STOPPED, 137)
    assert state.exited_at.ToNanoseconds() > 0
    assert client.wait(name) == 137  # as often as one likes
    assert not os.path.exists(f"/proc/{pid}")

    assert client.delete(name) == 137
    assert refused(client.state, name) == NOT_FOUND
    for reader in readers:
        os.close(reader)


def test_wait_before_start(client: Client, containers: Containers, runtime: str) -> None:
    container = containers.new(runtime, usual(runtime, "hello"))
    container.create()
    waiting = [client.wait_later(container.name) for _ in range(20)]
    assert client.state(container.name).status == task_pb2.CREATED  # the shim still answers
    client.start(container.name)
    assert {call.result(20).exit_status for call in waiting} == {0}


def test_create_twice(client: Client, containers: Containers, runtime: str) -> None:
    container = containers.new(runtime, usual(runtime, "idle"))
    pid = container.run()
    assert refused(client.create, container.name) == ALREADY_EXISTS
    assert client.state(container.name).pid == pid


def test_start_twice(client: Client, containers: Containers, runtime: str) -> None:
    container = containers.new(runtime, usual(runtime, "idle"))
    container.run()
    assert refused(client.start, container.name) == WRONG_STATE[runtime]
    assert client.state(container.name).status == task_pb2.RUNNING


def test_start_of_what_has_ended(client: Client, containers: Containers, runtime: str) -> None:
    container = containers.new(runtime, usual(runtime, "hello"))
    container.run()
    assert client.wait(container.name) == 0
    assert refused(client.start, container.name) == WRONG_STATE[runtime]


def test_delete_while_running(client: Client, containers: Containers, runtime: str) -> None:
    container = containers.new(runtime, usual(runtime, "idle"))
    pid = container.run()
    assert refused(client.delete, container.name) == WRONG_STATE[runtime]
    assert client.state(container.name).status == task_pb2.RUNNING
    assert os.path.exists(f"/proc/{pid}")


def test_delete_of_what_never_started(
    client: Client, containers: Containers, containerd: Containerd, runtime: str
) -> None:
    container = containers.new(runtime, usual(runtime, "idle"))
    container.create()
    client.kill(container.name)
    assert client.wait(container.name) == 137
    client.delete(container.name)
    assert containerd.leftovers() == []


def test_kill_of_what_has_ended(client: Client, containers: Containers, runtime: str) -> None:
    container = containers.new(runtime, usual(runtime, "hello"))
    container.run()
    assert client.wait(container.name) == 0
    assert refused(client.kill, container.name) == NOT_FOUND


def test_term_as_pid_1(client: Client, containers: Containers) -> None:
    for guest in ("spin", "idle"):
        container = containers.new(PYWASM, usual(PYWASM, guest))
        container.run()
        client.kill(container.name, 15)
        assert client.wait(container.name) == 143


def test_minimal_spec(client: Client, containers: Containers, events: Events) -> None:
    """No namespaces, no cgroup path, no mounts: still a mount namespace of its own."""
    container = containers.new(PYWASM, specs.minimal("/idle.wasm"))
    pid = container.run()
    for kind, shared in (("mnt", False), ("pid", True), ("net", True)):
        ours = os.stat("/proc/self/ns/" + kind).st_ino
        assert (os.stat(f"/proc/{pid}/ns/{kind}").st_ino == ours) == shared, kind
    client.kill(container.name)
    assert client.wait(container.name) == 137
    client.delete(container.name)
    events.until(container.name, "/tasks/delete")


def test_isolation(containers: Containers, containerd: Containerd, runtime: str) -> None:
    """Namespaces, user, root, no_new_privs and cgroups of a running container."""
    spec = specs.usual(program(runtime, "idle"), user=(1234, 4321))
    container = containers.new(runtime, spec)
    pid = container.run()
    for kind in ("mnt", "pid", "ipc", "uts", "net"):
        ours = os.stat("/proc/self/ns/" + kind).st_ino
        assert os.stat(f"/proc/{pid}/ns/{kind}").st_ino != ours, kind
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    assert status["Uid"].split() == ["1234"] * 4
    assert status["Gid"].split() == ["4321"] * 4
    assert status["NoNewPrivs"] == "1"
    assert status["NSpid"].split()[-1] == "1"
    assert int(status["CapEff"], 16) == 0
    with open(f"/proc/{pid}/cgroup") as file:
        groups = [line.rstrip("\n").split(":", 2) for line in file]
    expected = f"/{containerd.namespace}/{container.name}"
    for _, controllers, path in groups:
        if controllers or len(groups) == 1:  # a version 2 hierarchy beside version 1 may be unused
            assert path.endswith(expected), (controllers, path)
    assert sorted(os.listdir(f"/proc/{pid}/root/bad"))  # the image's root, and nothing above it
    with open(f"/proc/{pid}/mountinfo") as file:
        points = [line.split()[4] for line in file]
    assert points[0] == "/"
    assert not any(containerd.directory in point for point in points)


def test_no_descriptor_is_inherited(containers: Containers, containerd: Containerd) -> None:
    """A guest shares no socket or pipe with its shim, and has no directory of the host."""
    container = containers.new(PYWASM, usual(PYWASM, "idle"))
    pid = container.run()

    def foreign() -> set[str]:
        ours = _descriptors(pid)
        shared = {target for target in ours & _descriptors(parent_of(pid)) if "[" in target}
        return shared | {target for target in ours if containerd.directory in target}

    with contextlib.suppress(TimeoutError):
        eventually(lambda: not foreign(), 5)  # Start is answered before the guest has let go
    assert foreign() == set()


def _descriptors(pid: int) -> set[str]:
    """What they refer to; of the anonymous kinds only sockets and pipes can be told apart."""
    directory = f"/proc/{pid}/fd"
    targets = set()
    for fd in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            targets.add(os.readlink(f"{directory}/{fd}"))
    return {target for target in targets if not target.startswith("anon_inode:")}


def test_sixteen_at_once(client: Client, containers: Containers, runtime: str) -> None:
    made = [containers.new(runtime, usual(runtime, "hello")) for _ in range(16)]

    def live(number: int) -> int:
        made[number].run()
        status = client.wait(made[number].name)
        client.delete(made[number].name)
        return status

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(live, range(16))) == [0] * 16
