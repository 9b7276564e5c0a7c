"""Ends of FIFOs and pipes, and who is at the other end. Runs in: shim."""

import array
import errno
import fcntl
import os
import select
import stat
import termios


class NotFifoError(OSError):
    """There is something else by that name."""


def open_fifo(path: str, mode: int = os.O_RDWR) -> int:
    """Open a FIFO, non-blocking. Raises NotFifoError, OSError."""
    # O_NONBLOCK also in case it is none: opening a device or a socket must not hang the shim.
    fd = os.open(path, mode | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotFifoError(errno.EINVAL, "not a FIFO", path)
    return fd


def reopen(fd: int, flags: int) -> int:
    """Open what a descriptor stands for once more, with other flags."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NOCTTY)


def reader_may_come(fd: int) -> bool:
    """Say if a FIFO holds something, `fd` being a writing end of it, and has no reader yet."""
    unread = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, unread)
    if not unread[0]:
        return False
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
