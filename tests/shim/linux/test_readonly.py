from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.linux.libc import NUMBERS
from shim.linux.readonly import open_readonly


def test_a_device_works_but_cannot_be_changed() -> None:
    fd = open_readonly("/dev/null", os.O_RDWR)
    try:
        assert (os.write(fd, b"x"), os.read(fd, 1)) == (1, b"")
        assert not os.get_inheritable(fd)
        attempts: tuple[Callable[[], object], ...] = (
            lambda: os.fchmod(fd, 0o666),
            lambda: os.fchown(fd, 0, 0),
            lambda: os.utime(fd),
            lambda: os.chmod(f"/proc/self/fd/{fd}", 0o666),
        )
        for attempt in attempts:
            with pytest.raises(OSError, match="Read-only") as caught:
                attempt()
            assert caught.value.errno == errno.EROFS
    finally:
        os.close(fd)


def test_the_file_itself_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    before = len(Path("/proc/self/mountinfo").read_text().splitlines())
    fd = open_readonly(str(path), os.O_RDONLY)
    assert os.read(fd, 16) == b"content"
    with pytest.raises(OSError, match="Read-only"):
        os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    path.write_text("another")
    assert os.pread(fd, 16, 0) == b"another"
    assert len(Path("/proc/self/mountinfo").read_text().splitlines()) == before
    os.close(fd)


def test_what_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_readonly("/nowhere", os.O_RDONLY)


def test_without_such_mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(NUMBERS, "open_tree", 100_000)
    (tmp_path / "file").touch()
    fd = open_readonly(str(tmp_path / "file"), os.O_RDONLY)
    os.fchmod(fd, 0o600)
    os.close(fd)


def test_executing_again() -> None:
    program = """
import os, sys
from shim.linux.readonly import execute_again
execute_again()
print(os.getpid(), os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY, sys.prefix, *sys.argv[1:])
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, "a b", ""],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        told, _ = child.communicate()
    assert told == f"{child.pid} 1 {sys.prefix} a b \n"
