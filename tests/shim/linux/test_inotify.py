import os
import select
from pathlib import Path

import pytest

from shim.linux.inotify import Inotify


@pytest.fixture
def inotify() -> Inotify:
    return Inotify()


def readable(inotify: Inotify) -> bool:
    return bool(select.select([inotify], [], [], 0)[0])


def make(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


def use(fifo: str) -> None:
    """Open both ends of a FIFO, and close them."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.close(os.open(fifo, os.O_WRONLY))
    os.close(reader)


def test_a_writers_close_is_noticed_and_a_readers_is_not(tmp_path: Path, inotify: Inotify) -> None:
    fifo = make(tmp_path / "fifo")
    number = inotify.add(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    os.close(reader)
    assert not readable(inotify)
    os.close(writer)
    assert readable(inotify)
    assert list(inotify.closed()) == [number]
    assert not readable(inotify)


def test_each_file_has_a_number(tmp_path: Path, inotify: Inotify) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    numbers = [inotify.add(one), inotify.add(other)]
    assert numbers == [inotify.add(one), inotify.add(other)]
    use(other)
    use(one)
    assert list(inotify.closed()) == numbers[::-1]
    inotify.remove(numbers[0])
    use(one)
    assert list(inotify.closed()) == []


def test_a_deleted_file(tmp_path: Path, inotify: Inotify) -> None:
    fifo = make(tmp_path / "fifo")
    number = inotify.add(fifo)
    use(fifo)
    os.unlink(fifo)
    assert list(inotify.closed()) == [number]
    inotify.remove(number)


def test_a_missing_file_is_named(tmp_path: Path, inotify: Inotify) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        inotify.add(str(tmp_path / "nowhere"))
