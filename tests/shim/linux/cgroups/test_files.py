from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shim.linux.cgroups import Cgroup
from shim.linux.cgroups.files import Directory, read, write


def test_opened_when_needed(tmp_path: Path) -> None:
    found = []

    def find() -> str:
        found.append(1)
        return str(tmp_path)

    (tmp_path / "a").write_text("1\n2\n")
    with Directory(find) as directory:
        assert found == []
        assert directory.read("a") == "1\n2"
        assert directory.has("a")
        assert not directory.has("b")
        directory.set("field", "a", "3")
        fd = directory.fd
        assert not os.get_inheritable(fd)
    assert found == [1]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


@pytest.mark.parametrize("name", ["a/b", "../x", "/etc/passwd", "x\0"])
def test_only_its_own_files(tmp_path: Path, name: str) -> None:
    with Directory(tmp_path.__str__) as directory, pytest.raises(ValueError, match="not a file"):
        directory.set("field", name, "1")


def test_never_through_a_link_nor_made(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with Directory(tmp_path.__str__) as directory:
        for name, number in (("link", errno.ELOOP), ("none", errno.ENOENT)):
            with pytest.raises(OSError, match=r"linux\.resources\.field: ") as e:
                directory.set("field", name, "new")
            assert (e.value.errno, e.value.filename) == (number, f"{tmp_path}/{name}")
    assert (tmp_path / "target").read_text() == "old"


USES: dict[str, Callable[[str], object]] = {
    "read": lambda path: read(f"{path}/cgroup.procs"),
    "write": lambda path: write(f"{path}/cgroup.procs", "0"),
    "directory": lambda path: Directory(lambda: path).read("cgroup.procs"),
}


@pytest.fixture
def removed_when_opened(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> Cgroup:
    """A cgroup that goes as systemd removes a scope: when somebody has just opened a file."""
    cgroup.create()
    really_open = os.open

    def open_and_lose(*arguments: Any, **named: Any) -> int:
        fd = really_open(*arguments, **named)
        if "cgroup." in arguments[0]:
            cgroup.delete()
        return fd

    monkeypatch.setattr(os, "open", open_and_lose)
    return cgroup


@pytest.mark.parametrize("use", USES)
def test_gone_since_it_was_opened(removed_when_opened: Cgroup, use: str) -> None:
    path = removed_when_opened.directory("pids") or removed_when_opened.directory("")
    assert path is not None
    with pytest.raises(FileNotFoundError, match="removed"):
        USES[use](path)


def test_killed_when_it_is_gone(removed_when_opened: Cgroup) -> None:
    removed_when_opened.kill()
    assert not removed_when_opened.exists()
