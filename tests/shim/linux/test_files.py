from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.linux import clone, files
from shim.linux.files import (
    AT_EMPTY_PATH,
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    close_range,
    faccessat2,
    openat2,
)
from shim.linux.libc import NUMBERS


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """A directory with links that lead out of it, beside a file that must not be reached."""
    (tmp_path / "secret").write_text("secret")
    inside = tmp_path / "root"
    (inside / "sub").mkdir(parents=True)
    (inside / "file").write_text("file")
    (inside / "up").symlink_to("../secret")
    (inside / "absolute").symlink_to(tmp_path / "secret")
    (inside / "to-file").symlink_to("/file")
    (inside / "magic").symlink_to("/proc/self/cwd")
    fd = os.open(inside, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def read(fd: int) -> bytes:
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def test_beneath(root: int) -> None:
    assert read(openat2(root, "sub/../file", os.O_RDONLY, resolve=RESOLVE_BENEATH)) == b"file"
    for path in ("..", "sub/../../secret", "/file", "up", "absolute", "to-file", "magic"):
        with pytest.raises(OSError) as e:
            openat2(root, path, os.O_RDONLY, resolve=RESOLVE_BENEATH)
        assert (e.value.errno, e.value.filename) == (errno.EXDEV, path)


def test_in_root(root: int) -> None:
    for path in (b"file", b"/file", b"../../file", b"to-file"):
        assert read(openat2(root, path, os.O_RDONLY, resolve=RESOLVE_IN_ROOT)) == b"file"
    for path in (b"up", b"absolute"):
        with pytest.raises(FileNotFoundError):
            openat2(root, path, os.O_RDONLY, resolve=RESOLVE_IN_ROOT)


def test_no_symlinks(root: int) -> None:
    with pytest.raises(OSError) as e:
        openat2(root, "to-file", os.O_RDONLY, resolve=RESOLVE_NO_SYMLINKS)
    assert e.value.errno == errno.ELOOP
    with pytest.raises(OSError) as e:
        openat2(root, "magic", os.O_RDONLY, resolve=RESOLVE_NO_MAGICLINKS)
    assert e.value.errno == errno.ELOOP


def test_mode_and_close_on_exec(root: int) -> None:
    old = os.umask(0o027)
    try:
        fd = openat2(root, "new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666, RESOLVE_BENEATH)
        try:
            assert os.fstat(fd).st_mode & 0o777 == 0o640
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)
    finally:
        os.umask(old)


@pytest.mark.parametrize("path", ["a\0b", b"\0"])
def test_nul_is_not_the_end_of_a_path(root: int, path: str | bytes) -> None:
    with pytest.raises(ValueError, match="null"):
        openat2(root, path, os.O_RDONLY)


def test_bytes_that_are_no_text(root: int) -> None:
    with pytest.raises(FileNotFoundError) as e:
        openat2(root, b"\xff", os.O_RDONLY)
    assert os.fsencode(e.value.filename) == b"\xff"


def test_asks_again_after_a_rename(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files._openat2
    errors = [errno.EAGAIN] * 3

    def raced(*arguments: object) -> int:
        import ctypes

        if errors:
            ctypes.set_errno(errors.pop())
            return -1
        return int(real(*arguments))

    monkeypatch.setattr(files, "_openat2", raced)
    assert read(openat2(root, "file", os.O_RDONLY, resolve=RESOLVE_BENEATH)) == b"file"
    errors[:] = [errno.EAGAIN] * 2
    with pytest.raises(BlockingIOError):
        openat2(root, "file", os.O_RDONLY)
    errors[:] = [errno.EAGAIN] * 1000
    with pytest.raises(BlockingIOError):
        openat2(root, "file", os.O_RDONLY, resolve=RESOLVE_BENEATH)


@pytest.mark.parametrize("has_call", [True, False])
def test_close_range(
    has_call: bool, in_child: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_call:
        monkeypatch.setitem(NUMBERS, "close_range", 9999)

    def entry() -> None:
        # Above whatever the tests before this one have left open.
        base = fcntl.fcntl(2, fcntl.F_DUPFD, 200)
        fds = [fcntl.fcntl(2, fcntl.F_DUPFD, base) for _ in range(5)]
        assert fds == list(range(base + 1, base + 6))
        close_range(fds[1], fds[3])
        for fd in fds[1:4]:
            with pytest.raises(OSError):
                os.fstat(fd)
        os.fstat(fds[0])
        os.fstat(fds[4])
        close_range(base)
        assert max(map(int, os.listdir("/proc/self/fd"))) <= base

    in_child(entry)
    if has_call:
        with pytest.raises(OSError, match="5-4") as e:
            close_range(5, 4)
        assert e.value.errno == errno.EINVAL


def test_faccessat2(root: int, in_child: Callable[..., None]) -> None:
    faccessat2(root, "file", os.R_OK)
    with pytest.raises(FileNotFoundError, match="missing"):
        faccessat2(root, "missing", os.F_OK)
    with pytest.raises(PermissionError):
        faccessat2(root, "file", os.X_OK)

    def entry() -> None:
        fd = openat2(root, "file", os.O_PATH)
        faccessat2(fd, "", os.W_OK, AT_EMPTY_PATH)
        os.setresuid(1234, 1234, 1234)
        faccessat2(fd, "", os.R_OK, AT_EMPTY_PATH)
        with pytest.raises(PermissionError):
            faccessat2(fd, "", os.W_OK, AT_EMPTY_PATH)

    in_child(entry)


def test_small_files_are_written_whole_and_not_through_links(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    files.write_small(path, b"a long content")
    files.write_small(path, b"short")
    assert files.read_small(path) == b"short"
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="link"):
        files.write_small(str(tmp_path / "link"), b"x")


def test_a_file_of_the_kernels_is_read_to_its_end() -> None:
    assert files.read_small("/proc/kallsyms").count(b"\n") > 10_000


def test_keep_only_closes_all_the_others() -> None:
    def entry() -> None:
        first, second, third = (os.dup(1) for _ in range(3))
        files.keep_only([first, third])
        os.fstat(first)
        os.fstat(third)
        try:
            os.fstat(second)
        except OSError:
            raise SystemExit(3) from None

    child = clone.clone(entry)
    assert clone.wait(child.pidfd) == 3
    os.close(child.pidfd)
