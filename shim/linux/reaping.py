"""Children that an event loop waits for, and never blocks on (library)."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

from shim.linux import clone


async def ended(child: clone.Child, *, group: bool = False) -> int:
    """Wait for a child to end, and reap it; returns its status as `clone.wait`.

    Who is cancelled wants nothing of it any more: it is killed, with its process `group` where it
    leads one, and waited for. That may take long, in a call that the kernel does not interrupt; who
    is cancelled again goes, and it is reaped all the same.
    """
    loop = asyncio.get_running_loop()
    status: asyncio.Future[int] = loop.create_future()

    def reap() -> None:
        loop.remove_reader(child.pidfd)
        status.set_result(clone.wait(child.pidfd))
        os.close(child.pidfd)

    loop.add_reader(child.pidfd, reap)
    try:
        return await asyncio.shield(status)
    except asyncio.CancelledError:
        if not status.done():
            with suppress(ProcessLookupError):
                # Its pid is its own until it is reaped, which happens in this loop.
                if group:
                    os.killpg(child.pid, signal.SIGKILL)
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            await asyncio.shield(status)
        raise
