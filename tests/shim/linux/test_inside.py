"""What follows no symlink out is tested with its users: mounts, devices, masks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shim.linux.inside import Owner, create_inside, open_inside, split_inside


def path_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.fixture
def root(rootfs: Path) -> int:
    return os.open(rootfs, os.O_PATH | os.O_DIRECTORY)


def test_directory_and_name(root: int, rootfs: Path) -> None:
    (rootfs / "link").symlink_to("/real")
    (rootfs / "real").mkdir()
    for path, directory, name in (
        ("/null", "", "null"),
        ("dev/null", "/dev", "null"),
        ("/link/net/./tun/", "/real/net", "tun"),
        ("/a/../link", "", "link"),
    ):
        parent, found = split_inside(root, path)
        assert (path_of(parent), found) == (f"{rootfs}{directory}", name)
    for path in ("/", "", "/..", "/a/.."):
        with pytest.raises(OSError) as e:
            split_inside(root, path)
        assert e.value.errno == errno.EINVAL
    os.close(root)


def test_created_with_an_owner(root: int, rootfs: Path) -> None:
    (rootfs / "mine").mkdir()
    os.close(create_inside(root, "/mine/a/file", is_dir=False, owner=Owner(7, 8)))
    owners = [os.stat(rootfs / path).st_uid for path in ("mine", "mine/a", "mine/a/file")]
    assert owners == [0, 7, 7]
    assert (rootfs / "mine/a/file").is_file()
    os.close(root)


def test_magic_links_are_not_followed(root: int, rootfs: Path) -> None:
    proc = os.open("/", os.O_PATH)
    with pytest.raises(OSError) as e:
        open_inside(proc, "proc/self/root")
    assert e.value.errno == errno.ELOOP
    os.close(proc)
    os.close(root)
