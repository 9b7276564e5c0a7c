from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from oci.decoding import SpecError
from shim.linux import mapped_rootfs
from tests.shim.linux.mountinfo import mounted, mounts_at

InMounts = Callable[..., None]

MAPS = ["uidmap=0:1000:10,10:5000:1", "gidmap=0:2000:10"]


def owner(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


@pytest.mark.parametrize("count", [1, 3])
def test_overlay(count: int, tmp_path: Path, in_mounts: InMounts) -> None:
    target = tmp_path / "rootfs"
    store = tmp_path / "store"
    target.mkdir()
    store.mkdir()

    def entry() -> None:
        for number in range(count):
            (store / str(number)).mkdir()
            (store / str(number) / f"file{number}").write_text("x")
        os.chown(store / "0/file0", 10, 3)
        for name in ("upper", "work"):
            (store / name).mkdir()
        os.chown(store / "upper", 1000, 2000)
        lower = ":".join(str(store / str(number)) for number in range(count))
        options = [f"workdir={store}/work", f"upperdir={store}/upper", f"lowerdir={lower}", *MAPS]
        os.chdir(tmp_path)
        fds = os.listdir("/proc/self/fd")
        mapped_rootfs.mount("overlay", str(target), "overlay", options)
        assert os.listdir("/proc/self/fd") == fds
        assert os.getcwd() == str(tmp_path)
        assert mounted(target).fstype == "overlay"
        assert owner(target / "file0") == (5000, 2003)
        for number in range(1, count):
            assert owner(target / f"file{number}") == (1000, 2000)
        assert owner(target) == (1000, 2000)
        assert {f"file{number}" for number in range(count)} == set(os.listdir(target))
        os.chdir(target)
        os.setresgid(2000, 2000, 2000)
        os.setresuid(1000, 1000, 1000)
        os.mkdir("new")

    in_mounts(entry)


def test_bind_readonly(tmp_path: Path, in_mounts: InMounts) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_text("x")

    def entry() -> None:
        mapped_rootfs.mount(str(source), str(target), "bind", ["rbind", "ro", *MAPS])
        assert owner(target / "file") == (1000, 2000)
        assert {"ro", "idmapped"} <= mounted(target).options

    in_mounts(entry)


def test_without_mappings(tmp_path: Path, in_mounts: InMounts) -> None:
    in_mounts(lambda: mapped_rootfs.mount("tmpfs", str(tmp_path), "tmpfs", ["ro"]))


def test_failure_leaves_no_mount(tmp_path: Path, in_mounts: InMounts) -> None:
    def entry() -> None:
        options = [f"lowerdir={tmp_path}/missing", *MAPS]
        with pytest.raises(FileNotFoundError) as e:
            mapped_rootfs.mount("overlay", str(tmp_path), "overlay", options)
        assert e.value.filename == f"{tmp_path}/missing"
        assert mounts_at(tmp_path) == []

    in_mounts(entry)


@pytest.mark.parametrize(
    ("fstype", "options", "message"),
    [
        ("overlay", MAPS[:1], "rootfs: /x: expected both uidmap and gidmap"),
        ("ext4", MAPS, "rootfs: /x: a ext4 is not mounted with ids mapped"),
        (
            "overlay",
            ["uidmap=0:1"],
            "rootfs: uidmap=0:1: expected container-id:host-id:size",
        ),
        (
            "overlay",
            ["uidmap=0:-1:5", "gidmap=0:0:1"],
            "rootfs: uidmap=0:-1:5: expected container-id:host-id:size",
        ),
        (
            "overlay",
            ["uidmap=0:4294967295:1", "gidmap=0:0:1"],
            "rootfs: uidmap=0:4294967295:1: Out of range, expected ids <= 4294967294",
        ),
    ],
)
def test_what_is_no_mapping(fstype: str, options: list[str], message: str) -> None:
    with pytest.raises(SpecError) as e:
        mapped_rootfs.mount("s", "/x", fstype, options)
    assert str(e.value) == message
