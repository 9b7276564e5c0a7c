from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.linux import mounts
from shim.linux.clone import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER
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
    enter_root,
    mount,
    mount_all,
    mount_at,
    parse_options,
    pivot_root,
    umount,
)


class Mount:
    """What /proc/self/mountinfo says about one mount (proc_pid_mountinfo(5))."""

    def __init__(self, line: str) -> None:
        fields, _, filesystem = line.rstrip("\n").partition(" - ")
        self.id, self.parent, _, self.root, self.point, options, *self.propagation = fields.split()
        self.fstype, self.source, self.data = filesystem.split(" ", 2)
        self.options = set(options.split(","))


def mounts_at(path: object) -> list[Mount]:
    with open("/proc/self/mountinfo") as file:
        return [m for m in map(Mount, file) if m.point == str(path)]


def mounted(path: object) -> Mount:
    return mounts_at(path)[-1]


def private() -> None:
    mount(None, "/", None, MS_REC | MS_PRIVATE)


@pytest.fixture
def in_mounts(in_child: Callable[..., None]) -> Callable[..., None]:
    """Run a function in a child with mounts of its own, and see that none of them is ours."""

    def check(entry: Callable[[], None], flags: int = 0) -> None:
        def isolated() -> None:
            private()
            entry()

        with open("/proc/self/mountinfo") as before:
            lines = before.read()
        in_child(isolated, CLONE_NEWNS | flags)
        with open("/proc/self/mountinfo") as after:
            assert after.read() == lines

    return check


InMounts = Callable[..., None]


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
        silent slave strictatime suid sync unbindable rdev rdiratime rexec rnoatime rnodev
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
        from shim.linux.clone import clone, wait

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


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[Path]:
    """An image's root, beside a directory that nothing may be mounted on or created in."""
    (tmp_path / "outside").mkdir()
    root = tmp_path / "rootfs"
    root.mkdir()
    yield root
    assert os.listdir(tmp_path / "outside") == []


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
        with pytest.raises(PermissionError, match="into /proc") as e:
            at(rootfs, "/etc/kernel")
        assert e.value.filename == "/etc/kernel"
        with pytest.raises(OSError) as magic:
            at(rootfs, "/magic/x")
        assert magic.value.errno == errno.ELOOP
        at(rootfs, "/proc/sys/kernel", "ro")  # asked for by name: somebody's mask

    in_mounts(entry)


@pytest.mark.parametrize("destination", ["/", "", "/.", "//./"])
def test_root_is_no_destination(destination: str, rootfs: Path) -> None:
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


# The root


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
