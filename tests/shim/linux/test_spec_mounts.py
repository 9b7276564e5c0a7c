from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from oci.decoding import SpecError
from oci.linux import IDMapping, Linux, Namespace
from oci.runtime import Mount
from shim.linux import spec_mounts
from shim.linux.cgroups.trees import hierarchies, own
from shim.linux.clone import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWPID,
)
from tests.shim.linux.mountinfo import mounted

InMounts = Callable[..., None]

# What containerd gives every container, apart from cgroups.
CONTAINERDS = (
    Mount(destination="/proc", type="proc", source="proc", options=("nosuid", "noexec", "nodev")),
    Mount(
        destination="/dev",
        type="tmpfs",
        source="tmpfs",
        options=("nosuid", "strictatime", "mode=755", "size=65536k"),
    ),
    Mount(
        destination="/dev/pts",
        type="devpts",
        source="devpts",
        options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    Mount(
        destination="/dev/shm",
        type="tmpfs",
        source="shm",
        options=("nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
    ),
    Mount(
        destination="/dev/mqueue",
        type="mqueue",
        source="mqueue",
        options=("nosuid", "noexec", "nodev"),
    ),
    Mount(
        destination="/sys",
        type="sysfs",
        source="sysfs",
        options=("nosuid", "noexec", "nodev", "ro"),
    ),
    Mount(
        destination="/run",
        type="tmpfs",
        source="tmpfs",
        options=("nosuid", "strictatime", "mode=755", "size=65536k"),
    ),
)
CGROUP = Mount(
    destination="/sys/fs/cgroup",
    type="cgroup",
    source="cgroup",
    options=("nosuid", "noexec", "nodev", "relatime", "ro"),
)
NEW = CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNET


def open_root(rootfs: Path) -> int:
    return os.open(rootfs, os.O_PATH | os.O_DIRECTORY)


def test_what_every_container_has(rootfs: Path, in_mounts: InMounts) -> None:
    def entry() -> None:
        root = open_root(rootfs)
        fds = os.listdir("/proc/self/fd")
        for entry in CONTAINERDS:
            spec_mounts.mount(root, entry, Linux())
        assert os.listdir("/proc/self/fd") == fds
        for entry in CONTAINERDS:
            found = mounted(f"{rootfs}{entry.destination}")
            assert found.fstype == entry.type
            wanted = {o for o in entry.options if o in ("nosuid", "noexec", "nodev", "ro")}
            shown = found.options - {"rw", "relatime"}
            assert shown == wanted, entry.destination
        pts = mounted(rootfs / "dev/pts").data
        assert {"gid=5", "mode=620", "ptmxmode=666"} <= set(pts.split(","))
        assert os.listdir(rootfs / "dev/pts") == ["ptmx"]
        assert {int(name) for name in os.listdir(rootfs / "proc") if name.isdigit()} == {1}
        assert os.listdir(rootfs / "sys/class/net") == ["lo"]
        assert os.stat(rootfs / "dev/shm").st_mode & 0o7777 == 0o1777

    in_mounts(entry, NEW)


def test_files_as_containerd_binds_them(rootfs: Path, tmp_path: Path, in_mounts: InMounts) -> None:
    for name in ("hosts", "resolv.conf", "hostname"):
        (tmp_path / name).write_text(name)
    (rootfs / "etc").mkdir()
    (rootfs / "etc/resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
    entries = [
        Mount(
            destination=f"/etc/{name}",
            type="bind",
            source=str(tmp_path / name),
            options=("rbind", "rprivate", "ro"),
        )
        for name in ("hosts", "resolv.conf", "hostname")
    ]

    def entry() -> None:
        root = open_root(rootfs)
        for each in entries:
            spec_mounts.mount(root, each, Linux())
        spec_mounts.seal(root, entries)
        for name in ("hosts", "hostname"):
            assert (rootfs / "etc" / name).read_text() == name
            assert "ro" in mounted(rootfs / "etc" / name).options
        inside = rootfs / "run/systemd/resolve/stub-resolv.conf"
        assert inside.read_text() == "resolv.conf"

    in_mounts(entry)


def test_readonly_tmpfs_after_what_is_in_it(rootfs: Path, in_mounts: InMounts) -> None:
    entries = (
        Mount(destination="/a", type="tmpfs", source="tmpfs", options=("ro", "nosuid", "noexec")),
        Mount(destination="/a/b", type="tmpfs", source="tmpfs", options=("nodev",)),
    )

    def entry() -> None:
        root = open_root(rootfs)
        for each in entries:
            spec_mounts.mount(root, each, Linux())
        (rootfs / "a/b/x").write_text("")
        spec_mounts.seal(root, entries)
        assert {"ro", "nosuid", "noexec"} <= mounted(rootfs / "a").options
        (rootfs / "a/b/y").write_text("")
        with pytest.raises(OSError) as e:
            (rootfs / "a/x").write_text("")
        assert e.value.errno == errno.EROFS

    in_mounts(entry)


@pytest.mark.skipif(
    not [tree for tree in hierarchies() if not tree.is_v2], reason="there is only cgroup v2"
)
@pytest.mark.parametrize("namespace", [False, True])
def test_cgroup_v1(namespace: bool, rootfs: Path, in_mounts: InMounts) -> None:
    linux = Linux(namespaces=(Namespace(type="cgroup"),) if namespace else ())

    def entry() -> None:
        root = open_root(rootfs)
        spec_mounts.mount(root, CONTAINERDS[5], linux)
        spec_mounts.mount(root, CGROUP, linux)
        top = mounted(rootfs / "sys/fs/cgroup")
        assert (top.fstype, "ro" in top.options) == ("tmpfs", True)
        for tree in hierarchies():
            if tree.is_v2:
                continue
            found = mounted(rootfs / "sys/fs/cgroup" / os.path.basename(tree.mount))
            assert found.fstype == "cgroup"
            assert {"ro", "nosuid", "nodev", "noexec"} <= found.options
            assert tree.controllers <= set(found.data.split(","))
            assert found.root == own()[tree.controllers]

    in_mounts(entry, NEW | (CLONE_NEWCGROUP if namespace else 0))


def test_cgroup_v2(rootfs: Path, in_mounts: InMounts, monkeypatch: pytest.MonkeyPatch) -> None:
    only = tuple(tree for tree in hierarchies() if tree.is_v2)
    if not only:
        pytest.skip("there is no cgroup v2")
    monkeypatch.setattr(spec_mounts, "hierarchies", lambda: only)

    def entry() -> None:
        root = open_root(rootfs)
        spec_mounts.mount(root, CGROUP, Linux(namespaces=(Namespace(type="cgroup"),)))
        found = mounted(rootfs / "sys/fs/cgroup")
        assert found.fstype == "cgroup2"
        assert {"ro", "nosuid", "nodev", "noexec"} <= found.options
        assert "cgroup.procs" in os.listdir(rootfs / "sys/fs/cgroup")

    in_mounts(entry, CLONE_NEWCGROUP)


MAPPED = Linux(
    namespaces=(Namespace(type="user"),),
    uid_mappings=(IDMapping(host_id=1000, size=100),),
    gid_mappings=(IDMapping(host_id=2000, size=100),),
)


def test_in_a_user_namespace_all_is_the_containers(rootfs: Path, in_mounts: InMounts) -> None:
    entries = (
        *CONTAINERDS,
        Mount(destination="/new/dir", type="tmpfs", source="t", options=("uid=3", "gid=4")),
    )

    def entry() -> None:
        root = open_root(rootfs)
        for each in entries:
            spec_mounts.mount(root, each, MAPPED)
        for path, owner in (
            ("dev", (1000, 2000)),
            ("dev/shm", (1000, 2000)),
            ("new", (1000, 2000)),
            ("new/dir", (1003, 2004)),
        ):
            found = os.stat(rootfs / path)
            assert (found.st_uid, found.st_gid) == owner, path
        assert "gid=2005" in mounted(rootfs / "dev/pts").data.split(",")

    in_mounts(entry, NEW)


@pytest.mark.parametrize(
    ("options", "own", "owner"),
    [
        (("rbind", "idmap"), False, (1000, 2000)),
        (("rbind", "ridmap"), True, (7, 8)),
        (("rbind",), True, (7, 8)),
        (("rbind",), False, (0, 0)),
    ],
)
def test_mapped_bind(
    options: tuple[str, ...],
    own: bool,
    owner: tuple[int, int],
    rootfs: Path,
    tmp_path: Path,
    in_mounts: InMounts,
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("")
    entry_ = Mount(
        destination="/v",
        type="bind",
        source=str(volume),
        options=options,
        uid_mappings=(IDMapping(host_id=7, size=1),) if own else (),
        gid_mappings=(IDMapping(host_id=8, size=1),) if own else (),
    )

    def entry() -> None:
        fds = os.listdir("/proc/self/fd")
        root = open_root(rootfs)
        spec_mounts.mount(root, entry_, MAPPED)
        os.close(root)
        assert os.listdir("/proc/self/fd") == fds
        found = os.stat(rootfs / "v/file")
        assert (found.st_uid, found.st_gid) == owner

    in_mounts(entry, CLONE_NEWPID)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            Mount(destination="/x", type="bind", source="/tmp", options=("rbind", "size=1")),
            "mounts: /x: size=1: not of a bind mount",
        ),
        (
            Mount(destination="/x", type="tmpfs", options=("idmap",)),
            "mounts: /x: only bind mounts map ids",
        ),
        (
            Mount(destination="/x", type="bind", source="/tmp", options=("bind", "idmap")),
            "mounts: /x: expected both uid and gid mappings",
        ),
    ],
)
def test_what_makes_no_sense(entry: Mount, message: str, rootfs: Path) -> None:
    with pytest.raises(SpecError) as e:
        spec_mounts.mount(open_root(rootfs), entry, Linux())
    assert str(e.value) == message


def test_volume_over_a_part_of_proc(rootfs: Path, tmp_path: Path, in_mounts: InMounts) -> None:
    """As a pod may ask for: to have the runtime's labels and sysctls written into a file."""
    volume = Mount(
        destination="/proc/self/attr", type="bind", source=str(tmp_path), options=("rbind",)
    )

    def entry() -> None:
        root = open_root(rootfs)
        spec_mounts.mount(root, CONTAINERDS[0], Linux())
        with pytest.raises(OSError) as e:
            spec_mounts.mount(root, volume, Linux())
        assert e.value.filename == "/proc/self/attr"

    in_mounts(entry, CLONE_NEWPID)
