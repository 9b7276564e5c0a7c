from __future__ import annotations

import os

import pytest

from shim.linux.cgroups import Cgroup, Hierarchy, hierarchies


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
