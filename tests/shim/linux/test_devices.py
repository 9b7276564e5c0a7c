from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from oci.decoding import SpecError
from oci.linux import Device, IDMapping
from shim.linux import devices
from shim.linux.clone import CLONE_NEWNS, CLONE_NEWUSER, clone, wait
from shim.linux.user_namespace import Ids, write_mappings
from tests.shim.linux.mountinfo import mounted

InMounts = Callable[..., None]

DEFAULT = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}


def open_root(rootfs: Path) -> int:
    return os.open(rootfs, os.O_PATH | os.O_DIRECTORY)


def made(path: Path) -> tuple[str, int, int, int, int, int]:
    found = os.lstat(path)
    kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}[stat.S_IFMT(found.st_mode)]
    number = found.st_rdev
    mode = stat.S_IMODE(found.st_mode)
    return kind, os.major(number), os.minor(number), mode, found.st_uid, found.st_gid


def test_default_devices_and_links(rootfs: Path, in_mounts: InMounts) -> None:
    (rootfs / "dev").mkdir()
    (rootfs / "dev/ptmx").write_text("not one")

    def entry() -> None:
        os.umask(0o077)
        root = open_root(rootfs)
        fds = os.listdir("/proc/self/fd")
        devices.create(root, ())
        devices.create_links(root)
        devices.create(root, ())  # an image may have them
        devices.create_links(root)
        assert os.listdir("/proc/self/fd") == fds

    in_mounts(entry)
    for name, (major, minor) in DEFAULT.items():
        assert made(rootfs / "dev" / name) == ("c", major, minor, 0o666, 0, 0)
    (rootfs / "dev/null").read_bytes()
    links = {
        name: os.readlink(rootfs / "dev" / name)
        for name in ("fd", "stdin", "stdout", "stderr", "ptmx")
    }
    assert links == {
        "fd": "/proc/self/fd",
        "stdin": "/proc/self/fd/0",
        "stdout": "/proc/self/fd/1",
        "stderr": "/proc/self/fd/2",
        "ptmx": "pts/ptmx",
    }


def test_devices_of_the_spec(rootfs: Path, in_mounts: InMounts) -> None:
    given = (
        Device(path="/dev/net/tun", type="c", major=10, minor=200, file_mode=0o620, uid=5, gid=6),
        Device(path="/dev/loop9", type="b", major=7, minor=9, file_mode=0o100_640),
        Device(path="/run/pipe", type="p"),
        Device(path="/dev/null", type="c", major=1, minor=3, file_mode=0o600),
        Device(path="/dev/high", type="u", major=4095, minor=1048575),
    )
    in_mounts(lambda: devices.create(open_root(rootfs), given))
    assert made(rootfs / "dev/net/tun") == ("c", 10, 200, 0o620, 5, 6)
    assert made(rootfs / "dev/loop9") == ("b", 7, 9, 0o640, 0, 0)
    assert made(rootfs / "run/pipe") == ("p", 0, 0, 0o666, 0, 0)
    assert made(rootfs / "dev/null")[3] == 0o600
    assert made(rootfs / "dev/high")[:3] == ("c", 4095, 1048575)


def test_owner_is_of_the_container(rootfs: Path, in_mounts: InMounts) -> None:
    ids = Ids((IDMapping(host_id=1000, size=10),), (IDMapping(host_id=2000, size=10),))
    given = (Device(path="/dev/x", type="c", major=1, minor=3, uid=5, gid=6),)

    def entry() -> None:
        root = open_root(rootfs)
        devices.create(root, given, ids)
        devices.create_links(root, ids)

    in_mounts(entry)
    assert made(rootfs / "dev/x")[4:] == (1005, 2006)
    assert made(rootfs / "dev/null")[4:] == (1000, 2000)
    for name in ("", "fd", "ptmx"):
        found = os.lstat(rootfs / "dev" / name)
        assert (found.st_uid, found.st_gid) == (1000, 2000)


def test_bound_where_nodes_may_not_be_made(rootfs: Path, in_mounts: InMounts) -> None:
    os.chown(rootfs, 1000, 1000)
    os.chmod(rootfs.parent, 0o755)
    mapping = (IDMapping(host_id=1000, size=1),)

    def entry() -> None:
        read, write = os.pipe()

        def unprivileged() -> None:
            os.close(write)
            os.read(read, 1)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            root = open_root(rootfs)
            devices.create(root, ())
            for name, (major, minor) in DEFAULT.items():
                assert made(rootfs / "dev" / name)[:3] == ("c", major, minor)
                assert mounted(rootfs / "dev" / name).fstype == "devtmpfs"
            (rootfs / "dev/null").write_bytes(b"x")
            odd = (Device(path="/dev/zero", type="c", major=1, minor=11),)
            with pytest.raises(OSError, match="something else is there"):
                devices.create(root, odd)
            with pytest.raises(FileNotFoundError):
                devices.create(root, (Device(path="/dev/odd", type="c", major=1, minor=11),))

        os.chmod(rootfs.parent.parent, 0o755)
        os.chmod(rootfs.parent.parent.parent, 0o755)
        child = clone(unprivileged, CLONE_NEWUSER | CLONE_NEWNS)
        write_mappings(f"/proc/{child.pid}", mapping, mapping)
        os.close(write)
        assert wait(child.pidfd) == 0

    in_mounts(entry)


def test_console(rootfs: Path, in_mounts: InMounts) -> None:
    controller, terminal = os.openpty()

    def entry() -> None:
        devices.bind_console(open_root(rootfs), os.ttyname(terminal))
        found = os.open(rootfs / "dev/console", os.O_RDWR | os.O_NOCTTY)
        assert os.isatty(found)
        os.write(found, b"x")
        assert os.read(controller, 1) == b"x"

    try:
        in_mounts(entry)
    finally:
        os.close(controller)
        os.close(terminal)


def test_hostile_links(rootfs: Path, tmp_path: Path, in_mounts: InMounts) -> None:
    """`outside` is checked to be empty by the fixture."""
    (rootfs / "dev").symlink_to(tmp_path / "outside")

    def entry() -> None:
        root = open_root(rootfs)
        devices.create(root, ())
        devices.create_links(root)

    in_mounts(entry)
    inside = rootfs / str(tmp_path).lstrip("/") / "outside"
    assert {*DEFAULT, "fd", "ptmx"} <= set(os.listdir(inside))


def test_what_is_there_is_not_opened_or_changed(rootfs: Path, in_mounts: InMounts) -> None:
    (rootfs / "dev").mkdir()
    (rootfs / "dev/null").symlink_to("../target")
    (rootfs / "target").write_text("x")

    def entry() -> None:
        with pytest.raises(OSError, match=r"linux.devices: something else is there") as e:
            devices.create(open_root(rootfs), ())
        assert (e.value.errno, e.value.filename) == (errno.EEXIST, "/dev/null")

    in_mounts(entry)
    assert (rootfs / "target").read_text() == "x"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (Device(path="/dev/x", type="q"), "unknown type 'q'"),
        (Device(path="/dev/x", type="c", major=-1), "-1:0 is no device"),
        (Device(path="/dev/x", type="b", minor=2**20), "0:1048576 is no device"),
    ],
)
def test_what_is_no_device(device: Device, message: str, rootfs: Path, in_mounts: InMounts) -> None:
    def entry() -> None:
        with pytest.raises(SpecError) as e:
            devices.create(open_root(rootfs), (device,))
        assert str(e.value) == f"linux.devices: /dev/x: {message}"

    in_mounts(entry)
