"""A guest's standard streams on containerd's FIFOs, without a copy in between. Runs in: shim.

The guest's own descriptors are the FIFOs. Output is opened read-write, so that a reader that is
late, gone or restarted neither blocks the opening nor raises SIGPIPE. The shim keeps one end of
each FIFO as well:

* of stdin a writer, so that the guest does not see an end of input before containerd has even
  opened its side; it is dropped on CloseIO, or when any other writer has closed its end;
* of stdout and stderr a writer, so that what the guest wrote last is still in the FIFO for a reader
  that comes after the guest's end. It is dropped when there is nothing unread, or somebody to read
  it.
"""

import array
import asyncio
import contextlib
import fcntl
import os
import select
import stat
import termios

from shim.linux.inotify import watch_close_write
from shim.linux.readonly import open_readonly

_LATE_READER_CHECK = 0.1


class Stdio:
    """The streams of one guest.

    `open` first; `guest_ended` and `close` are the shim's part afterwards.
    """

    def __init__(self, stdin: str, stdout: str, stderr: str) -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self._input = -1
        self._outputs: list[int] = []
        self._watch = -1
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> list[int]:
        """Open all three; returns the guest's descriptors, which the caller closes.

        Raises OSError naming the path that could not be opened or is not a FIFO.
        """
        opened: list[int] = []
        try:
            opened.append(self._open_input())
            opened.extend(self._open_output(path) for path in (self.stdout, self.stderr))
        except OSError:
            for fd in opened:
                os.close(fd)
            self.close()
            raise
        return opened

    def close_input(self) -> None:
        """End of input: nothing more will come (CloseIO)."""
        if self._watch >= 0:
            asyncio.get_running_loop().remove_reader(self._watch)
            os.close(self._watch)
            self._watch = -1
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def say(self, message: str) -> None:
        """Write a line of the runtime's to the guest's stderr, if there is room for it."""
        if not self.stderr:
            return
        with contextlib.suppress(OSError):
            fd = _reopen(self._outputs[-1], os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(fd, message.encode())
            finally:
                os.close(fd)

    def guest_ended(self) -> None:
        """Give readers their end of file, as soon as that loses nothing."""
        self.close_input()
        self._outputs = [fd for fd in self._outputs if not _release(fd)]
        if self._outputs:
            self._timer = asyncio.get_running_loop().call_later(
                _LATE_READER_CHECK, self.guest_ended
            )

    def close(self) -> None:
        """Let go of everything, read or not."""
        if self._timer is not None:
            self._timer.cancel()
        self.close_input()
        for fd in self._outputs:
            os.close(fd)
        self._outputs = []

    def _open_input(self) -> int:
        if not self.stdin:
            return open_readonly("/dev/null", os.O_RDONLY)
        both = _open_fifo(self.stdin)
        try:
            reader = _reopen(both, os.O_RDONLY)
            self._input = _reopen(both, os.O_WRONLY)
        finally:
            os.close(both)
        self._watch = watch_close_write(self.stdin)
        asyncio.get_running_loop().add_reader(self._watch, self.close_input)
        return reader

    def _open_output(self, path: str) -> int:
        if not path:
            return open_readonly("/dev/null", os.O_WRONLY)
        both = _open_fifo(path)
        self._outputs.append(_reopen(both, os.O_WRONLY))
        return both


def _open_fifo(path: str) -> int:
    if "://" in path:
        raise OSError(f"{path}: only FIFOs are supported for standard streams")
    # O_NONBLOCK for the case that it is no FIFO: opening a device or a socket must not hang the
    # shim.
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path}: not a FIFO")
    os.set_blocking(fd, True)
    return fd


def _reopen(fd: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def _release(fd: int) -> bool:
    """Close a FIFO's writing end if what it holds is read or has a reader."""
    unread = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, unread)
    if unread[0] and _without_reader(fd):
        return False
    os.close(fd)
    return True


def _without_reader(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
