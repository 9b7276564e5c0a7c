from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.linux import masks
from shim.linux.mounts import MS_NODEV, MS_NOSUID, mount
from tests.shim.linux.mountinfo import mounted, mounts_at

InMounts = Callable[..., None]


def open_root(rootfs: Path) -> int:
    return os.open(rootfs, os.O_PATH | os.O_DIRECTORY)


def test_masked_paths(rootfs: Path, in_mounts: InMounts) -> None:
    (rootfs / "etc/deep").mkdir(parents=True)
    (rootfs / "etc/deep/secret").write_text("x")
    (rootfs / "etc/key").write_text("secret")

    def entry() -> None:
        masks.mask(
            open_root(rootfs), ["/etc/deep", "/etc/key", "/etc/missing", "/etc/key/below", "/no/x"]
        )
        assert os.listdir(rootfs / "etc/deep") == []
        assert {"ro", "nosuid", "nodev", "noexec"} <= mounted(rootfs / "etc/deep").options
        with pytest.raises(OSError) as e:
            (rootfs / "etc/deep/new").write_text("x")
        assert e.value.errno == errno.EROFS
        assert (rootfs / "etc/key").read_bytes() == b""
        assert os.stat(rootfs / "etc/key").st_rdev == os.makedev(1, 3)
        (rootfs / "etc/key").write_text("x")  # goes where all goes
        with pytest.raises(OSError, match="Read-only"):
            os.chmod(rootfs / "etc/key", 0o666)  # which would be the host's /dev/null

    in_mounts(entry)


def test_containerds_masks_on_a_real_proc_and_sys(rootfs: Path, in_mounts: InMounts) -> None:
    (rootfs / "proc").mkdir()
    (rootfs / "sys").mkdir()
    masked = [
        *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
        *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware"),
        "/proc/scsi",
    ]
    readonly = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

    def entry() -> None:
        mount("proc", str(rootfs / "proc"), "proc", MS_NOSUID | MS_NODEV)
        mount("sysfs", str(rootfs / "sys"), "sysfs")
        fds = os.listdir("/proc/self/fd")
        root = open_root(rootfs)
        masks.mask(root, masked)
        masks.make_readonly(root, readonly)
        os.close(root)
        assert os.listdir("/proc/self/fd") == fds
        for path in masked:
            if os.path.lexists(f"{rootfs}{path}"):
                found = mounted(f"{rootfs}{path}")
                assert found.fstype in ("tmpfs", "devtmpfs"), path
        for path in readonly:
            if os.path.lexists(f"{rootfs}{path}"):
                assert {"ro", "nosuid", "nodev"} <= mounted(f"{rootfs}{path}").options
        with pytest.raises(OSError) as e:
            (rootfs / "proc/sys/kernel/hostname").write_text("x")
        assert e.value.errno == errno.EROFS

    in_mounts(entry)


def test_readonly_keeps_what_is_below(rootfs: Path, in_mounts: InMounts) -> None:
    (rootfs / "a/b").mkdir(parents=True)

    def entry() -> None:
        mount("tmpfs", str(rootfs / "a/b"), "tmpfs")
        (rootfs / "a/b/file").write_text("x")
        masks.make_readonly(open_root(rootfs), ["/a", "/missing"])
        assert (rootfs / "a/b/file").read_text() == "x"
        assert "ro" in mounted(rootfs / "a").options

    in_mounts(entry)


@pytest.mark.parametrize("link", ["/outside", "../outside", "../../../outside", "{tmp}/outside"])
def test_links_of_the_image_lead_nowhere_else(
    link: str, rootfs: Path, tmp_path: Path, in_mounts: InMounts
) -> None:
    (rootfs / "proc").symlink_to(link.format(tmp=tmp_path))
    (tmp_path / "outside").chmod(0o700)

    def entry() -> None:
        root = open_root(rootfs)
        masks.mask(root, ["/proc", "/proc/kcore"])
        masks.make_readonly(root, ["/proc", "/proc/sys"])
        assert mounts_at(tmp_path / "outside") == []
        (rootfs / "outside").mkdir()
        (rootfs / str(tmp_path).lstrip("/") / "outside").mkdir(parents=True)
        masks.mask(root, ["/proc"])
        assert mounts_at(tmp_path / "outside") == []

    in_mounts(entry)


def test_errors_name_the_field_and_the_path(rootfs: Path, in_mounts: InMounts) -> None:
    (rootfs / "loop").symlink_to("loop")

    def entry() -> None:
        for function, field in ((masks.mask, "masked"), (masks.make_readonly, "readonly")):
            with pytest.raises(OSError, match=f"linux.{field}Paths: ") as e:
                function(open_root(rootfs), ["/loop"])
            assert (e.value.errno, e.value.filename) == (errno.ELOOP, "/loop")

    in_mounts(entry)
