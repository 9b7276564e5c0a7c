from __future__ import annotations

import mmap
import select
import signal
from collections.abc import Callable, Iterator

import pytest

from oci.linux import Memory, Resources
from shim.linux.cgroups import Cgroup, hierarchies
from shim.linux.cgroups.oom import OomWatch
from shim.linux.cgroups.trees import v2_controllers
from shim.linux.clone import Child, wait

Start = Callable[..., Child]
MB = 1 << 20

TREES = [tree for tree in hierarchies() if tree.is_v2 or "memory" in tree.controllers]
pytestmark = pytest.mark.skipif(
    not any("memory" in (tree.controllers or v2_controllers(tree.mount)) for tree in TREES),
    reason="no memory controller",
)


def readable(watch: OomWatch, timeout: float = 0) -> bool:
    return bool(select.select([watch], [], [], timeout)[0])


def bomb(cgroup: Cgroup) -> None:
    cgroup.attach()
    memory = mmap.mmap(-1, 64 * MB)
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1


@pytest.fixture
def pod(name: str) -> Cgroup:
    pod = Cgroup.for_path(f"/{name}/pod")
    pod.create()
    return pod


@pytest.fixture
def cgroup(pod: Cgroup, name: str) -> Cgroup:
    cgroup = Cgroup.for_path(f"/{name}/pod/container")
    cgroup.create()
    return cgroup


@pytest.fixture
def watch(cgroup: Cgroup) -> Iterator[OomWatch]:
    watch = OomWatch(cgroup)
    yield watch
    watch.close()


LIMIT = Resources(memory=Memory(limit=16 * MB, swap=16 * MB))


def test_kills_are_heard_and_counted(cgroup: Cgroup, watch: OomWatch, start: Start) -> None:
    cgroup.limit(LIMIT, update=True)
    assert not readable(watch)
    assert watch.kills() == 0
    watch.clear()
    for count in (1, 2):
        child = start(lambda: bomb(cgroup))
        assert readable(watch, 10)
        assert wait(child.pidfd) == 128 + signal.SIGKILL
        assert watch.kills() == count
        watch.clear()
        watch.clear()
    second = OomWatch(cgroup)
    assert second.kills() == 2
    second.close()


def test_limit_of_the_pod(pod: Cgroup, cgroup: Cgroup, watch: OomWatch, start: Start) -> None:
    pod.limit(LIMIT, update=True)
    child = start(lambda: bomb(cgroup))
    assert readable(watch, 10)
    assert wait(child.pidfd) == 128 + signal.SIGKILL
    assert watch.kills() == 1


def test_an_end_without_a_kill(cgroup: Cgroup, watch: OomWatch, start: Start) -> None:
    child = start()
    cgroup.attach(child.pid)
    cgroup.kill()
    assert wait(child.pidfd) == 128 + signal.SIGKILL
    assert watch.kills() == 0


def test_count_outlives_the_cgroup(cgroup: Cgroup, watch: OomWatch, start: Start) -> None:
    cgroup.limit(LIMIT, update=True)
    wait(start(lambda: bomb(cgroup)).pidfd)
    assert watch.kills() == 1
    watch.clear()
    cgroup.delete(5)
    assert cgroup.unified or readable(watch, 10)
    assert watch.kills() == 1


def test_gone(name: str) -> None:
    with pytest.raises(FileNotFoundError):
        OomWatch(Cgroup.for_path(f"/{name}/none"))


def test_no_memory_controller(name: str) -> None:
    others = [tree for tree in hierarchies() if not tree.is_v2 and tree not in TREES]
    if not others:
        pytest.skip("no cgroup v1")
    with pytest.raises(FileNotFoundError, match="memory controller"):
        OomWatch(Cgroup.for_path(f"/{name}", others))
