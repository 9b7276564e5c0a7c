from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from shim.linux.cgroups import Cgroup, Hierarchy, hierarchies
from shim.linux.cgroups.files import read, write
from shim.linux.clone import Child, clone, wait

V2 = [tree for tree in hierarchies() if tree.is_v2]
TREES = {
    "all": list(hierarchies()),
    "v1": [tree for tree in hierarchies() if not tree.is_v2],
    "v2": V2,
}


@pytest.fixture(autouse=True)
def controllers() -> Iterator[None]:
    """Leave the controllers that the root of v2 has switched on as they were."""
    files = [f"{tree.mount}/cgroup.subtree_control" for tree in V2]
    before = [set(read(file).split()) for file in files]
    yield
    for file, old in zip(files, before, strict=True):
        for controller in set(read(file).split()) - old:
            with suppress(OSError):  # somebody else has use for it by now
                write(file, "-" + controller)


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
