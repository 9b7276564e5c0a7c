import errno
import hashlib
import os
from pathlib import Path

import pytest

from shim.engines.snapshot import contents, digest, digest_now, snapshot


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "module.wasm"
    path.write_bytes(os.urandom(100_000))
    return path


@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_000])
def test_copy_and_digest(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "module.wasm"
    path.write_bytes(data)
    source = os.open(path, os.O_RDONLY)
    memfd, found = snapshot(source)
    assert found == digest_now(source) == hashlib.sha256(data).digest()
    with contents(memfd, size) as copy:
        assert bytes(copy) == data
    assert os.lseek(source, 0, os.SEEK_CUR) == 0
    assert not os.get_inheritable(memfd)
    os.close(source)
    os.close(memfd)


def test_nobody_can_change_the_copy(module: Path) -> None:
    source = os.open(module, os.O_RDONLY)
    memfd, found = snapshot(source)
    other = os.open(f"/proc/self/fd/{memfd}", os.O_RDWR)
    for fd in (memfd, other):
        for change in (
            lambda fd: os.pwrite(fd, b"x", 0),
            lambda fd: os.ftruncate(fd, 10),
            lambda fd: os.ftruncate(fd, 200_000),
        ):
            with pytest.raises(PermissionError):
                change(fd)
    module.write_bytes(b"something else")
    assert digest(memfd, 100_000) == found
    for fd in (source, memfd, other):
        os.close(fd)


def test_limit(module: Path) -> None:
    descriptors = os.listdir("/proc/self/fd")
    source = os.open(module, os.O_RDONLY)
    os.close(snapshot(source, limit=100_000)[0])
    digest_now(source, limit=100_000)
    for read in (snapshot, digest_now):
        with pytest.raises(OSError, match="module is larger than 99999 bytes") as caught:
            read(source, 99_999)
        assert caught.value.errno == errno.EFBIG
    os.close(source)
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_directory_is_no_module(tmp_path: Path) -> None:
    source = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        snapshot(source)
    os.close(source)
