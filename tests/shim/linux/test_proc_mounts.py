from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.linux import mounts, proc_mounts, procfs
from shim.linux.mounts import MS_BIND, MS_NOEXEC, MS_NOSUID, MS_REC, mount
from tests.shim.linux.mountinfo import mounts_at

InMounts = Callable[..., None]


def enter(rootfs: Path) -> int:
    """Make a directory, with what is mounted below it, the root; returns the host's /proc."""
    proc = procfs.open_proc()
    mount(str(rootfs), str(rootfs), None, MS_BIND | MS_REC)
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY)
    mounts.enter_root(root)
    os.close(root)
    return proc


def mount_proc(path: Path, flags: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    mount("proc", str(path), "proc", flags)


def refusal(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def test_wherever_it_is(rootfs: Path, in_mounts: InMounts, tmp_path: Path) -> None:
    tree = tmp_path / "a tree"
    (rootfs / "tree").mkdir()
    (rootfs / "mem").touch()
    (rootfs / "tmp").mkdir()

    def entry() -> None:
        mount_proc(rootfs / "proc", MS_NOSUID | MS_NOEXEC)
        mount_proc(tree / "deep \\ and\nodd" / "proc")
        mount(str(tree), str(rootfs / "tree"), None, MS_BIND | MS_REC)
        mount("/proc/self/mem", str(rootfs / "mem"), None, MS_BIND)
        mount("tmpfs", str(rootfs / "tmp"), "tmpfs")
        proc = enter(rootfs)
        fds = len(os.listdir("/proc/self/fd"))
        places = ("/proc/self/mem", "/mem", "/tree/deep \\ and\nodd/proc/thread-self/mem")
        assert [refusal(path) for path in places] == ["ok"] * 3
        proc_mounts.seal(proc)
        assert [refusal(path) for path in places] == ["EROFS"] * 3
        os.mkdir("/tmp/other")
        assert mounts_at("/proc")[0].options >= {"ro", "nosuid", "noexec"}
        assert os.getcwd() == "/"
        assert len(os.listdir("/proc/self/fd")) == fds
        proc_mounts.seal(proc)

    in_mounts(entry)


def test_what_is_covered_stays_as_it_is(rootfs: Path, in_mounts: InMounts) -> None:
    def entry() -> None:
        mount_proc(rootfs / "proc")
        mount_proc(rootfs / "proc")
        proc = enter(rootfs)
        proc_mounts.seal(proc)
        assert ["ro" in m.options for m in mounts_at("/proc")] == [False, True]

    in_mounts(entry)


def test_what_is_covered_further_up_is_refused(rootfs: Path, in_mounts: InMounts) -> None:
    """A rename in a volume would move the cover away."""

    def entry() -> None:
        mount_proc(rootfs / "deep/down/proc")
        mount("tmpfs", str(rootfs / "deep"), "tmpfs")
        with pytest.raises(OSError, match="in the way of") as raised:
            proc_mounts.seal(enter(rootfs))
        assert raised.value.filename == "/deep/down/proc"

    in_mounts(entry)


def test_the_root_itself(in_mounts: InMounts) -> None:
    def entry() -> None:
        proc = enter(Path("/proc"))
        proc_mounts.seal(proc)
        assert refusal("/self/mem") == "EROFS"

    in_mounts(entry)


def test_a_path_that_leads_elsewhere(
    rootfs: Path, in_mounts: InMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who shares a volume may rename a directory in it meanwhile."""
    (rootfs / "other").mkdir()

    def entry() -> None:
        mount_proc(rootfs / "volume/proc")
        proc = enter(rootfs)
        seal = proc_mounts._seal

        def renamed(proc: int, root: int, mount: proc_mounts._Mount) -> None:
            seal(proc, root, mount._replace(point=b"/other"))

        monkeypatch.setattr(proc_mounts, "_seal", renamed)
        with pytest.raises(OSError, match="the path changed: '/other'"):
            proc_mounts.seal(proc)

    in_mounts(entry)
