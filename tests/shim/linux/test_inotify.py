import os
import select
from pathlib import Path

import pytest

from shim.linux.inotify import watch_close_write


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_a_writers_close_is_noticed_and_a_readers_is_not(tmp_path: Path) -> None:
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    watch = watch_close_write(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    os.close(reader)
    assert not readable(watch)
    os.close(writer)
    assert readable(watch)
    os.close(watch)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        watch_close_write(str(tmp_path / "nowhere"))
    assert len(os.listdir("/proc/self/fd")) == before
