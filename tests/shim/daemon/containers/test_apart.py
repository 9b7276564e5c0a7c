"""Work in a child of this process."""

import asyncio
import os
import select
import signal
import time

import pytest

from oci.runtime import SpecError
from shim.daemon.containers.apart import apart
from shim.linux import clone
from shim.linux.reaping import ended
from tests.shim.daemon.patience import until


async def test_it_is_done_elsewhere_while_the_loop_goes_on() -> None:
    read, write = os.pipe()
    go, told = os.pipe()

    def work() -> None:
        os.read(go, 1)
        os.write(write, b"%d" % os.getpid())

    task = asyncio.create_task(apart(work))
    await asyncio.sleep(0.01)
    assert not task.done()
    os.write(told, b"x")
    await task
    assert int(os.read(read, 16)) != os.getpid()
    for fd in (read, write, go, told):
        os.close(fd)


async def test_its_error_is_ours() -> None:
    with pytest.raises(OSError, match="/none: No such file or directory"):
        await apart(lambda: os.rmdir("/none"))

    def refuse() -> None:
        raise SpecError("mounts: none")

    with pytest.raises(SpecError, match="mounts: none"):
        await apart(refuse)


async def test_a_death_is_an_error() -> None:
    with pytest.raises(OSError, match="status 137"):
        await apart(lambda: os.kill(os.getpid(), signal.SIGKILL))


async def test_who_gives_up_ends_it_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    started, tell = os.pipe()

    def work() -> None:
        os.write(tell, b"%d" % os.getpid())
        signal.pause()

    task = asyncio.create_task(apart(work))
    await asyncio.sleep(0)
    pid = int(os.read(started, 16))
    blocking = []
    waitid = os.waitid

    def watched(kind: int, what: int, options: int) -> os.waitid_result | None:
        state = waitid(kind, what, options | os.WNOWAIT | os.WNOHANG)
        blocking.append(state is None and not options & os.WNOHANG)
        return waitid(kind, what, options)

    monkeypatch.setattr(os, "waitid", watched)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not os.path.exists(f"/proc/{pid}")
    assert blocking == [False]
    os.close(started)
    os.close(tell)


async def test_it_does_not_outlive_its_shim() -> None:
    """It has all of that one's descriptors: who waits for the shim's end would wait for its."""
    started, tell = os.pipe()

    def work() -> None:
        os.write(tell, b"x")
        time.sleep(60)

    shim = clone.clone(lambda: asyncio.run(apart(work)))
    os.close(tell)
    assert os.read(started, 1) == b"x"
    signal.pidfd_send_signal(shim.pidfd, signal.SIGKILL)
    assert await ended(shim) == 137
    poll = select.poll()
    poll.register(started, 0)  # and its end, which is always told
    await until(lambda: bool(poll.poll(0)))
    os.close(started)
