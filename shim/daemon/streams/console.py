"""A guest's terminal: a pty, and the copying between it and containerd's FIFOs. Runs in: shim.

     stdin FIFO --> Pump --> | master   slave | --> 0        the guest's
    stdout FIFO <-- Pump <-- |                | <-- 1 and 2

The FIFOs are open read-write here: clients come and go, and a stream without anybody at its other
end rests. So does the pty, because the shim keeps a slave of its own: a guest that closes its
descriptors would hang it up, and a hung up pty is always ready for reading and never has anything.
When the guest has ended that slave is closed, and the master gives what is left and then EIO.

Its modes are the kernel's defaults, as with containerd and runc; also a newline becomes CR LF.
"""

import fcntl
import os
import struct
import termios
from collections.abc import Callable

from shim.daemon.streams import fifo
from shim.daemon.streams.pump import Pump

_MAX = 0xFFFF
_CTRL_D = b"\4"
_TIOCGPTPEER = 0x5441
"""Opens the slave of a master (ioctl_tty(2)), also where its devpts is not mounted."""
_SLAVE = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
_LINE_ENDS = (-1, ord("\r"), ord("\n"))


class Console:
    """One pty."""

    def __init__(self, master: int = -1) -> None:
        """Make a pty, or take one over whose master this is. Raises OSError if there is none left.

        The devpts that the pty is on need not be in sight.
        """
        if master < 0:
            master, slave = os.openpty()
            os.close(slave)
        self._master = master
        try:
            # Not the guest's, for whom reading has to block.
            self._slave = fcntl.ioctl(master, _TIOCGPTPEER, _SLAVE)
        except OSError:
            os.close(master)
            raise
        os.set_blocking(master, False)
        self._input: Pump | None = None
        self._output: Pump | None = None

    def slaves(self) -> list[int]:
        """Return the guest's three descriptors, which the caller closes. Raises OSError."""
        fds: list[int] = []
        try:
            for _ in range(3):
                fds.append(fifo.reopen(self._slave, os.O_RDWR))
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def connect(self, source: int, sink: int, drained: Callable[[], object]) -> None:
        """Begin to copy. The descriptors do not block; -1 as `source` is no input at all.

        `drained` is called when `guest_ended` and all that was written has reached the sink.
        """
        if source >= 0:
            self._input = Pump(source, self._master, lambda: None, self._end_of_file)
        self._output = Pump(self._master, sink, drained)

    def end_input(self) -> None:
        """Let the guest read what is on its way, and then an end of file.

        As a person at a terminal would: with ^D. What runc's shim does, closing the master, hangs
        up on a guest that may have an answer to give.
        """
        if self._input is not None:
            self._input.finish()

    def _end_of_file(self, last: int) -> bytes:
        end = bytes(termios.tcgetattr(self._master)[6][termios.VEOF])
        if end == b"\0":  # none, in these modes: what readline takes for one
            end = _CTRL_D
        # In the middle of a line the first one ends the line only.
        return end if last in _LINE_ENDS else end * 2

    def say(self, message: bytes) -> None:
        """Write after what the guest has written. Raises OSError if there is no room."""
        os.write(self._slave, message)

    def resize(self, width: int, height: int) -> None:
        """Tell the guest its size in characters, with SIGWINCH. Raises OSError."""
        size = struct.pack("=4H", min(height, _MAX), min(width, _MAX), 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def guest_ended(self) -> None:
        """Copy what is left."""
        self._stop_input()
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1
        if self._output is not None:
            self._output.finish()

    def close(self) -> None:
        """Let go of everything."""
        self._stop_input()
        if self._output is not None:
            self._output.stop()
        for fd in (self._slave, self._master):
            if fd >= 0:
                os.close(fd)
        self._slave = self._master = -1

    def _stop_input(self) -> None:
        if self._input is not None:
            self._input.stop()
            self._input = None
