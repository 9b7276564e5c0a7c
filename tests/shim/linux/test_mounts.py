from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from oci.decoding import SpecError
from oci.linux import IDMapping
from shim.linux import mounts, user_namespace
from shim.linux.clone import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, clone, wait
from shim.linux.inside import Owner
from shim.linux.libc import LIBC
from shim.linux.mounts import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_SHARED,
    MS_SLAVE,
    MS_STRICTATIME,
    MountOptions,
    copy_tree,
    enter_root,
    mount,
    mount_all,
    mount_at,
    parse_options,
    pivot_root,
    place_tree,
    umount,
    umount_all,
)
from tests.shim.linux.mountinfo import Mount, mounted, mounts_at

InMounts = Callable[..., None]


maps_tmpfs = pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 3),
    reason="a tmpfs maps ids since Linux 6.3",
)

# Options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], MountOptions()),
        (["defaults"], MountOptions()),
        (["ro", "nosuid", "nodev"], MountOptions(MS_RDONLY | MS_NOSUID | MS_NODEV)),
        (["rbind", "rprivate"], MountOptions(MS_BIND | MS_REC, 0, (MS_PRIVATE | MS_REC,))),
        (["shared", "rslave"], MountOptions(0, 0, (MS_SHARED, MS_SLAVE | MS_REC))),
        (["ro", "rw"], MountOptions(0, MS_RDONLY)),
        (["rw", "ro"], MountOptions(MS_RDONLY, 0)),
        (["noexec", "exec", "suid"], MountOptions(0, MS_NOEXEC | MS_NOSUID)),
        (["strictatime", "relatime"], MountOptions(MS_RELATIME)),
        (["relatime", "strictatime"], MountOptions(MS_STRICTATIME)),
        (["mode=755", "size=64k", "ro"], MountOptions(MS_RDONLY, data="mode=755,size=64k")),
        (["x-systemd.automount", "X-mount.mkdir", "gid=5"], MountOptions(data="gid=5")),
        (["rro", "rnoexec"], MountOptions(recursive=(0x9, 0))),
        (["rro", "rrw"], MountOptions(recursive=(0, 0x1))),
        (["rrw", "rro"], MountOptions(recursive=(0x1, 0))),
        (["rnoatime", "rstrictatime"], MountOptions(recursive=(0x20, 0x70))),
        (["rstrictatime", "rrelatime"], MountOptions(recursive=(0, 0x70))),
    ],
)
def test_parse_options(options: list[str], expected: MountOptions) -> None:
    assert parse_options(options) == expected


def test_option_names_of_the_runtime_spec() -> None:
    """Each name that the spec requires has a meaning, so none of them gets to the filesystem."""
    names = """
        async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime
        nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid
        nosymfollow private rbind relatime remount ro rprivate rshared rslave runbindable rw shared
        silent slave strictatime suid sync tmpcopyup unbindable idmap ridmap ratime rnorelatime
        rnostrictatime rdev rdiratime rexec rnoatime rnodev
        rnodiratime rnoexec rnosuid rnosymfollow rrelatime rro rrw rstrictatime rsuid rsymfollow
    """
    for name in names.split():
        assert parse_options([name]).data == "", name


# The calls


def test_errors_name_the_target(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(OSError) as e:
        mount("tmpfs", missing, "tmpfs")
    assert (e.value.filename, e.value.strerror) == (
        missing,
        "mount tmpfs: No such file or directory",
    )
    with pytest.raises(OSError) as e:
        mount("/dev/nope", str(tmp_path), "ext4")
    assert e.value.strerror == "mount ext4 /dev/nope: No such file or directory"
    with pytest.raises(OSError) as e:
        umount(str(tmp_path))
    assert (e.value.errno, e.value.filename) == (errno.EINVAL, str(tmp_path))
    with pytest.raises(OSError) as e:
        pivot_root(str(tmp_path), missing)
    assert (e.value.errno, e.value.filename) == (errno.ENOENT, str(tmp_path))


def test_more_options_than_the_kernel_reads_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="5000 bytes of options") as e:
        mount("tmpfs", str(tmp_path), "tmpfs", 0, "x" * 5000)
    assert e.value.errno == errno.E2BIG


def test_filesystem_with_flags_and_data(tmp_path: Path, in_mounts: InMounts) -> None:
    def entry() -> None:
        options = parse_options(["nosuid", "noexec", "size=64k", "mode=700", "rshared"])
        mount_all("tmpfs", str(tmp_path), "tmpfs", options)
        found = mounted(tmp_path)
        assert {"rw", "nosuid", "noexec", "relatime"} == found.options
        assert "size=64k" in found.data
        assert found.propagation[0].startswith("shared:")

    in_mounts(entry)


def test_bind_keeps_the_flags_nobody_asked_to_change(tmp_path: Path, in_mounts: InMounts) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()

    def entry() -> None:
        mount("tmpfs", str(source), "tmpfs", MS_NOSUID | MS_NOEXEC | mounts.MS_NOATIME)
        for options, expected in (
            (["bind"], {"rw", "nosuid", "noexec", "noatime"}),
            (["bind", "ro"], {"ro", "nosuid", "noexec", "noatime"}),
            (["rbind", "ro", "nodev"], {"ro", "nosuid", "noexec", "noatime", "nodev"}),
            (["bind", "exec", "relatime"], {"rw", "nosuid", "relatime"}),
            (["bind", "suid", "rw", "strictatime"], {"rw", "noexec"}),
        ):
            mount_all(str(source), str(target), "none", parse_options(options))
            assert mounted(target).options == expected, options
            umount(str(target))
        mount_all(str(source), str(target), "bind", parse_options(["ro"]))
        assert "ro" in mounted(target).options
        assert "ro" not in mounted(source).options

    in_mounts(entry)


def test_bind_with_locked_flags(tmp_path: Path, in_mounts: InMounts) -> None:
    """In a user namespace the flags of the host's mount must not be dropped by accident."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()

    def unprivileged() -> None:
        mount_all(str(source), str(target), "bind", parse_options(["rbind", "ro"]))
        assert {"ro", "nosuid", "nodev"} <= mounted(target).options
        umount(str(target))
        with pytest.raises(PermissionError):
            mount_all(str(source), str(target), "bind", parse_options(["rbind", "suid"]))
        assert mounts_at(target) == []

    def entry() -> None:
        mount("tmpfs", str(source), "tmpfs", MS_NOSUID | MS_NODEV)
        read, write = os.pipe()

        def child() -> None:
            os.close(write)
            os.read(read, 1)
            unprivileged()

        identity = clone(child, CLONE_NEWUSER | CLONE_NEWNS)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{identity.pid}/{name}", "w") as file:
                file.write("0 0 1")
        os.close(write)
        assert wait(identity.pidfd) == 0

    in_mounts(entry)


def test_recursive_options_reach_what_is_below(tmp_path: Path, in_mounts: InMounts) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()

    def entry() -> None:
        mount("tmpfs", str(source), "tmpfs")
        (source / "below").mkdir()
        mount("tmpfs", str(source / "below"), "tmpfs")
        mount_all(str(source), str(target), "bind", parse_options(["rbind", "ro"]))
        assert "rw" in mounted(target / "below").options
        mount_all(str(source), str(target), "bind", parse_options(["rbind", "rro", "rnoatime"]))
        assert {"ro", "noatime"} == mounted(target / "below").options
        assert {"rw", "relatime"} == mounted(source / "below").options

    in_mounts(entry)


def test_what_cannot_be_configured_is_not_mounted(tmp_path: Path, in_mounts: InMounts) -> None:
    def entry() -> None:
        nonsense = parse_options(["bind"])._replace(propagation=(MS_PRIVATE | MS_SHARED,))
        with pytest.raises(OSError):
            mount_all(str(tmp_path), str(tmp_path), "bind", nonsense)
        assert mounts_at(tmp_path) == []

    in_mounts(entry)


# Overlays


def layers(directory: Path, count: int, padding: int) -> list[str]:
    paths = []
    for number in range(count):
        layer = directory / ("x" * padding) / "snapshots" / str(number) / "fs"
        layer.mkdir(parents=True)
        (layer / f"file{number}").write_text(str(number))
        paths.append(str(layer))
    return paths


def overlay_options(tmp_path: Path, lower: list[str]) -> list[str]:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    upper, work = f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work"
    return ["index=off", work, upper, "lowerdir=" + ":".join(lower)]


def test_overlay_with_more_layers_than_fit_a_page(tmp_path: Path, in_mounts: InMounts) -> None:
    target = tmp_path / "rootfs"
    target.mkdir()

    def entry() -> None:
        # Layers must be on a filesystem other than an overlay of its own.
        store = tmp_path / "store"
        store.mkdir()
        mount("tmpfs", str(store), "tmpfs")
        options = overlay_options(store, layers(store, 120, 100))
        assert len(",".join(options)) > 10_000
        os.chdir(tmp_path)
        mount_all("overlay", "rootfs", "overlay", parse_options(options))
        assert {f"file{n}" for n in range(120)} == set(os.listdir(target))
        (target / "new").write_text("x")
        assert (store / "upper" / "new").exists()
        assert os.getcwd() == str(tmp_path)

    in_mounts(entry)


@pytest.mark.parametrize("odd", ["one\\:colon", "relative"])
def test_overlay_that_cannot_be_shortened_says_so(tmp_path: Path, odd: str) -> None:
    target = tmp_path / "rootfs"
    target.mkdir()
    lower = [f"/{'x' * 100}/{n}" for n in range(50)] + [odd]
    with pytest.raises(OSError, match="bytes of options") as e:
        mount_all("overlay", str(target), "overlay", parse_options(["lowerdir=" + ":".join(lower)]))
    assert (e.value.errno, e.value.filename) == (errno.E2BIG, str(target))


# A hostile root


def at(root: Path, destination: str, *options: str, source: str = "tmpfs") -> None:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    before = set(os.listdir("/proc/self/fd"))
    try:
        fstype = "tmpfs" if source == "tmpfs" else "bind"
        mount_at(fd, destination, source, fstype, parse_options(options))
    finally:
        assert set(os.listdir("/proc/self/fd")) == before
        os.close(fd)


@pytest.mark.parametrize(
    ("links", "destination", "lands"),
    [
        ({}, "/data", "data"),
        ({}, "data", "data"),
        ({}, "/a/b/../c/./d", "a/c/d"),
        ({}, "/../../outside/x", "outside/x"),
        ({"etc": "/outside"}, "/etc/x", "outside/x"),
        ({"etc": "../outside"}, "/etc", "outside"),
        ({"etc": "../../../../../outside"}, "/etc/x/y", "outside/x/y"),
        ({"etc": "{tmp}/outside"}, "/etc", "{tmp}/outside"),
        ({"var": "/run", "run": "r/../r2"}, "/var/x", "r2/x"),
        ({"var": "run", "run": "/etc"}, "/var/../x", "x"),
        ({"last": "/etc/deep"}, "/last", "etc/deep"),
        ({"dot": "."}, "/dot/dot/x", "x"),
    ],
)
def test_destination_stays_inside(
    links: dict[str, str], destination: str, lands: str, rootfs: Path, in_mounts: InMounts
) -> None:
    tmp = str(rootfs.parent)
    for name, target in links.items():
        (rootfs / name).symlink_to(target.format(tmp=tmp))

    def entry() -> None:
        at(rootfs, destination)
        assert mounted(f"{rootfs}/{lands.format(tmp=tmp).lstrip('/')}").fstype == "tmpfs"

    in_mounts(entry)


def test_file_is_bound_to_a_file(tmp_path: Path, rootfs: Path, in_mounts: InMounts) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver")
    (rootfs / "etc").mkdir()
    (rootfs / "etc/resolv.conf").symlink_to("../run/resolv.conf")

    def entry() -> None:
        at(rootfs, "/etc/resolv.conf", "bind", "ro", source=str(tmp_path / "resolv.conf"))
        assert (rootfs / "run/resolv.conf").read_text() == "nameserver"
        with pytest.raises(OSError) as e:
            (rootfs / "run/resolv.conf").write_text("")
        assert e.value.errno == errno.EROFS

    in_mounts(entry)
    assert (rootfs / "run/resolv.conf").read_text() == ""


def test_mounts_on_mounts(tmp_path: Path, rootfs: Path, in_mounts: InMounts) -> None:
    """The flags of the second go to the second, and a third is found below the second."""

    def entry() -> None:
        at(rootfs, "/dev")
        at(rootfs, "/dev", "noexec")
        at(rootfs, "/dev", "ro", "nosuid", source=str(tmp_path))
        assert [m.options - {"relatime"} for m in mounts_at(rootfs / "dev")] == [
            {"rw"},
            {"rw", "noexec"},
            {"ro", "nosuid"},
        ]
        at(rootfs, "/dev/outside", "nodev")
        assert "nodev" in mounted(rootfs / "dev/outside").options

    in_mounts(entry)


def test_symlink_may_not_lead_into_proc(rootfs: Path, in_mounts: InMounts) -> None:
    (rootfs / "proc").mkdir()
    (rootfs / "etc").symlink_to("/proc/sys")
    (rootfs / "magic").symlink_to("/proc/self/root")

    def entry() -> None:
        mount("proc", str(rootfs / "proc"), "proc")
        for destination in ("/etc/kernel", "/proc/sys/kernel", "/proc/self/attr", "/proc"):
            with pytest.raises(PermissionError, match="may be mounted in /proc") as e:
                at(rootfs, destination)
            assert e.value.filename == destination
        with pytest.raises(PermissionError, match="may be mounted in /proc"):
            at(rootfs, "/proc/version", source="/dev/null")
        with pytest.raises(OSError) as magic:
            at(rootfs, "/magic/x")
        assert magic.value.errno == errno.ELOOP
        at(rootfs, "/proc/uptime", source="/dev/null")  # as lxcfs does
        at(rootfs, "/proc", source="/proc")
        fd = os.open(rootfs, os.O_PATH)
        mount_at(fd, "/proc", "proc", "proc", parse_options(["nosuid"]))
        assert len(mounts_at(rootfs / "proc")) == 3

    in_mounts(entry)


@pytest.mark.parametrize("fstype", ["proc", "sysfs"])
def test_proc_and_sys_are_where_they_say(fstype: str, rootfs: Path, in_mounts: InMounts) -> None:
    (rootfs / "real").mkdir()
    (rootfs / "proc").symlink_to("real")

    def entry() -> None:
        fd = os.open(rootfs, os.O_PATH)
        with pytest.raises(OSError, match=f"{fstype} is not mounted through a symlink") as e:
            mount_at(fd, "/proc", fstype, fstype, parse_options([]))
        assert (e.value.errno, e.value.filename) == (errno.ELOOP, "/proc")
        mount_at(fd, "/new/deep", fstype, fstype, parse_options(["ro"]))
        assert mounted(rootfs / "new/deep").fstype == fstype

    in_mounts(entry)


def test_tmpfs_has_the_mode_of_what_it_covers(rootfs: Path, in_mounts: InMounts) -> None:
    (rootfs / "tmp").mkdir()
    (rootfs / "tmp").chmod(0o1777)
    (rootfs / "private").mkdir()
    (rootfs / "private").chmod(0o700)

    def entry() -> None:
        at(rootfs, "/tmp")
        at(rootfs, "/private", "size=64k")
        at(rootfs, "/new")
        modes = [os.stat(rootfs / name).st_mode & 0o7777 for name in ("tmp", "private", "new")]
        assert modes == [0o1777, 0o700, 0o1777]
        at(rootfs, "/tmp", "mode=750")
        assert os.stat(rootfs / "tmp").st_mode & 0o7777 == 0o750

    in_mounts(entry)


def test_tmpfs_begins_with_what_it_covers(
    tmp_path: Path, rootfs: Path, in_mounts: InMounts
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    data = rootfs / "data"
    (data / "sub").mkdir(parents=True)
    (rootfs / "other").mkdir()
    data.chmod(0o710)
    os.chown(data, 5, 6)
    (data / "file").write_bytes(b"y" * 3_000_000)
    os.chown(data / "file", 7, 8)
    (data / "file").chmod(0o4751)
    os.utime(data / "file", ns=(10**9, 2 * 10**9))
    (data / "link").symlink_to(secret)
    os.mkfifo(data / "sub/fifo")
    os.mknod(data / "sub/kmsg", 0o20666, os.makedev(1, 11))

    def entry() -> None:
        at(rootfs, "/other", "tmpcopyup")
        assert "rw" in mounted(rootfs / "other").options
        at(rootfs, "/data", "tmpcopyup", "ro", "mode=755")
        assert mounted(data).fstype == "tmpfs"
        assert "ro" in mounted(data).options
        copied = os.stat(data / "file")
        assert (copied.st_uid, copied.st_gid, copied.st_mode) == (7, 8, 0o104751)
        assert (copied.st_mtime_ns, copied.st_size) == (2 * 10**9, 3_000_000)
        assert os.readlink(data / "link") == str(secret)
        assert os.listdir(data / "sub") == ["fifo"]  # devices come from the spec alone
        top = os.stat(data)
        assert (top.st_uid, top.st_gid, top.st_mode & 0o7777) == (5, 6, 0o710)
        with pytest.raises(OSError) as full:
            at(rootfs, "/data", "tmpcopyup", "size=1m")
        assert full.value.errno == errno.ENOSPC
        assert len(mounts_at(data)) == 1

    in_mounts(entry)


@maps_tmpfs
def test_ids_are_mapped(tmp_path: Path, rootfs: Path, in_mounts: InMounts) -> None:
    source = tmp_path / "volume"
    (source / "below").mkdir(parents=True)

    def entry() -> None:
        mount("tmpfs", str(source), "tmpfs")
        (source / "below").mkdir()
        mount("tmpfs", str(source / "below"), "tmpfs")
        (source / "file").write_text("x")
        namespace = user_namespace.create(
            [IDMapping(host_id=1000, size=10)], [IDMapping(host_id=2000, size=10)]
        )
        fd = os.open(rootfs, os.O_PATH)

        def owner(path: str) -> tuple[int, int]:
            found = os.stat(rootfs / path)
            return found.st_uid, found.st_gid

        for options, below in ((["rbind", "idmap"], (0, 0)), (["rbind", "ridmap"], (1000, 2000))):
            mapped = parse_options([*options, "ro"])
            mount_at(fd, "/v", str(source), "bind", mapped, user_namespace=namespace)
            assert {"ro", "idmapped"} <= mounted(rootfs / "v").options
            assert owner("v/file") == (1000, 2000)
            assert owner("v/below") == below
            assert os.stat(source / "file").st_uid == 0
        with pytest.raises(OSError, match="idmap: without mappings"):
            mount_at(fd, "/v", str(source), "bind", parse_options(["idmap"]))

    in_mounts(entry)


def test_made_mount_points_have_an_owner(rootfs: Path, in_mounts: InMounts) -> None:
    def entry() -> None:
        fd = os.open(rootfs, os.O_PATH)
        mount_at(fd, "/a/b", "tmpfs", "tmpfs", parse_options([]), owner=Owner(5, 6))
        mount_at(fd, "/c/null", "/dev/null", "bind", parse_options([]), owner=Owner(5, 6))

    in_mounts(entry)
    for path in ("a", "a/b", "c", "c/null"):
        found = os.stat(rootfs / path)
        assert (found.st_uid, found.st_gid) == (5, 6), path


@pytest.mark.parametrize("destination", ["/", "", "/.", "//./", "/..", "..", "/x/../", "/dot"])
def test_root_is_no_destination(destination: str, rootfs: Path) -> None:
    (rootfs / "x").mkdir()
    (rootfs / "dot").symlink_to("../..")
    with pytest.raises(OSError) as e:
        at(rootfs, destination)
    assert (e.value.errno, e.value.filename) == (errno.EINVAL, destination)


@pytest.mark.parametrize(
    ("prepare", "destination", "number"),
    [
        (lambda root: (root / "a").symlink_to("a"), "/a", errno.ELOOP),
        (lambda root: (root / "a").symlink_to("b/../a"), "/a/x", errno.ELOOP),
        (lambda root: (root / "a").write_text(""), "/a/b", errno.ENOTDIR),
        (lambda root: None, "/" + "n" * 300, errno.ENAMETOOLONG),
    ],
)
def test_errors_name_the_destination(
    prepare: Callable[[Path], None], destination: str, number: int, rootfs: Path
) -> None:
    prepare(rootfs)
    with pytest.raises(OSError) as e:
        at(rootfs, destination)
    assert (e.value.errno, e.value.filename) == (number, destination)


def test_errors_name_the_source(rootfs: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=missing) as e:
        at(rootfs, "/data", "rbind", source=missing)
    assert e.value.filename == "/data"
    assert os.listdir(rootfs) == []


def test_filesystem_errors_do_not_show_our_descriptors(rootfs: Path) -> None:
    with pytest.raises(OSError, match="tmpfs") as e:
        at(rootfs, "/data", "nonsense=1")
    assert (e.value.errno, e.value.filename) == (errno.EINVAL, "/data")
    assert "/proc" not in str(e.value)


def test_destination_replaced_during_the_mount(
    rootfs: Path, in_mounts: InMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour with access to the same volume swaps a directory, which is noticed."""
    (rootfs / "volume/data").mkdir(parents=True)
    attach = mounts._attach

    def swap(*arguments: object) -> None:
        attach(*arguments)  # type: ignore[arg-type]
        os.rename(rootfs / "volume", rootfs / "moved")
        (rootfs / "volume/data").mkdir(parents=True)

    monkeypatch.setattr(mounts, "_attach", swap)

    def entry() -> None:
        with pytest.raises(OSError, match="path changed"):
            at(rootfs, "/volume/data")

    in_mounts(entry)


def test_symlinks_swapped_all_the_time(rootfs: Path, tmp_path: Path, in_mounts: InMounts) -> None:
    """A neighbour swaps a directory and a symlink out of the root as fast as it can."""
    (rootfs / "volume/data").mkdir(parents=True)
    (rootfs / "evil").symlink_to(tmp_path / "outside")
    outside = str(tmp_path / "outside")

    def entry() -> None:
        pid = os.fork()
        if pid == 0:
            exchange = 1 << 1  # RENAME_EXCHANGE
            while True:
                LIBC.renameat2(
                    -100,
                    os.fsencode(rootfs / "volume"),
                    -100,
                    os.fsencode(rootfs / "evil"),
                    exchange,
                )
        try:
            results: set[int | None] = set()
            for _ in range(300):
                try:
                    at(rootfs, "/volume/data")
                    results.add(0)
                except OSError as e:
                    results.add(e.errno)
            assert 0 in results
            # Gone meanwhile; mounted where it is not any more; made in two places at once.
            assert results <= {0, errno.EXDEV, errno.ENOENT, errno.EEXIST, errno.ENOTDIR}
            with open("/proc/self/mountinfo") as file:
                assert not [m.point for m in map(Mount, file) if m.point.startswith(outside)]
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)

    in_mounts(entry)


# The root


@pytest.mark.parametrize("name", ["", "rslave", "rprivate", "slave", "private"])
def test_isolated_mounts_stay_inside(name: str, tmp_path: Path, in_mounts: InMounts) -> None:
    (tmp_path / "rootfs").mkdir()

    def entry() -> None:
        mount("tmpfs", str(tmp_path), "tmpfs")
        mount(None, str(tmp_path), None, MS_SHARED)
        (tmp_path / "rootfs").mkdir()

        def guest() -> None:
            mounts.isolate(str(tmp_path / "rootfs"), name)
            mount("tmpfs", str(tmp_path / "rootfs"), "tmpfs")
            assert mounted(tmp_path / "rootfs").fstype == "tmpfs"
            mounts.share_root(name)

        _run(guest, CLONE_NEWNS)
        assert mounts_at(tmp_path / "rootfs") == []

    in_mounts(entry)


def test_volume_shared_with_the_host(tmp_path: Path, in_mounts: InMounts) -> None:
    """Kubernetes' Bidirectional: what the guest mounts on its volume appears on the host."""
    volume, root = tmp_path / "volume", tmp_path / "rootfs"
    volume.mkdir()
    root.mkdir()

    def entry() -> None:
        mount("tmpfs", str(volume), "tmpfs")
        mount(None, str(volume), None, MS_SHARED)
        (volume / "inner").mkdir()
        mount("tmpfs", str(root), "tmpfs")

        def guest() -> None:
            mounts.isolate(str(root), "rshared")
            mount(str(root), str(root), None, MS_BIND | MS_REC)
            at(root, "/v", "rbind", "rshared", source=str(volume))
            enter_root(os.open(root, os.O_PATH))
            mounts.share_root("rshared")
            mount("tmpfs", "/v/inner", "tmpfs")

        _run(guest, CLONE_NEWNS)
        assert mounted(volume / "inner").fstype == "tmpfs"
        assert not mounts_at(root / "v")

    in_mounts(entry)


def _run(entry: Callable[[], None], flags: int) -> None:
    child = clone(entry, flags)
    assert wait(child.pidfd) == 0
    os.close(child.pidfd)


def test_all_mounts_of_a_directory_go(tmp_path: Path, in_mounts: InMounts) -> None:
    def entry() -> None:
        target = str(tmp_path)
        umount_all(target)  # nothing
        for _ in range(3):
            mount("x", target, "tmpfs")
        os.mkdir(f"{target}/below")
        mount("x", f"{target}/below", "tmpfs")
        here = os.open(f"{target}/below", os.O_RDONLY)
        umount_all(target)
        assert mounts_at(target) == mounts_at(f"{target}/below") == []
        os.close(here)
        umount_all(f"{target}/none")

    in_mounts(entry)


def test_a_tree_is_placed_from_another_namespace(tmp_path: Path, in_mounts: InMounts) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    ours, theirs = socket.socketpair()

    def other() -> None:
        mount("x", str(source), "tmpfs")
        (source / "below").mkdir()
        mount("y", str(source / "below"), "tmpfs")
        (source / "below" / "file").touch()
        socket.send_fds(theirs, [b"x"], [copy_tree(str(source))])

    def entry() -> None:
        _run(other, CLONE_NEWNS)
        _, (tree,), _, _ = socket.recv_fds(ours, 1, 1)
        assert mounts_at(str(source)) == []
        place_tree(tree, str(target))
        os.close(tree)
        assert (target / "below" / "file").exists()
        umount_all(str(target))
        assert not (target / "below").exists()
        with pytest.raises(OSError, match="open_tree"):
            copy_tree(str(target / "none"))

    in_mounts(entry)
    ours.close()
    theirs.close()


def test_propagation_nobody_knows() -> None:
    with pytest.raises(SpecError, match=r"linux.rootfsPropagation: unknown propagation 'all'"):
        mounts.isolate("/", "all")


def test_enter_root(tmp_path: Path, in_mounts: InMounts) -> None:
    (tmp_path / "marker").write_text("x")
    outside = os.getcwd()

    def entry() -> None:
        mount(str(tmp_path), str(tmp_path), None, MS_BIND)
        root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
        enter_root(root)
        assert os.listdir("/") == ["marker"]
        assert os.getcwd() == "/"
        assert not os.path.exists(outside)
        assert os.path.samestat(os.stat("/.."), os.stat("/"))

    in_mounts(entry, CLONE_NEWPID)


def test_enter_root_needs_a_mount(tmp_path: Path, in_mounts: InMounts) -> None:
    def entry() -> None:
        root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
        with pytest.raises(OSError) as e:
            enter_root(root)
        assert e.value.filename == str(tmp_path)

    in_mounts(entry)
