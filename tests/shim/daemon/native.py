"""Native guests on descriptors that a Stdio gives out, in place of wasm ones."""

import asyncio
import fcntl
import os
import subprocess
import termios
from collections.abc import Sequence

from tests.guests.build import build

Guest = subprocess.Popen[bytes]


def start(fds: Sequence[int], name: str, *args: str, terminal: bool = False) -> Guest:
    """Run a guest; a terminal becomes its session's. Closes `fds`, as the shim does."""

    def control_terminal() -> None:
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    guest = subprocess.Popen(
        [build(name, native=True), *args],
        stdin=fds[0],
        stdout=fds[1],
        stderr=fds[2],
        start_new_session=True,
        preexec_fn=control_terminal,  # noqa: PLW1509
    )
    for fd in fds:
        os.close(fd)
    return guest


async def ended(guest: Guest) -> int:
    """Wait for its end as a shim does; return its exit status, -n for a death by signal n."""
    pidfd = os.pidfd_open(guest.pid)
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, event.set)
    await event.wait()
    loop.remove_reader(pidfd)
    os.close(pidfd)
    return guest.wait()
