from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable

import pytest

from shim.linux.cgroups import Cgroup, Hierarchy, hierarchies, warm
from shim.linux.cgroups import cgroup as module
from shim.linux.cgroups import trees as trees_module
from shim.linux.cgroups.files import read, write
from shim.linux.clone import CLONE_NEWPID, Child, wait

V1 = [tree for tree in hierarchies() if not tree.is_v2]
V2 = [tree for tree in hierarchies() if tree.is_v2]
Start = Callable[..., Child]


def memberships(pid: int | str) -> set[str]:
    with open(f"/proc/{pid}/cgroup") as file:
        return {line.rstrip("\n").split(":", 2)[2] for line in file}


# Paths


@pytest.mark.parametrize("path", ["", "/", "//.", "..", "../x", "/x/../..", "/a/../b", "a\0b"])
def test_path_that_is_no_container(path: str) -> None:
    with pytest.raises(OSError) as e:
        Cgroup.for_path(path)
    assert (e.value.errno, e.value.filename) == (errno.EINVAL, path)


def test_machine_without_cgroups() -> None:
    with pytest.raises(FileNotFoundError, match="no cgroup"):
        Cgroup.for_path("/x", [])


def directories(cgroup: Cgroup) -> list[str]:
    return [path for _, path in cgroup._directories]


def test_absolute_and_relative_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Hierarchy("/sys/fs/cgroup/cpu", "/", frozenset({"cpu"}))
    memory = Hierarchy("/sys/fs/cgroup/memory", "/docker/1", frozenset({"memory"}))
    own = {frozenset({"cpu"}): "/system.slice", frozenset({"memory"}): "/docker/1/sub"}
    monkeypatch.setattr(trees_module, "own", lambda: own)
    assert directories(Cgroup.for_path("//ns/./id/", [cpu, memory])) == [
        "/sys/fs/cgroup/cpu/ns/id",
        "/sys/fs/cgroup/memory/ns/id",
    ]
    assert directories(Cgroup.for_path("ns/id", [cpu, memory])) == [
        "/sys/fs/cgroup/cpu/system.slice/ns/id",
        "/sys/fs/cgroup/memory/sub/ns/id",
    ]
    v2 = Hierarchy("/sys/fs/cgroup/unified", "/", frozenset())
    own[frozenset()] = "/user.slice/session.scope"
    assert directories(Cgroup.for_path("x", [v2, cpu]))[0].endswith("/session.scope/x")
    assert directories(Cgroup.for_path("x", [v2])) == ["/sys/fs/cgroup/unified/user.slice/x"]
    own[frozenset()] = "/"
    assert directories(Cgroup.for_path("x", [v2])) == ["/sys/fs/cgroup/unified/x"]
    own[frozenset({"memory"})] = "/docker/10"
    assert directories(Cgroup.for_path("x", [memory])) == ["/sys/fs/cgroup/memory/docker/10/x"]


# Life


def test_life(cgroup: Cgroup, name: str, trees: list[Hierarchy], start: Start) -> None:
    assert not cgroup.exists()
    cgroup.create()
    cgroup.create()
    assert cgroup.exists()
    assert cgroup.pids() == []
    child = start()
    cgroup.attach(child.pid)
    assert cgroup.pids() == [child.pid]
    paths = memberships(child.pid)
    assert f"/{name}/container" in paths
    if len(trees) == len(hierarchies()):
        assert paths == {f"/{name}/container"}
    with pytest.raises(OSError) as e:
        cgroup.delete(0.01)
    assert e.value.errno == errno.EBUSY
    assert f"/{name}/container" in e.value.filename
    cgroup.kill()
    assert wait(child.pidfd) == 128 + signal.SIGKILL
    cgroup.delete()
    assert not cgroup.exists()
    cgroup.delete()
    cgroup.kill()


def test_the_cgroup_of_a_process(cgroup: Cgroup, name: str, start: Start) -> None:
    child = start()
    with pytest.raises(FileNotFoundError, match="in no cgroup of its own"):
        Cgroup.of_process(child.pid)
    cgroup.create()
    cgroup.attach(child.pid)
    found = Cgroup.of_process(child.pid)
    # Only where it is: a hierarchy in which it is with us is ours, too.
    assert {path.rpartition(f"/{name}/")[2] for path in directories(found)} == {"container"}
    assert set(directories(found)) == set(directories(cgroup))
    assert found.pids() == [child.pid]
    cgroup.kill()
    wait(child.pidfd)
    cgroup.delete()


def test_process_moves_itself(cgroup: Cgroup, name: str, in_child: Callable[..., None]) -> None:
    cgroup.create()

    def entry() -> None:
        cgroup.attach()
        assert cgroup.pids() == [os.getpid()]
        assert f"/{name}/container" in memberships("self")

    in_child(entry)
    cgroup.delete()


def test_process_in_a_namespace_of_its_own(cgroup: Cgroup, in_child: Callable[..., None]) -> None:
    cgroup.create()
    outside = os.getpid()

    def entry() -> None:
        assert os.getpid() == 1 != outside
        cgroup.attach()
        assert cgroup.pids() == [1]

    in_child(entry, CLONE_NEWPID)
    cgroup.delete()


def test_relative_path_is_below_our_own(name: str, start: Start) -> None:
    cgroup = Cgroup.for_path(f"{name}/x")
    cgroup.create()
    child = start()
    cgroup.attach(child.pid)
    own = memberships("self") if V1 else {os.path.dirname(*memberships("self"))}
    assert memberships(child.pid) == {f"{path.rstrip('/')}/{name}/x" for path in own}
    cgroup.kill()
    wait(child.pidfd)
    cgroup.delete()


def test_children_count_and_go(
    cgroup: Cgroup, name: str, start: Start, trees: list[Hierarchy]
) -> None:
    nested = [Cgroup.for_path(f"/{name}/container/{path}", trees) for path in ("a", "b/c")]
    children = [start() for _ in nested]
    for leaf, child in zip(nested, children, strict=True):
        leaf.create()
        leaf.attach(child.pid)
        assert leaf.pids() == [child.pid]
    assert cgroup.pids() == sorted(child.pid for child in children)
    cgroup.kill()
    assert [wait(child.pidfd) for child in children] == [128 + signal.SIGKILL] * 2
    cgroup.delete()
    assert not any(leaf.exists() for leaf in nested)


@pytest.mark.skipif(not V1 or not V2, reason="not both v1 and v2")
def test_beside_v1_a_cgroup_with_children_takes_processes(name: str, start: Start) -> None:
    outer, inner = Cgroup.for_path(f"/{name}"), Cgroup.for_path(f"/{name}/inner")
    inner.create()
    child = start()
    outer.attach(child.pid)
    assert (outer.pids(), inner.pids()) == ([child.pid], [])


def test_kill_without_the_kernels_help(
    cgroup: Cgroup, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 5.14 has no cgroup.kill, and v1 never had."""
    cgroup.create()
    hidden = []

    def older(path: str, value: str) -> None:
        if path.endswith("/cgroup.kill"):
            hidden.append(path)
            raise FileNotFoundError(path)
        write(path, value)

    monkeypatch.setattr(module, "write", older)

    def family() -> None:
        cgroup.attach()
        for _ in range(20):
            if os.fork() == 0:
                break
        signal.pause()

    child = start(family)
    while len(cgroup.pids()) < 21:
        pass
    cgroup.kill()
    assert wait(child.pidfd) == 128 + signal.SIGKILL
    cgroup.delete(5)
    assert bool(hidden) == any(tree.is_v2 for tree, _ in cgroup._directories)


def spin() -> None:
    while True:
        pass


def cpu_ticks(pid: int) -> int:
    """User and system time of a process, in clock ticks (proc_pid_stat(5))."""
    with open(f"/proc/{pid}/stat") as stat:
        return sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))


def test_frozen_stands_still(cgroup: Cgroup, start: Start, name: str) -> None:
    cgroup.create()
    if cgroup.directory("freezer") is None and cgroup.directory("") is None:
        pytest.skip("no freezer")
    among = [tree for tree, _ in cgroup._directories]
    inner = [Cgroup.for_path(f"/{name}/container/{path}", among) for path in ("a", "b/c")]
    children = [start(spin) for _ in inner]
    for leaf, child in zip(inner, children, strict=True):
        leaf.create()
        leaf.attach(child.pid)
    assert not cgroup.frozen
    try:
        for _ in range(3):
            cgroup.freeze()
            assert cgroup.frozen
            assert all(leaf.frozen for leaf in inner)
            before = [cpu_ticks(child.pid) for child in children]
            time.sleep(0.05)  # five ticks
            assert [cpu_ticks(child.pid) for child in children] == before
            cgroup.thaw()
            while [cpu_ticks(child.pid) for child in children] == before:  # the timeout ends it
                pass
        assert not cgroup.frozen
        cgroup.freeze()
    finally:
        cgroup.kill()  # which what is frozen also hears
    assert [wait(child.pidfd) for child in children] == [128 + signal.SIGKILL] * 2


def test_what_cannot_be_frozen_goes_on(
    cgroup: Cgroup, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup.create()
    child = start(spin)
    cgroup.attach(child.pid)
    monkeypatch.setattr(
        Cgroup, "frozen", property(lambda _: False)
    )  # a process in an uninterruptible sleep cannot be had here
    with pytest.raises(TimeoutError, match="frozen"):
        cgroup.freeze(0.02)
    monkeypatch.undo()
    before = cpu_ticks(child.pid)
    while cpu_ticks(child.pid) == before:
        pass
    assert not cgroup.frozen


def test_no_freezer(name: str) -> None:
    others = [tree for tree in V1 if "freezer" not in tree.controllers]
    if not others:
        pytest.skip("no cgroup v1")
    cgroup = Cgroup.for_path(f"/{name}", others)
    cgroup.create()
    with pytest.raises(FileNotFoundError, match="freezer"):
        cgroup.freeze()


def test_delete_waits_for_the_dying(cgroup: Cgroup, start: Start) -> None:
    cgroup.create()
    for _ in range(10):
        child = start()
        cgroup.attach(child.pid)
        cgroup.kill()
        cgroup.delete(5)
        assert wait(child.pidfd) == 128 + signal.SIGKILL
        cgroup.create()


def test_failed_create_leaves_nothing(name: str, trees: list[Hierarchy]) -> None:
    keep = Cgroup.for_path(f"/{name}/keep", trees)
    keep.create()
    broken = Cgroup.for_path(f"/{name}/a/b/line\nbreak", trees)
    with pytest.raises(OSError) as e:
        broken.create()
    assert e.value.errno == errno.EINVAL
    assert not Cgroup.for_path(f"/{name}/a").exists()
    assert keep.exists()


def test_attach_to_what_does_not_exist(cgroup: Cgroup) -> None:
    with pytest.raises(FileNotFoundError) as e:
        cgroup.attach()
    assert e.value.filename.endswith("/container/cgroup.procs")


def test_attach_what_does_not_exist(cgroup: Cgroup, start: Start) -> None:
    cgroup.create()
    child = start(lambda: None)
    wait(child.pidfd)
    with pytest.raises(ProcessLookupError, match=f"write '{child.pid}'"):
        cgroup.attach(child.pid)


@pytest.mark.skipif(not any("cpuset" in tree.controllers for tree in V1), reason="no v1 cpuset")
def test_cpuset_takes_processes_at_any_depth(name: str, in_child: Callable[..., None]) -> None:
    cpuset = [tree for tree in V1 if "cpuset" in tree.controllers]
    cgroup = Cgroup.for_path(f"/{name}/pod/container", cpuset)
    cgroup.create()
    (path,) = directories(cgroup)
    for file in ("cpuset.cpus", "cpuset.mems"):
        assert read(f"{path}/{file}") == read(f"{cpuset[0].mount}/{file}")
        write(f"{path}/{file}", "0")
    cgroup.create()
    assert read(f"{path}/cpuset.cpus") == "0"
    in_child(cgroup.attach)


# v2


@pytest.mark.skipif(not V2, reason="no cgroup v2")
def test_born_in_a_cgroup(name: str, start: Start) -> None:
    cgroup = Cgroup.for_path(f"/{name}/container", V2)
    cgroup.create()
    fd = cgroup.open_dir()
    try:
        assert not os.get_inheritable(fd)
        child = start(cgroup=fd)
        assert cgroup.pids() == [child.pid]
    finally:
        os.close(fd)


@pytest.mark.skipif(not V1, reason="no cgroup v1")
def test_no_descriptor_to_be_born_in_on_v1(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="v2"):
        Cgroup.for_path(f"/{name}", V1).open_dir()


def test_controllers_are_switched_on_for_children(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that act like a v2 hierarchy: where controllers are bound to v1, ours has none."""
    tree = Hierarchy(str(tmp_path), "/", frozenset())
    written = []

    def refuse_cpu(path: str, value: str) -> None:
        written.append((os.path.relpath(path, str(tmp_path)), value))
        if value == "+cpu":
            raise OSError(errno.EINVAL, "realtime processes")

    def pretend(path: str) -> str:
        return "memory" if path.endswith("subtree_control") else "cpu memory pids"

    monkeypatch.setattr(module, "write", refuse_cpu)
    monkeypatch.setattr(module, "read", pretend)
    Cgroup.for_path("/a/b", [tree]).create()
    assert sorted(written) == [
        ("a/cgroup.subtree_control", "+cpu"),
        ("a/cgroup.subtree_control", "+pids"),
        ("cgroup.subtree_control", "+cpu"),
        ("cgroup.subtree_control", "+pids"),
    ]


# Warm


def test_warming_moves_nobody(in_child: Callable[..., None]) -> None:
    def entry() -> None:
        before = memberships("self")
        warm()
        assert memberships("self") == before

    in_child(entry)


def test_warming_writes_once_and_only_for_v1(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(module, "write", lambda path, value: written.append(path + value))
    warm()
    assert len(written) == bool(V1)
    monkeypatch.setattr(trees_module, "hierarchies", lambda: V2)
    warm()
    assert len(written) == bool(V1)
