"""Processes that take a guest's output instead of containerd. Runs in: shim.

`binary:///path?key=value` is a program, such as nerdctl's logging drivers. Its arguments are the
keys and values, its environment names the container, and its descriptors are

    0, 1, 2   /dev/null
    3         stdout, a pipe
    4         stderr, a pipe
    5         to write a byte to and close when it is ready; `binary` may also only close it

`file:///path` is a process of our own that appends to the file. The guest does not get the file
itself: it could truncate it or, once out of its engine, make a setuid program of it.

(containerd: cmd/containerd-shim-runc-v2/process/io.go, core/runtime/v2/logging.)
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, unquote, urlsplit

from shim.linux import clone, files, signals
from shim.linux.title import set_title

_READY_PATIENCE = 30.0
_CRASH_PATIENCE = 0.05
_END_PATIENCE, _TERM_PATIENCE = 10.0, 2.0
_BLOCK = 1 << 16
_FREE = 10
"""Descriptors from here on are none of those that a program is given."""
_NOT_EXECUTED = 127


class LogDriver:
    """A process that reads output from pipes, until they end."""

    def __init__(self, uri: str, env: Mapping[str, str]) -> None:
        """Start the process. Raises OSError naming the URI or the file."""
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error), ascii(uri)) from None
        self._scheme, self._path = parts.scheme, unquote(parts.path)
        if parts.netloc or not os.path.isabs(self._path):
            raise OSError(errno.EINVAL, "expected an absolute path", uri)
        if "\0" in self._path:
            raise OSError(errno.EINVAL, "contains a NUL character", ascii(self._path))
        self._ready = self._report = -1
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            if self._scheme in ("binary", "binary-v2"):
                child = self._start_program(_arguments(parts.query), env, theirs, ours)
            elif self._scheme == "file":
                child = self._start_appending(theirs, ours)
            else:
                raise OSError(errno.EINVAL, "unknown scheme", uri)
            ours.pop_all()
        self._pidfd = child.pidfd
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._reap)

    def _start_program(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        theirs: contextlib.ExitStack,
        ours: contextlib.ExitStack,
    ) -> clone.Child:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        theirs.callback(os.close, null)
        stdout, self.stdout = _pipe(theirs, ours)
        stderr, self.stderr = _pipe(theirs, ours)
        self._ready, ready = _pipe(ours, theirs)
        self._report = os.memfd_create("report", os.MFD_CLOEXEC)
        ours.callback(os.close, self._report)
        argv = [self._path, *arguments]
        fds = (null, null, null, stdout, stderr, ready, self._report)
        return clone.clone(lambda: _execute(argv, env, fds))

    def _start_appending(
        self, theirs: contextlib.ExitStack, ours: contextlib.ExitStack
    ) -> clone.Child:
        os.makedirs(os.path.dirname(self._path), 0o755, exist_ok=True)
        # O_NONBLOCK for the case that it is a FIFO, which nobody reads.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        target = os.open(self._path, flags, 0o644)
        theirs.callback(os.close, target)
        os.set_blocking(target, True)
        source, self.stdout = _pipe(theirs, ours)
        self.stderr = self.stdout
        return clone.clone(lambda: _append(source, target))

    async def ready(self) -> None:
        """Wait until the program says that it reads. Raises OSError naming it, if it does not."""
        if self._ready < 0:
            return
        said = asyncio.Event()
        self._loop.add_reader(self._ready, said.set)
        try:
            await asyncio.wait_for(said.wait(), _READY_PATIENCE)
        except asyncio.TimeoutError:
            reason = f"not ready after {_READY_PATIENCE:g} s"
            raise OSError(errno.ETIMEDOUT, reason, self._path) from None
        finally:
            self._loop.remove_reader(self._ready)
        failure = os.pread(self._report, 16, 0)
        if failure:
            raise OSError(int(failure), os.strerror(int(failure)), self._path)
        if os.read(self._ready, 1):
            return
        if self._scheme == "binary":  # it has closed it, or it has crashed
            await asyncio.wait({self._ended}, timeout=_CRASH_PATIENCE)
        if self._scheme == "binary-v2" or (self._ended.done() and self._ended.result()):
            raise OSError(errno.ECHILD, "ended before it was ready", self._path)

    async def drain(self) -> None:
        """Wait for the end of the process, which has nothing more to read; if need be, end it."""
        self.close_pipes()
        for patience, signum in (
            (_END_PATIENCE, signal.SIGTERM),
            (_TERM_PATIENCE, signal.SIGKILL),
        ):
            if self._ended.done():
                return
            try:
                await asyncio.wait_for(asyncio.shield(self._ended), patience)
            except asyncio.TimeoutError:
                self._kill(signum)

    def close_pipes(self) -> None:
        """Let go of the writing ends."""
        for fd in {self.stdout, self.stderr} - {-1}:
            os.close(fd)
        self.stdout = self.stderr = -1

    def close(self) -> None:
        """End the process, whatever it does."""
        self.close_pipes()
        for fd in (self._ready, self._report):
            if fd >= 0:
                os.close(fd)
        self._ready = self._report = -1
        self._kill(signal.SIGKILL)

    def _kill(self, signum: int) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._ended.set_result(clone.wait(self._pidfd))
        os.close(self._pidfd)
        self._pidfd = -1


def _arguments(query: str) -> list[str]:
    """Return each key with the first of its values, as containerd does."""
    first: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        first.setdefault(key, value)
    return [word for pair in first.items() for word in pair]


def _pipe(readers: contextlib.ExitStack, writers: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    readers.callback(os.close, read)
    writers.callback(os.close, write)
    return read, write


def _execute(argv: Sequence[str], env: Mapping[str, str], fds: Sequence[int]) -> None:
    """Become a program with `fds` as its descriptors from 0 on; the last is for our errors."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FREE) for fd in fds]
    try:
        os.setsid()
        for target, fd in enumerate(moved[:-1]):
            os.dup2(fd, target)
        files.keep_only([*range(3, len(moved) - 1), moved[-1]])
        signals.reset_signals(keep=())
        os.execve(argv[0], list(argv), env)
    except OSError as error:
        os.write(moved[-1], b"%d" % (error.errno or 0))
        raise SystemExit(_NOT_EXECUTED) from None
    except ValueError:  # an argument, or the container's id, contains a NUL character
        os.write(moved[-1], b"%d" % errno.EINVAL)
        raise SystemExit(_NOT_EXECUTED) from None


def _append(source: int, target: int) -> None:
    os.setsid()
    files.keep_only((source, target))
    set_title("pywasm-log")
    while block := os.read(source, _BLOCK):
        try:
            while block:
                block = block[os.write(target, block) :]
        except OSError:
            pass  # a full disk costs the block; to stop reading would cost the guest its life
