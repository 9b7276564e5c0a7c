"""Calls of an OCI runtime's command line: runc, crun and their like. Runs in: shim.

The runtime keeps the state of its containers in a directory, and is executed for each change. Why
it failed is the last error of its log, which is in JSON. (runc(8), and `runc-*(8)`.)
"""

from __future__ import annotations

import os
import select
import shutil
import signal
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from shim.daemon.containers.process import ProcessError
from shim.daemon.options import Options
from shim.guest import control
from shim.launcher.main import RUN_DIRECTORY
from shim.linux import clone, files
from shim.linux.reaping import ended

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PATIENCE: Final = 5.0  # seconds, for what is killed to be gone
_REPORT_BYTES: Final = 1 << 20
# It would take them for its own: whoever started containerd meant containerd.
_NOT_ITS: Final = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
_CHANGED: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


class RuntimeFailedError(ProcessError):
    """The runtime could not do what it was asked; its reason, in one line."""


class _Line(msgspec.Struct):
    """What matters of a line of its log."""

    level: str = ""
    msg: str = ""


class OciRuntime(msgspec.Struct, frozen=True):
    """A runtime, and where it keeps the state of the containers of one namespace.

    Every call raises RuntimeFailedError.
    """

    binary: str
    root: str
    systemd_cgroup: bool = False
    flags: tuple[str, ...] = ()
    """For `create`."""

    @classmethod
    def chosen(cls, options: Options, namespace: str, *, systemd_cgroup: bool) -> OciRuntime:
        """Return the runtime that the options ask for."""
        run_directory = os.fsdecode(os.environb.get(b"PYWASM_RUN", RUN_DIRECTORY))
        flags = []
        if options.no_pivot_root:
            flags.append("--no-pivot")
        if options.no_new_keyring:
            flags.append("--no-new-keyring")
        return cls(
            options.binary_name or "runc",
            os.path.join(options.root or os.path.join(run_directory, "runc"), namespace),
            systemd_cgroup or options.systemd_cgroup,
            tuple(flags),
        )

    def has(self, id: str) -> bool:
        """Whether the runtime knows, or has begun to make, a container."""
        return os.path.lexists(os.path.join(self.root, id))

    async def create(
        self,
        id: str,
        bundle: str,
        fds: Sequence[int],
        *,
        pid_file: str,
        console_socket: str,
    ) -> None:
        """Make a container with these standard streams, or with a terminal if there is a socket."""
        os.makedirs(self.root, 0o700, exist_ok=True)
        arguments = ["create", "--bundle", bundle, "--pid-file", pid_file, *self.flags]
        if console_socket:
            arguments += ["--console-socket", console_socket]
        await self._call([*arguments, id], bundle, fds)

    async def start(self, id: str, bundle: str) -> None:
        """Let the program of a container run."""
        await self._call(["start", id], bundle)

    async def exec(
        self,
        id: str,
        bundle: str,
        process: int,
        fds: Sequence[int],
        *,
        pid_file: str,
        console_socket: str,
    ) -> None:
        """Run a further program in a container: a file with a `process` of the spec, in JSON."""
        arguments = ["exec", "--detach", "--process", _path(process), "--pid-file", pid_file]
        if console_socket:
            arguments += ["--console-socket", console_socket]
        await self._call([*arguments, id], bundle, fds)

    async def delete(self, id: str, bundle: str) -> None:
        """End a container, whatever it does, and free what it holds; it may be half made."""
        await self._call(["delete", "--force", id], bundle)

    def end_calls(self, id: str) -> None:
        """End what another shim, which is no more, had it do to a container. Raises OSError."""
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue  # it has just ended
            try:
                if self._is_call(id, pid):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    select.select([pidfd], [], [], _PATIENCE)
            except (FileNotFoundError, ProcessLookupError):
                pass
            finally:
                os.close(pidfd)

    def _is_call(self, id: str, pid: int) -> bool:
        argv = files.read_small(f"/proc/{pid}/cmdline").split(b"\0")[:-1]
        ours = [b"--root", os.fsencode(self.root), b"--log"]
        # A wrapper may have put something before them.
        return argv[-1:] == [id.encode()] and any(
            argv[n : n + 3] == ours for n in range(len(argv) - 3)
        )

    async def _call(self, arguments: Sequence[str], bundle: str, fds: Sequence[int] = ()) -> None:
        """Execute it with these standard streams; without any, its errors on stderr count, too."""
        verb = arguments[0]
        path = os.environ.get("PATH", _PATH)
        binary = shutil.which(self.binary, path=path)
        if binary is None:
            where = "no such program" if "/" in self.binary else f"not found in {path}"
            raise RuntimeFailedError(f"OCI runtime {self.binary}: {where}", invalid=False)
        log = os.memfd_create("log", os.MFD_CLOEXEC)
        report = os.memfd_create("report", os.MFD_CLOEXEC)
        try:
            options = ["--root", self.root, "--log", _path(log), "--log-format", "json"]
            if self.systemd_cgroup:
                options.append("--systemd-cgroup")
            call = _Call([binary, *options, *arguments], bundle, fds, report)
            try:
                child = call.spawn()
            except OSError as error:
                reason = control.reason(error)
                raise RuntimeFailedError(f"OCI runtime: {reason}", invalid=False) from error
            status = await ended(child, group=True)
            if status:
                words = _reason(log) or _read(report).decode(errors="replace")
                reason = " ".join(words.split()) or f"it ended with status {status}"
                raise RuntimeFailedError(f"OCI runtime {verb} failed: {reason}", invalid=False)
        finally:
            os.close(log)
            os.close(report)


def _path(fd: int) -> str:
    """A name by which the runtime can open a file of the shim's that has none."""
    return f"/proc/{os.getpid()}/fd/{fd}"


class _Call(NamedTuple):
    """One execution; hooks, which it runs, have the bundle as working directory."""

    argv: Sequence[str]
    bundle: str
    fds: Sequence[int]
    report: int

    def spawn(self) -> clone.Child:
        """Execute it. Raises OSError."""
        # posix_spawn(3) cannot change the directory. It returns when the program is executed.
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.chdir(self.bundle)
            pid = os.posix_spawn(
                self.argv[0],
                list(self.argv),
                _environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, fd, target)
                    for target, fd in enumerate(self.fds or (null, null, self.report))
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=_CHANGED,
            )
        finally:
            os.fchdir(here)
            os.close(here)
            os.close(null)
        return clone.adopt(pid)


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in _NOT_ITS}


def _read(fd: int) -> bytes:
    return os.pread(fd, _REPORT_BYTES, 0)


def _reason(log: int) -> str:
    """Return the message of the last error in a log, or nothing."""
    for line in reversed(_read(log).splitlines()):
        try:
            entry = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError:
            continue
        if entry.level in ("error", "fatal") and entry.msg:
            return entry.msg
    return ""
