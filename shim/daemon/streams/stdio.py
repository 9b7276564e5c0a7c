"""A guest's standard streams: where they come from and go to. Runs in: shim.

Without a terminal there is no copy in between: the guest's own descriptors are containerd's FIFOs,
or pipes to a process that logs. FIFOs for output are opened read-write, so that a reader that is
late, gone or restarted neither blocks the opening nor raises SIGPIPE. The shim keeps one end of
each stream as well:

* of stdin a writer, so that the guest does not see an end of input before containerd has even
  opened its side; it is dropped on CloseIO, or when any other writer has closed its end;
* of stdout and stderr a writer, so that what the guest wrote last is still in the FIFO for a reader
  that comes after the guest's end. It is dropped when there is nothing unread, or somebody to read
  it.

With a terminal all three are its slave, and the shim copies (`shim.daemon.streams.console`). In
front of an exec's FIFOs for output are pipes (`shim.daemon.streams.relay`).
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Mapping
from urllib.parse import quote, unquote

from shim.daemon.streams import fifo, writers
from shim.daemon.streams.console import Console
from shim.daemon.streams.log_driver import LogDriver
from shim.daemon.streams.relay import Relay
from shim.linux.readonly import open_readonly

_FIFO = "fifo://"
_LATE_READER_CHECK = 0.1
_DRAIN_PATIENCE = 10.0


class Stdio:
    """The streams of one guest, each a FIFO, a URI, or empty for /dev/null.

    `open` first, then `ready` and, before the guest's start, `connect`; `guest_ended`, `drain` and
    `close` are the shim's part afterwards.
    With a `terminal`, stdout is its output and stderr is not used.
    """

    def __init__(
        self,
        stdin: str,
        stdout: str,
        stderr: str,
        *,
        terminal: bool = False,
        relayed: bool = False,
        logger_env: Mapping[str, str] | None = None,
    ) -> None:
        """`relayed`: the output can be ended before all who have it open are gone.

        `logger_env` is the environment of a program that takes the output.
        """
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.terminal = terminal
        self._relayed = relayed
        self._relays: list[Relay] = []
        self._logger_env = logger_env or {}
        self._drivers: dict[str, LogDriver] = {}
        self._input = -1
        self._watch: writers.Watch | None = None
        self._outputs: list[int] = []
        self._voice = -1
        self._timer: asyncio.TimerHandle | None = None
        self._console: Console | None = None
        self._size: tuple[int, int] | None = None
        self._sink = self._keeper = -1
        self._drained = asyncio.Event()

    def open(self) -> list[int]:
        """Open all three; returns the guest's descriptors, which the caller closes.

        Raises OSError naming what could not be opened.
        """
        opened: list[int] = []
        try:
            if self.terminal:
                return self._open_terminal()
            opened.append(self._open_input())
            stdout, _ = self._open_output(self.stdout)
            opened.append(stdout)
            stderr, self._voice = self._open_output(self.stderr, error=True)
            opened.append(stderr)
        except OSError:
            for fd in opened:
                os.close(fd)
            self.close()
            raise
        return opened

    async def ready(self) -> None:
        """Wait until whoever takes the output is there. Raises OSError if that fails."""
        for driver in self._drivers.values():
            await driver.ready()

    def connect(self, master: int = -1) -> None:
        """Begin to copy, where there is a terminal: `master`, taken over, or our own.

        Raises OSError.
        """
        if self._console is None:
            return
        if master >= 0:
            self._console.close()
            self._console = Console(master)
        if self._size is not None:
            self._console.resize(*self._size)
        self._console.connect(self._input, self._sink, self._console_drained)

    def close_input(self) -> None:
        """End of input: nothing more will come (CloseIO)."""
        if self._console is not None:
            self._console.end_input()
        else:
            self._drop_input()

    def resize(self, width: int, height: int) -> None:
        """Tell the guest its terminal's size in characters, at the latest when `connect` makes one.

        Without a terminal this does nothing. Raises OSError.
        """
        if self._console is None:
            self._size = (width, height)
        else:
            self._console.resize(width, height)

    def say(self, message: str) -> None:
        """Write a line of the runtime's to the guest's stderr, if there is room for it."""
        with contextlib.suppress(OSError):
            if self._console is not None:
                self._console.say(message.encode())
            elif self._voice >= 0:
                fd = fifo.reopen(self._voice, os.O_WRONLY | os.O_NONBLOCK)
                try:
                    os.write(fd, message.encode())
                finally:
                    os.close(fd)

    def guest_ended(self) -> None:
        """Give readers their end of file, as soon as that loses nothing."""
        if self._console is not None:
            self._console.guest_ended()
        self._drop_input()
        if self._console is None:
            self._release_outputs()

    async def drain(self) -> None:
        """Wait until all that the guest has written is delivered, if anybody is there to take it.

        For some seconds at most.
        """
        if self._relays:
            over = [relay.over.wait() for relay in self._relays]
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.gather(*over), _DRAIN_PATIENCE)
        if self._console is not None:
            self._drop_keeper()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drained.wait(), _DRAIN_PATIENCE)
        for driver in self._drivers.values():
            await driver.drain()

    def close(self) -> None:
        """Let go of everything, read or not."""
        if self._timer is not None:
            self._timer.cancel()
        if self._console is not None:
            self._console.close()
            self._console = None
        for relay in self._relays:
            relay.close()
        self._relays = []
        self._drop_input()
        self._drop_keeper()
        for fd in (self._sink, *self._outputs):
            if fd >= 0:
                os.close(fd)
        self._sink = self._voice = -1
        self._outputs = []
        for driver in self._drivers.values():
            driver.close()
        self._drivers = {}

    def _open_input(self) -> int:
        if not self.stdin:
            return open_readonly("/dev/null", os.O_RDONLY)
        path = _path(self.stdin)
        # Watched before it is opened: a writer that waits for a reader may be done at once. For the
        # same reason nothing of ours that could write is opened and closed in between.
        try:
            self._watch = writers.watch(path, self._drop_input)
        except OSError as error:
            # Root's inotifies are everybody's who is root in some container. Without one, CloseIO
            # is the end; containerd's own clients all call it.
            if error.errno not in (errno.EMFILE, errno.ENOSPC):
                raise
        reader = fifo.open_fifo(path, os.O_RDONLY)
        try:
            self._input = fifo.reopen(reader, os.O_WRONLY)
        except OSError:
            os.close(reader)
            raise
        os.set_blocking(reader, True)
        return reader

    def _drop_input(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def _open_output(self, target: str, *, error: bool = False) -> tuple[int, int]:
        """Return the guest's descriptor, and one that stays here."""
        if not target:
            return open_readonly("/dev/null", os.O_WRONLY), -1
        both = _open_fifo(target)
        if both is None:
            driver = self._driver(target)
            pipe = driver.stderr if error else driver.stdout
            return fifo.reopen(pipe, os.O_WRONLY), pipe
        if self._relayed:
            return self._relay(both), -1
        os.set_blocking(both, True)
        try:
            self._outputs.append(fifo.reopen(both, os.O_WRONLY))
        except OSError:
            os.close(both)
            raise
        return both, self._outputs[-1]

    def _relay(self, both: int) -> int:
        """Put a pipe in front of a FIFO, open both ways and taken over; returns the guest's end."""

        def ended(writer: int) -> None:
            self._outputs.append(writer)
            self._release_fifos()

        relay, guest = Relay.before(both, ended)
        self._relays.append(relay)
        return guest

    def _open_terminal(self) -> list[int]:
        if self.stdin:
            self._input = fifo.open_fifo(_path(self.stdin))
        if not self.stdout:
            self._sink = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        elif (both := _open_fifo(self.stdout)) is not None:
            self._keeper = both  # a reader, while clients come and go
            self._sink = fifo.reopen(both, os.O_WRONLY | os.O_NONBLOCK)
        else:
            pipe = self._driver(self.stdout).stdout
            self._sink = fifo.reopen(pipe, os.O_WRONLY | os.O_NONBLOCK)
        self._console = Console()
        return self._console.slaves()

    def _console_drained(self) -> None:
        if self._keeper >= 0:
            self._outputs.append(self._sink)
        else:
            os.close(self._sink)
        self._sink = -1
        self._drop_keeper()
        self._drained.set()
        self._release_outputs()

    def _drop_keeper(self) -> None:
        if self._keeper >= 0:
            os.close(self._keeper)
            self._keeper = -1

    def _release_outputs(self) -> None:
        self._voice = -1
        for driver in self._drivers.values():
            driver.close_pipes()
        self._release_fifos()

    def _release_fifos(self) -> None:
        waiting = []
        for fd in self._outputs:
            if fifo.reader_may_come(fd):
                waiting.append(fd)
            else:
                os.close(fd)
        self._outputs = waiting
        if waiting:
            self._timer = asyncio.get_running_loop().call_later(
                _LATE_READER_CHECK, self._release_fifos
            )

    def _driver(self, target: str) -> LogDriver:
        uri = target if "://" in target else f"file://{quote(target)}"
        if uri not in self._drivers:
            self._drivers[uri] = LogDriver(uri, self._logger_env)
        return self._drivers[uri]


def _open_fifo(target: str) -> int | None:
    """Open an output that is a FIFO; None if it is something else."""
    if "://" in target and not target.startswith(_FIFO):
        return None
    try:
        return fifo.open_fifo(_path(target))
    except fifo.NotFifoError:
        if target.startswith(_FIFO):
            raise
        return None


def _path(target: str) -> str:
    path = unquote(target.removeprefix(_FIFO)) if target.startswith(_FIFO) else target
    if "\0" in path:
        raise OSError(errno.EINVAL, "contains a NUL character", ascii(path))
    return path
