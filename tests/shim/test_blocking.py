"""What tests forbid to a shim's loop is noticed, and nothing else."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from shim.daemon.address import release_dead
from shim.daemon.streams import fifo
from shim.linux.clone import clone, wait
from shim.linux.reaping import ended
from tests.shim.blocking import WouldBlockError, forbid


def test_what_could_block_raises_and_is_reported(tmp_path: Path) -> None:
    report = tmp_path / "report"
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)

    async def scenario() -> None:
        sleeper = clone(signal.pause)
        for call in (
            lambda: wait(sleeper.pidfd),
            lambda: release_dead(str(tmp_path / "socket")),
            lambda: fifo.reopen(reader, os.O_RDONLY),
            lambda: os.close(fifo.reopen(reader, os.O_WRONLY)),
        ):
            with contextlib.suppress(WouldBlockError):
                call()
        os.kill(sleeper.pid, signal.SIGKILL)
        await ended(sleeper)

    def entry() -> None:
        forbid(str(report))
        asyncio.run(scenario())

    child = clone(entry)
    assert wait(child.pidfd) == 0
    for fd in (child.pidfd, reader):
        os.close(fd)
    calls = [line for line in report.read_text().splitlines() if line and line[0] != " "]
    assert [call.partition("(")[0] for call in calls] == ["os.waitid", "fcntl.flock", "os.open"]
