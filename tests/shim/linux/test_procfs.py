from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.linux import procfs
from shim.linux.mounts import MS_BIND, mount


def test_read_and_write_where_there_is_no_proc(in_child: Callable[..., None]) -> None:
    def entry() -> None:
        proc = procfs.open_proc()
        os.chroot("/proc/self/fdinfo")
        procfs.write(proc, "self/oom_score_adj", "7")
        assert procfs.read(proc, "self/oom_score_adj") == "7\n"
        assert procfs.read(proc, "thread-self/comm")

    in_child(entry)


def test_errors_name_the_file(in_child: Callable[..., None]) -> None:
    proc = procfs.open_proc()
    try:
        with pytest.raises(OSError) as e:
            procfs.write(proc, "self/oom_score_adj", "many")
        assert e.value.filename == "/proc/self/oom_score_adj"
        assert e.value.strerror == "write 'many': Invalid argument"
        with pytest.raises(FileNotFoundError) as missing:
            procfs.write(proc, "self/nope", "x")
        assert missing.value.filename == "/proc/self/nope"
    finally:
        os.close(proc)


def test_only_of_procfs(tmp_path: Path, in_mounts: Callable[..., None]) -> None:
    (tmp_path / "fake").write_text("")

    def covered() -> None:
        proc = procfs.open_proc()
        mount(str(tmp_path / "fake"), "/proc/self/oom_score_adj", None, MS_BIND)
        with pytest.raises(OSError):
            procfs.write(proc, "self/oom_score_adj", "7")
        for path in ("self/root/etc/hostname", "../etc/hostname", "self/cwd/x", "/etc/hostname"):
            with pytest.raises(OSError):
                procfs.write(proc, path, "7")
        mount("tmpfs", "/proc", "tmpfs")
        with pytest.raises(OSError, match="not a procfs"):
            procfs.open_proc()

    in_mounts(covered)
    assert (tmp_path / "fake").read_text() == ""
