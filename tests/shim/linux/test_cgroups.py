from __future__ import annotations

import errno
import os
import signal
import uuid
from collections.abc import Callable, Iterator

import pytest

from shim.linux import cgroups
from shim.linux.cgroups import Cgroup, Hierarchy, hierarchies, warm
from shim.linux.clone import CLONE_NEWPID, Child, clone, wait

V1 = [tree for tree in hierarchies() if not tree.is_v2]
V2 = [tree for tree in hierarchies() if tree.is_v2]
TREES = {
    "all": list(hierarchies()),
    "v1": V1,
    "v2": V2,
}


@pytest.fixture(autouse=True)
def controllers() -> Iterator[None]:
    """Leave the controllers that the root of v2 has switched on as they were."""
    files = [f"{tree.mount}/cgroup.subtree_control" for tree in V2]
    before = [set(cgroups._read(file).split()) for file in files]
    yield
    for file, old in zip(files, before, strict=True):
        for controller in set(cgroups._read(file).split()) - old:
            cgroups._write(file, "-" + controller)


@pytest.fixture(params=[name for name, trees in TREES.items() if trees])
def trees(request: pytest.FixtureRequest) -> list[Hierarchy]:
    """The hierarchies of this machine, and those of its kinds that it has."""
    return TREES[request.param]


@pytest.fixture
def name(controllers: None) -> Iterator[str]:
    """A name that is gone afterwards from every hierarchy, whatever a test did."""
    name = f"pywasm-test-{uuid.uuid4().hex[:12]}"
    yield name
    for path in (name, f"/{name}"):
        cgroup = Cgroup.for_path(path)
        cgroup.kill()
        cgroup.delete(5)
    assert not Cgroup.for_path(f"/{name}").exists()


@pytest.fixture
def cgroup(name: str, trees: list[Hierarchy]) -> Cgroup:
    return Cgroup.for_path(f"/{name}/container", trees)


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(entry: Callable[[], None] = signal.pause, **options: int) -> Child:
        child = clone(entry, **options)
        children.append(child)
        return child

    yield start
    for child in children:
        try:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            wait(child.pidfd)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(child.pidfd)


Start = Callable[..., Child]


def memberships(pid: int | str) -> set[str]:
    with open(f"/proc/{pid}/cgroup") as file:
        return {line.rstrip("\n").split(":", 2)[2] for line in file}


# Hierarchies


def parse(monkeypatch: pytest.MonkeyPatch, mountinfo: str, own: str) -> tuple[Hierarchy, ...]:
    import builtins
    import io

    texts = {"/proc/self/mountinfo": mountinfo, "/proc/self/cgroup": own}
    monkeypatch.setattr(
        builtins, "open", lambda path, *_: io.StringIO(texts[path]) if path in texts else None
    )
    try:
        return hierarchies.__wrapped__()
    finally:
        monkeypatch.undo()


def test_v1_as_most_distributions_mounted_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = parse(
        monkeypatch,
        "30 1 0:26 / /sys/fs/cgroup ro,nosuid shared:4 - tmpfs tmpfs ro,mode=755\n"
        "31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:5 - cgroup2 cgroup2 rw\n"
        "32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
        "35 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "36 30 0:32 /docker/1 /a\\040b rw shared:9 master:2 - cgroup cgroup rw,memory\n"
        "99 30 0:31 / /var/lib/other/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
        "12:cpu,cpuacct:/\n11:memory:/docker/1\n1:name=systemd:/init.scope\n0::/init.scope\n",
    )
    assert trees == (
        Hierarchy("/sys/fs/cgroup/unified", "/", frozenset()),
        Hierarchy("/sys/fs/cgroup/systemd", "/", frozenset({"name=systemd"})),
        Hierarchy("/sys/fs/cgroup/cpu,cpuacct", "/", frozenset({"cpu", "cpuacct"})),
        Hierarchy("/a b", "/docker/1", frozenset({"memory"})),
    )


def test_v2_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = parse(
        monkeypatch,
        "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
        "0::/user.slice\n",
    )
    assert trees == (Hierarchy("/sys/fs/cgroup", "/", frozenset()),)
    assert Cgroup.for_path("/a/b", trees).unified
    both = (*trees, Hierarchy("/c", "/", frozenset({"cpu"})))
    assert not Cgroup.for_path("/a/b", both).unified
    assert not Cgroup.for_path("/a/b", both[1:]).unified


def test_hierarchies_of_this_machine_exist() -> None:
    assert hierarchies()
    for tree in hierarchies():
        assert os.path.exists(f"{tree.mount}/cgroup.procs")


# Paths


@pytest.mark.parametrize("path", ["", "/", "//.", "..", "../x", "/x/../..", "/a/../b", "a\0b"])
def test_path_that_is_no_container(path: str) -> None:
    with pytest.raises(OSError) as e:
        Cgroup.for_path(path)
    assert (e.value.errno, e.value.filename) == (errno.EINVAL, path)


def test_systemd_path_is_refused() -> None:
    with pytest.raises(OSError, match="systemd") as e:
        Cgroup.for_path("system.slice:cri-containerd:abc")
    assert e.value.errno == errno.EOPNOTSUPP


def test_machine_without_cgroups() -> None:
    with pytest.raises(FileNotFoundError, match="no cgroup"):
        Cgroup.for_path("/x", [])


def directories(cgroup: Cgroup) -> list[str]:
    return [path for _, path in cgroup._directories]


def test_absolute_and_relative_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Hierarchy("/sys/fs/cgroup/cpu", "/", frozenset({"cpu"}))
    memory = Hierarchy("/sys/fs/cgroup/memory", "/docker/1", frozenset({"memory"}))
    own = {frozenset({"cpu"}): "/system.slice", frozenset({"memory"}): "/docker/1/sub"}
    monkeypatch.setattr(cgroups, "_own", lambda: own)
    assert directories(Cgroup.for_path("//ns/./id/", [cpu, memory])) == [
        "/sys/fs/cgroup/cpu/ns/id",
        "/sys/fs/cgroup/memory/ns/id",
    ]
    assert directories(Cgroup.for_path("ns/id", [cpu, memory])) == [
        "/sys/fs/cgroup/cpu/system.slice/ns/id",
        "/sys/fs/cgroup/memory/sub/ns/id",
    ]
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
    own = memberships("self")
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
    real = cgroups._write
    hidden = []

    def write(path: str, value: str) -> None:
        if path.endswith("/cgroup.kill"):
            hidden.append(path)
            raise FileNotFoundError(path)
        real(path, value)

    monkeypatch.setattr(cgroups, "_write", write)

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


def test_frozen(cgroup: Cgroup, start: Start, trees: list[Hierarchy]) -> None:
    cgroup.create()
    read, write = os.pipe()

    def echo() -> None:
        while os.read(read, 1):
            pass

    child = start(echo)
    cgroup.attach(child.pid)
    cgroup.freeze()
    frozen = False
    while not frozen:  # the test's timeout ends it
        for tree in trees:
            path = next(path for other, path in cgroup._directories if other == tree)
            if "freezer" in tree.controllers:
                frozen = cgroups._read(f"{path}/freezer.state") == "FROZEN"
                break
            if tree.is_v2:
                frozen = "frozen 1" in cgroups._read(f"{path}/cgroup.events")
    signal.pidfd_send_signal(child.pidfd, signal.SIGTERM)
    cgroup.thaw()
    assert wait(child.pidfd) == 128 + signal.SIGTERM
    os.close(read)
    os.close(write)


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
        assert cgroups._read(f"{path}/{file}") == cgroups._read(f"{cpuset[0].mount}/{file}")
        cgroups._write(f"{path}/{file}", "0")
    cgroup.create()
    assert cgroups._read(f"{path}/cpuset.cpus") == "0"
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

    def write(path: str, value: str) -> None:
        written.append((os.path.relpath(path, str(tmp_path)), value))
        if value == "+cpu":
            raise OSError(errno.EINVAL, "realtime processes")

    def read(path: str) -> str:
        return "memory" if path.endswith("subtree_control") else "cpu memory pids"

    monkeypatch.setattr(cgroups, "_write", write)
    monkeypatch.setattr(cgroups, "_read", read)
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
    monkeypatch.setattr(cgroups, "_write", lambda path, value: written.append(path + value))
    warm()
    assert len(written) == bool(V1)
    monkeypatch.setattr(cgroups, "hierarchies", lambda: V2)
    warm()
    assert len(written) == bool(V1)
