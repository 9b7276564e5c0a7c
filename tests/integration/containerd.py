"""A private containerd for tests, the demo and the benchmark: library, no pytest in it.

It has its own root, state, socket and namespace below one temporary directory; a containerd that
is installed on the machine is not touched. The shim is found through PATH, as in an installation:
the directory of this interpreter's virtual environment comes first.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from shim.zygote.main import WARMER
from tests.integration import keeper
from tests.integration.keeper import SHARED

PYWASM = "io.containerd.pywasm.v1"
RUNC = "io.containerd.runc.v2"

TIMEOUT = 60.0  # seconds, for anything that is waited for

_CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [
  {cri}
  "io.containerd.internal.v1.restart",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{directory}/c.sock"
[ttrpc]
  address = "{events}"
[debug]
  level = "{level}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
"""

Result = subprocess.CompletedProcess[str]


class Containerd:
    """One running containerd; use it as a context manager.

    `bin_dir` holds `containerd` and `ctr`; without it they are taken from PATH. `debug` makes
    containerd pass `-debug` to shims. `namespace` is containerd's; `group` is a name that nothing
    else has, for cgroups, and for the namespace if none is given.
    """

    cri = False  # whether it has the CRI plugin

    def __init__(
        self, bin_dir: str | None = None, *, debug: bool = False, namespace: str = ""
    ) -> None:
        self.bin_dir = bin_dir
        self.debug = debug
        self.directory = tempfile.mkdtemp(prefix="pywasm-")
        self.group = f"pywasm-{secrets.token_hex(4)}"
        self.namespace = namespace or self.group
        self.address = f"{self.directory}/c.sock"
        self.log = f"{self.directory}/containerd.log"
        self.run_dir = f"{self.directory}/run"  # the zygote's
        self.cache_dir = f"{self.directory}/cache"
        self.fifo_dir = f"{self.directory}/fifo"
        self.state_dir = f"{self.directory}/state/io.containerd.runtime.v2.task/{self.namespace}"
        for path in (self.run_dir, self.cache_dir, self.fifo_dir):
            os.mkdir(path, 0o700)
        self.snapshotter = "overlayfs" if _overlay_works(self.directory) else "native"
        self.env = self._environment(bin_dir)
        self._numbers = itertools.count(1)
        self._shared_before = {d: _listdir(d) for d in (SHARED, f"{SHARED}/s", f"{SHARED}/runc")}
        self._pid = 0
        self._events = ""
        self._keeper = subprocess.Popen(
            [sys.executable, "-ISE", keeper.__file__, self.directory, self.group],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def _environment(self, bin_dir: str | None) -> dict[str, str]:
        path = [f"{sys.prefix}/bin", *([bin_dir] if bin_dir else []), os.environ.get("PATH", "")]
        env = dict(os.environ)
        # Debian keeps runc in /usr/sbin, which a plain user's PATH does not have.
        env["PATH"] = os.pathsep.join([*path, "/usr/local/sbin", "/usr/sbin", "/sbin"])
        env["PYWASM_RUN"] = self.run_dir
        env["PYWASM_STATE"] = self.cache_dir
        env.pop("CONTAINERD_ADDRESS", None)
        env.pop("CONTAINERD_NAMESPACE", None)
        env.pop("CONTAINERD_SNAPSHOTTER", None)
        return env

    def __enter__(self) -> Containerd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- its life ---------------------------------------------------------------------------

    def start(self, *, events_at: str = "") -> None:
        """Start containerd and wait until it serves.

        Shims publish events to `address` + `.ttrpc`. With `events_at`, containerd takes them there
        instead, and nobody is at the usual address until `open_events`.

        Raises:
            RuntimeError: it ended instead, or took too long; the message holds its log.
        """
        self._events = events_at or self.address + ".ttrpc"
        text = self.configuration()
        Path(f"{self.directory}/config.toml").write_text(text)
        self._pid = self.spawn(self.command_line(), self.log)
        try:
            eventually(lambda: self._serves() or not _alive(self._pid))
        except TimeoutError:
            raise RuntimeError(f"containerd does not serve:\n{self.read_log()}") from None
        if not _alive(self._pid):
            raise RuntimeError(f"containerd ended:\n{self.read_log()}")

    def configuration(self) -> str:
        """What its configuration file says."""
        return _CONFIG.format(
            directory=self.directory,
            events=self._events,
            level="debug" if self.debug else "info",
            cri="" if self.cri else '"io.containerd.grpc.v1.cri",',
        )

    def command_line(self) -> list[str]:
        """What starts it."""
        return [self._command("containerd"), "--config", f"{self.directory}/config.toml"]

    def open_events(self) -> None:
        """Let events reach containerd after `start(events_at=...)`."""
        usual = self.address + ".ttrpc"
        os.symlink(self._events, usual + ".new")
        os.rename(usual + ".new", usual)

    def end(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """End containerd only; shims and containers go on."""
        pid, self._pid = self._pid, 0
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
            # Not only a zombie: other threads of a dying process may still hold the sockets open.
            eventually(lambda: not os.path.exists(f"/proc/{pid}"))

    def stop(self) -> None:
        """End containerd, the zygote, and whatever is left; remove every trace."""
        try:
            self.end()
            self.end_zygote()
        finally:
            assert self._keeper.stdin is not None
            assert self._keeper.stdout is not None
            self._keeper.stdin.close()
            self._keeper.stdout.close()
            self._keeper.wait(TIMEOUT)
            self._tidy_shared()

    def spawn(self, argv: Sequence[str], log: str) -> int:
        """Start a process that ends with this containerd at the latest; return its pid."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        order = {"argv": list(argv), "env": self.env, "log": log}
        self._keeper.stdin.write(json.dumps(order).encode() + b"\n")
        self._keeper.stdin.flush()
        return int(self._keeper.stdout.readline())

    def zygotes(self) -> list[int]:
        """The pids of this containerd's zygotes that are alive."""
        pids = []
        for file in Path(self.run_dir).glob("zygote-*.lock"):
            with contextlib.suppress(OSError, ValueError):
                pids.append(int(file.read_text()))
        return [pid for pid in pids if _alive(pid)]

    def end_zygote(self) -> None:
        """End the zygotes, as an operator would; a next container starts a new one."""
        for pid in self.zygotes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            eventually(lambda pid=pid: not _alive(pid))  # type: ignore[misc]

    def _serves(self) -> bool:
        for address in (self.address, self._events):
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(address)
                except OSError:
                    return False
        return True

    def read_log(self) -> str:
        """What containerd has logged so far, the shims' lines among it."""
        try:
            return Path(self.log).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    # --- ctr --------------------------------------------------------------------------------

    def _command(self, name: str) -> str:
        found = shutil.which(name, path=self.env["PATH"])
        if found is None:
            raise FileNotFoundError(f"{name} is not on PATH: run scripts/setup --containerd")
        return found

    def ctr_command(self, *args: str) -> list[str]:
        """The command line of `ctr args`, for those who start it themselves."""
        return [self._command("ctr"), "-a", self.address, "-n", self.namespace, *args]

    def ctr(self, *args: str, input: str | bytes | None = None) -> Result:
        """Run `ctr args`; never raises for its exit status."""
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            self.ctr_command(*args),
            env=self.env,
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args,
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    def checked(self, *args: str) -> str:
        """Run `ctr args`, which must succeed; return its stdout.

        Raises:
            RuntimeError: it failed; the message holds its stderr.
        """
        done = self.ctr(*args)
        if done.returncode:
            raise RuntimeError(f"ctr {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def load(self, image: bytes) -> None:
        """Import and unpack an image, given as a tar."""
        path = f"{self.directory}/image.tar"
        with open(path, "wb") as file:
            file.write(image)
        self.checked("images", "import", "--snapshotter", self.snapshotter, path)
        os.unlink(path)

    def run_options(self, runtime: str) -> list[str]:
        """`ctr run` and the options that every container here needs."""
        return [
            *("run", "--runtime", runtime),
            *("--snapshotter", self.snapshotter),
            *("--fifo-dir", self.fifo_dir),
        ]

    def run(
        self,
        runtime: str,
        image: str,
        *command: str,
        options: Sequence[str] = (),
        name: str | None = None,
        input: str | bytes | None = None,
    ) -> Result:
        """Run `ctr run --rm` to its end."""
        name = name or self.new_name()
        options = [*self.run_options(runtime), "--rm", *options]
        return self.ctr(*options, image, name, *command, input=input)

    def run_detached(
        self,
        runtime: str,
        image: str,
        *command: str,
        options: Sequence[str] = (),
        name: str | None = None,
    ) -> str:
        """Run `ctr run --detach`; return the container's id.

        Raises:
            RuntimeError: ctr failed.
        """
        name = name or self.new_name()
        options = [*self.run_options(runtime), "--detach", "--null-io", *options]
        self.checked(*options, image, name, *command)
        return name

    def new_name(self) -> str:
        """A container id that was not used before."""
        return f"c{next(self._numbers)}"

    def remove(self, name: str) -> None:
        """Kill and delete a container, whatever its state."""
        self.ctr("task", "kill", "-s", "KILL", name)
        self.ctr("task", "delete", "--force", name)
        self.ctr("container", "delete", name)

    # --- what must not be left --------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Pid and command line of the shims and containers that run now."""
        own = {self._pid, *self.zygotes()}
        found = keeper.descendants(self._keeper.pid)
        return {
            pid: command
            for pid, command in found.items()
            if pid not in own and _name(pid) != WARMER  # which belongs to its zygote
        }

    def scrub(self) -> None:
        """Remove by force what containers have left behind."""
        for name in self.checked("containers", "list", "-q").split():
            self.remove(name)
        self._remove_by_force()

    def _remove_by_force(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self.processes())
        for point in keeper.mounts_below(self.directory):
            subprocess.run(["umount", "--lazy", point], check=False)
        for group in keeper.cgroups_of(self.group):
            with contextlib.suppress(OSError):
                os.rmdir(group)
        for line in self._leftovers():
            path = line.split()[-1]
            if path.startswith("/"):
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def leftovers(self, wait: float = 5.0) -> list[str]:
        """What containers have left behind, one line each; empty within `wait` seconds, or not.

        A shim ends, and its bundle is removed, a moment after its client was told so.
        """
        with contextlib.suppress(TimeoutError):
            eventually(lambda: not list(self._leftovers()), wait)
        return list(self._leftovers())

    def _leftovers(self) -> Iterator[str]:
        for pid, command in self.processes().items():
            yield f"process {pid}: {command}"
        for point in keeper.mounts_below(self.directory):
            yield f"mount {point}"
        for group in keeper.cgroups_of(self.group):
            if os.path.basename(group) != self.group:
                yield f"cgroup {group}"
        for kind in ("state", "root"):
            path = f"{self.directory}/{kind}/io.containerd.runtime.v2.task/{self.namespace}"
            for bundle in _listdir(path):
                yield f"bundle {path}/{bundle}"
        for socket_file in self._stale_sockets():
            yield f"socket {socket_file}"
        for state in _listdir(f"{SHARED}/runc/{self.namespace}"):
            yield f"runc state {SHARED}/runc/{self.namespace}/{state}"
        for fifo in _listdir(self.fifo_dir):
            yield f"fifo {self.fifo_dir}/{fifo}"
        for file in Path(self.run_dir).rglob("*"):
            if not file.is_dir() and not file.name.startswith(("zygote", ".lock")):
                yield f"file {file}"

    def _stale_sockets(self) -> list[str]:
        """Socket files of shims that came since we did, and that nobody listens on."""
        path = f"{SHARED}/s"
        new = _listdir(path) - self._shared_before[path]
        if not new:
            return []
        bound = _bound_sockets()
        return [f"{path}/{name}" for name in new if f"{path}/{name}" not in bound]

    def _tidy_shared(self) -> None:
        for path in self._stale_sockets():
            os.unlink(path)
        if not self._shared_before[SHARED]:
            for path in (f"{SHARED}/s", f"{SHARED}/runc", f"{SHARED}/fifo", SHARED):
                with contextlib.suppress(OSError):
                    os.rmdir(path)  # only if empty: others may use it by now


def eventually(condition: Callable[[], object], timeout: float = TIMEOUT) -> None:
    """Wait until `condition()` is true.

    Raises:
        TimeoutError: it stayed false for `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    pause = 0.002
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def parent_of(pid: int) -> int:
    """Pid of a process's parent."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def _listdir(path: str) -> set[str]:
    try:
        return set(os.listdir(path))
    except FileNotFoundError:
        return set()


def _bound_sockets() -> set[str]:
    """Paths of the Unix sockets that somebody holds; the kernel tells them by network namespace."""
    found: set[str] = set()
    seen: set[str] = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended meanwhile
            network = os.readlink(f"/proc/{pid}/ns/net")
            if network not in seen:
                with open(f"/proc/{pid}/net/unix") as file:
                    found.update(line.split()[-1] for line in file)
                seen.add(network)
    return found


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _overlay_works(directory: str) -> bool:
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{scratch}/{name}")
        options = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work"
        mount = ["mount", "-t", "overlay", "overlay", "-o", options, f"{scratch}/merged"]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", f"{scratch}/merged"], check=True)
        return True
