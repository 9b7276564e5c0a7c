"""What an OCI runtime leaves behind of a process that it has started. Runs in: shim.

Its pid, in a file; and if it has a terminal, the master of that, sent to a socket.
"""

import array
import contextlib
import itertools
import os
import socket

from shim.daemon.containers.process import ProcessError
from shim.linux import clone
from shim.linux.files import read_small

_numbers = itertools.count()


class Handover(contextlib.ExitStack):
    """Where a runtime is to leave it, in a bundle, until the end of the block."""

    def __init__(self, bundle: str, *, terminal: bool, pid_file: str = "") -> None:
        """`pid_file` is the name of a file that is to stay. Raises OSError."""
        super().__init__()
        number = next(_numbers)
        self.pid_file = os.path.join(bundle, pid_file or f"exec-{number}.pid")
        self.console_socket = ""
        """A path; empty without a terminal."""
        if not pid_file:
            self.callback(_unlink, self.pid_file)
        if terminal:
            try:
                self._listen(bundle, f"console-{number}.sock")
            except OSError:
                self.close()
                raise

    def _listen(self, bundle: str, name: str) -> None:
        directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.callback(os.close, directory)
        # The path of a socket has 107 bytes at most, and a bundle's may have more.
        self.console_socket = f"/proc/{os.getpid()}/fd/{directory}/{name}"
        self._listener = self.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        self._listener.bind(self.console_socket)
        self.callback(_unlink, os.path.join(bundle, name))
        self._listener.listen(1)
        self._listener.setblocking(False)

    def process(self) -> clone.Child:
        """Adopt the process, which may have ended already. Raises OSError."""
        return clone.adopt(int(read_small(self.pid_file)))

    def master(self) -> int:
        """Take the master, which the runtime has sent before it ended; -1 without a terminal.

        Raises ProcessError, OSError.
        """
        if not self.console_socket:
            return -1
        fds = array.array("i")
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            with connection:
                connection.setblocking(False)
                size = socket.CMSG_LEN(fds.itemsize)
                _, ancillary, _, _ = connection.recvmsg(4096, size, socket.MSG_CMSG_CLOEXEC)
            for _, _, content in ancillary:
                fds.frombytes(content)
        if not fds:
            raise ProcessError("the OCI runtime has not handed over the terminal", invalid=False)
        return fds[0]


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
