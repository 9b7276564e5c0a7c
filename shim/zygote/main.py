"""The zygote: every library imported once, then a fork for each request. Runs in: zygote.

It accepts a connection and forks; the child reads the request and becomes a shim or does what was
asked. The zygote itself reads nothing that it is sent, runs no container and starts no thread, so
each child is a clean copy.

Children share its address layout, as on Android, so it makes place for a new one after `FORKS`
forks or `LIFETIME` seconds: it takes its socket's name away, serves whoever is already in the
queue, and ends. So does one that nobody asks any more because a newer build has taken its place.
"""

import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
import threading
import time

from shim.launcher.main import LISTENER, LOG, shorten
from shim.linux import callbacks, cgroups, files, messages, readonly
from shim.linux.peer import peer_of
from shim.linux.title import find_place, set_title
from shim.zygote import cgroup, heap, layout

WARMER = "pywasm-warmer"
"""The command name of the zygote's one lasting child."""

FORKS = 1000
LIFETIME = 24 * 3600.0
IDLE = 600.0
"""Seconds without a request after which it looks whether it was superseded."""


def main() -> None:
    """Serve on descriptor `LISTENER`.

    Arguments: the path of the socket without its `.sock`, or `--once` and the reason for that.
    """
    # The guests' own executable is ours, and of a guest that is root nothing may be within reach.
    readonly.execute_again()
    sock = socket.socket(fileno=LISTENER)
    sock.set_inheritable(False)
    layout.reserve()
    _preload()
    readonly.return_home()
    if sys.argv[1] == "--once":
        _become_shim(sock, f"no zygote: {sys.argv[2]}")
    try:
        cgroup.enter()
    except OSError:
        messages.report()  # containers run all the same
    from shim.zygote.rehearsal import rehearse

    find_place()
    set_title("pywasm-zygote")
    os.chdir("/")
    os.umask(0o022)
    # It holds names that only the imports looked up; to replace one writes to that name's page.
    sys._clear_type_cache()
    try:
        rehearse(os.path.dirname(sys.argv[1]))
    except Exception:
        messages.report()  # it only saves time
    # From here on the kernel reaps for us, and no handler has to interrupt accept().
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        heap.settle()
    except heap.UnknownInterpreterError:
        messages.report()  # it only saves memory
    _serve(sock, sys.argv[1], _start_warmer())
    os._exit(0)  # not by the interpreter's end, which would drop callbacks


def _preload() -> None:
    # Libraries that would be more to fork: asyncio does without TLS, and others without the rest.
    for name in ("ssl", "bz2", "lzma", "zlib", "_pickle", "_uuid"):
        sys.modules[name] = None  # type: ignore[assignment]
    import shim.daemon.main
    import shim.engines
    import shim.guest.entry

    # The hooks re-make locks that other threads may have held, for 0.4 ms and 280 kB in each child.
    # There are no other threads here, nor in any child by the time it clones one of its own.
    threading._after_fork.__code__ = (lambda: None).__code__  # type: ignore[attr-defined]
    # logging's own lock is held over a fork, and to be released. The name is one of that module.
    release = (lambda: _lock.release()).__code__  # type: ignore[name-defined] # noqa: F821, PLW0108
    logging._after_at_fork_child_reinit_locks.__code__ = release  # type: ignore[attr-defined]
    # asyncio and we log what went wrong, with other people's words in it.
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(messages.Formatter())
    shim.engines.preload()
    callbacks.seal()


def _start_warmer() -> int:
    """Fork a process that warms the cgroups up (see `cgroups.warm`) when it is written to.

    The guest of the shim that we are about to fork will be waited for by the kernel, on cgroup v1:
    the earlier that starts the better. It ends with us.
    """
    reader, writer = os.pipe()
    if os.fork() == 0:
        files.keep_only([reader])
        set_title(WARMER)
        while os.read(reader, 4096):
            cgroups.warm()
        os._exit(0)
    os.close(reader)
    os.set_blocking(writer, False)
    return writer


def _serve(listener: socket.socket, name: str, warmer: int) -> None:
    deadline = time.monotonic() + LIFETIME
    born = _bound_at(name + ".sock")
    _remove_dead(name)
    forks = 0
    log = os.path.join(os.path.dirname(name), LOG)
    while forks < FORKS and (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError):
            shorten(log)
        listener.settimeout(min(left, IDLE))
        try:
            forks += _fork(listener, warmer)
        except TimeoutError:
            if _superseded(name, born):
                break
    # From here on launchers start a new zygote. Only those already queued are still ours.
    if _bound_at(name + ".sock") == born:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name + ".sock")
    listener.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            _fork(listener, warmer)


def _superseded(name: str, born: int) -> bool:
    """Whether nobody can ask us any more, or a zygote of another build came after us."""
    if _bound_at(name + ".sock") != born:
        return True
    return any(_bound_at(f"{other}.sock") > born for other in _others(name))


def _others(name: str) -> list[str]:
    """The names of the zygotes of other builds in the same namespaces, alive or not."""
    directory, own = os.path.split(name)
    end = f"-{own.rpartition('-')[2]}.sock"
    names = [other.removesuffix(".sock") for other in os.listdir(directory) if other.endswith(end)]
    return [os.path.join(directory, other) for other in names if other != own]


def _remove_dead(name: str) -> None:
    """Take away the sockets of others that were killed.

    Their locks stay: nobody could tell whether a launcher is about to wait for one.
    """
    for other in _others(name):
        with contextlib.suppress(OSError), open(f"{other}.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if f"{other}.sock" not in _bound():
                os.unlink(f"{other}.sock")


def _bound() -> set[str]:
    """Return the paths of the sockets of this network namespace (proc_net_unix(5))."""
    with open("/proc/net/unix", errors="surrogateescape") as table:
        return {"/" + line.rstrip("\n").partition(" /")[2] for line in table}


def _bound_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def _fork(listener: socket.socket, warmer: int) -> bool:
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):  # of fork: the launcher will help itself
        if not _trusted(connection):
            return False
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it is only a help
            os.write(warmer, b"!")
        if os.fork() == 0:
            listener.close()
            os.close(warmer)
            _become_shim(connection)
        return True
    return False


def _trusted(connection: socket.socket) -> bool:
    return peer_of(connection).uid in (0, os.geteuid())


def _become_shim(connection: socket.socket, warning: str = "") -> None:
    """Serve the request on `connection` in this process, which does not survive it."""
    from shim.daemon.main import handle

    status = 1
    try:
        os.setsid()
    except PermissionError:
        pass  # already a session leader: started alone
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection.settimeout(None)
        handle(connection, warning)
        status = 0
    except BaseException:
        messages.report()
    finally:
        os._exit(status)
