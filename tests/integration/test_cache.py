"""The artifact cache: a module is compiled once, and nothing but a good artifact is ever loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import images
from tests.integration.conftest import IMAGE
from tests.integration.containerd import PYWASM, Containerd


@pytest.fixture
def own(containerd: Containerd, image: images.Image) -> Iterator[Containerd]:
    """A containerd whose cache is empty."""
    with Containerd(containerd.bin_dir) as daemon:
        daemon.load(image.tar)
        yield daemon
        assert daemon.leftovers() == []


def hello(daemon: Containerd) -> None:
    done = daemon.run(PYWASM, IMAGE, "/hello.wasm")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello from pywasm\n", "")


def artifacts(daemon: Containerd) -> dict[Path, int]:
    """The files of at least a kilobyte in the cache, with their inodes."""
    files = (path for path in Path(daemon.cache_dir).rglob("*") if path.is_file())
    return {path: path.stat().st_ino for path in files if path.stat().st_size > 1000}


def test_second_run_compiles_nothing(own: Containerd) -> None:
    assert artifacts(own) == {}
    hello(own)
    first = artifacts(own)
    (path,) = first
    with path.open("rb"):  # held open, so that its inode number is not used again
        hello(own)
        assert artifacts(own) == first


@pytest.mark.parametrize("damage", ["garbage", "truncated", "flipped", "empty"])
def test_corrupt_artifact_is_compiled_again(own: Containerd, damage: str) -> None:
    hello(own)
    (path,) = artifacts(own)
    good = path.read_bytes()
    bad = {
        "garbage": os.urandom(len(good)),
        "truncated": good[: len(good) // 2],
        "flipped": good[:-100] + bytes([good[-100] ^ 0xFF]) + good[-99:],
        "empty": b"",
    }[damage]
    path.write_bytes(bad)
    hello(own)
    assert path.read_bytes() != bad


def test_artifact_that_others_may_write_is_not_loaded(own: Containerd) -> None:
    hello(own)
    (path,) = artifacts(own)
    with path.open("rb") as file:  # held open, so that its inode number is not used again
        path.chmod(0o666)
        hello(own)
        (path,) = artifacts(own)
        assert path.stat().st_mode & 0o022 == 0
        assert path.stat().st_ino != os.stat(file.fileno()).st_ino
