import asyncio
import os
from pathlib import Path

import pytest

from shim.daemon.streams import writers


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    return path


def use(fifo: str) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.close(os.open(fifo, os.O_WRONLY))
    os.close(reader)


async def test_who_watches_the_same_fifo_is_told_alike(fifo: str) -> None:
    told: list[str] = []
    first = writers.watch(fifo, lambda: told.append("first"))
    second = writers.watch(fifo, lambda: told.append("second"))
    use(fifo)
    await asyncio.sleep(0.01)
    assert told == ["first", "second"]
    first.cancel()
    use(fifo)
    await asyncio.sleep(0.01)
    assert told == ["first", "second", "second"]
    second.cancel()
    use(fifo)
    await asyncio.sleep(0.01)
    assert len(told) == 3


async def test_cancelled_by_the_one_before(fifo: str) -> None:
    told: list[str] = []
    second: writers.Watch | None = None

    def cancel() -> None:
        told.append("first")
        if second is not None:
            second.cancel()

    first = writers.watch(fifo, cancel)
    second = writers.watch(fifo, lambda: told.append("second"))
    use(fifo)
    await asyncio.sleep(0.01)
    assert told == ["first"]
    first.cancel()


async def test_one_descriptor_for_all(tmp_path: Path, fifo: str) -> None:
    watches = [writers.watch(fifo, lambda: None)]
    before = len(os.listdir("/proc/self/fd"))
    for number in range(10):
        os.mkfifo(tmp_path / str(number))
        watches.append(writers.watch(str(tmp_path / str(number)), lambda: None))
    assert len(os.listdir("/proc/self/fd")) == before
    for watch in watches:
        watch.cancel()
