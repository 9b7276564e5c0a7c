"""The launcher: what containerd executes for every `start` and `delete`. Runs in: launcher.

fast.c does what happens in every life of a container, where a C compiler was there to build it, and
executes this for everything else.

It lives for a few milliseconds, and most of those are the interpreter's own start, so it imports
nothing but built-in modules (`python -ISE`: no `site`, no `os`), and it is not imported itself:
`scripts/install-launcher` compiles it to a file that the installed command executes. It hands its
command line, working directory and standard input to the zygote, prints what comes back, and ends.
Where no zygote listens it starts one; where none answers it runs one that serves this single
request.

Request (launcher to zygote, ended by shutting that direction down), fields separated by NUL: `cwd`,
one value for each of `FORWARDED`, the number of arguments, the arguments, the bytes of standard
input. Answer: one byte of exit status, then what to print, on stdout for status 0 and on stderr
otherwise.
"""

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket  # takes a tenth of this process's time, and is not always needed

FORWARDED = (b"TTRPC_ADDRESS", b"MAX_SHIM_VERSION", b"PYWASM_STATE", b"PYWASM_CONFIG")
"""Variables that travel with a request; the rest of containerd's environment does not."""

RUN_DIRECTORY = b"/run/pywasm"
LISTENER = 3
"""Where a zygote finds its listening socket or, serving once, its only connection."""

BACKLOG = 4096
"""Clients that may wait for a zygote or a shim; the kernel bounds it by net.core.somaxconn."""

FAREWELL = "deleted"
"""In a bundle after the task's orderly Delete: the answer to the `delete` that still follows."""

LOG = "zygote.log"
"""In the run directory: what a zygote and those forked from it say on stderr."""

_LOG_LIMIT = 1 << 20
_ROOM = 4000
"""Bytes of a zygote's environment that its forks write their command lines to."""
_STDIN_LIMIT = 10 << 20
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


def main(root: str, python: str, build: str) -> None:
    """Run one invocation and exit.

    `root` is the directory that holds the packages, `python` the interpreter that sees the
    libraries, and `build` identifies the installed code: a zygote of another build is never asked.
    """
    argv = sys.argv[1:]
    if argv in (["-v"], ["-version"], ["--version"]):
        sys.path.insert(0, root)
        from shim import __version__

        print(f"containerd-shim-pywasm-v1:\n  Version:  {__version__}\n  Revision: {build}")
        return
    if argv[-1:] == ["delete"] and (report := _left_behind()):
        _write_all(1, report)
        posix._exit(0)
    run_directory = posix.environ.get(b"PYWASM_RUN", RUN_DIRECTORY)
    request = _request(argv)
    answer = b""
    reason = "it closed the connection"
    try:
        answer = _ask(_zygote(run_directory, root, python, build), request)
    except OSError as error:
        reason = str(error)
    if not answer:
        try:
            answer = _ask(_serve_once(run_directory, root, python, reason), request)
            reason = "the shim ended without an answer"
        except OSError as error:
            reason = str(error)
    if not answer:
        answer = f"\1containerd-shim-pywasm-v1: {reason}\n".encode()
    _write_all(1 if answer[0] == 0 else 2, answer[1:])
    # Nothing is buffered and nothing is shared: skip the interpreter's own shutdown.
    posix._exit(answer[0])


def _left_behind() -> bytes:
    """Read what a shim whose container ended in order has left for this moment, if anything."""
    try:
        fd = posix.open(FAREWELL, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
    except OSError:
        return b""
    return posix.read(fd, 4096)


def _request(argv: list[str]) -> bytes:
    stdin = b""
    # Only these two are given input; anything else may have been started from a terminal.
    if argv and argv[-1] in ("start", "-info", "--info"):
        while len(stdin) <= _STDIN_LIMIT and (chunk := posix.read(0, 1 << 16)):
            stdin += chunk
    fields = [posix.getcwdb(), *(posix.environ.get(name, b"") for name in FORWARDED)]
    fields.append(b"%d" % len(argv))
    fields.extend(arg.encode("utf-8", "surrogateescape") for arg in argv)
    return b"\0".join([*fields, stdin])


def _ask(connection: "_socket.socket", request: bytes) -> bytes:
    answer = b""
    try:
        connection.sendall(request)
        connection.shutdown(1)  # SHUT_WR
        while chunk := connection.recv(1 << 16):
            answer += chunk
    except OSError:
        answer = b""
    connection.close()
    return answer


def _zygote(run_directory: bytes, root: str, python: str, build: str) -> "_socket.socket":
    """Connect to the zygote of this build and these namespaces; start it if there is none."""
    name = zygote_name(run_directory, build)
    try:
        posix.mkdir(run_directory, 0o700)
    except FileExistsError:
        pass
    status = posix.stat(run_directory, follow_symlinks=False)
    if status.st_uid != posix.geteuid() or status.st_mode & 0o177077 != 0o040000:
        raise PermissionError(
            f"{run_directory.decode()}: not a directory that only its owner may enter"
        )
    connection = _connect(name + b".sock")
    if connection is not None:
        return connection
    import _socket
    from fcntl import LOCK_EX, flock

    lock = posix.open(name + b".lock", posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC, 0o600)
    try:
        flock(lock, LOCK_EX)
        # Another launcher may have been first.
        connection = _connect(name + b".sock")
        if connection is not None:
            return connection
        try:
            posix.unlink(name + b".sock")
        except FileNotFoundError:
            pass
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        listener.bind(name + b".sock")
        listener.listen(BACKLOG)
        # The zygote needs a while to import its libraries. The socket is already there: this
        # request, and any that come meanwhile, wait in its queue.
        pid = _spawn(listener, run_directory, root, python, [name.decode()])
        posix.ftruncate(lock, 0)
        posix.write(lock, b"%d\n" % pid)
        listener.close()
        connection = _connect(name + b".sock")
        if connection is None:
            raise ConnectionRefusedError(f"{name.decode()}.sock: connection refused")
        return connection
    finally:
        posix.close(lock)


def zygote_name(run_directory: bytes, build: str) -> bytes:
    """The path of a zygote's socket, without its `.sock`: one for each build and set of namespaces.

    The hash is FNV-1a of the namespaces' inode numbers, which fast.c knows, too.
    """
    namespaces = 0xCBF29CE484222325
    for name in _NAMESPACES:
        namespaces ^= posix.stat(f"/proc/self/ns/{name}").st_ino
        namespaces = namespaces * 0x100000001B3 & (1 << 64) - 1
    return b"%b/zygote-%b-%016x" % (run_directory, build.encode(), namespaces)


def _serve_once(run_directory: bytes, root: str, python: str, reason: str) -> "_socket.socket":
    import _socket

    ours, theirs = _socket.socketpair()
    _spawn(theirs, run_directory, root, python, ["--once", reason])
    theirs.close()
    return ours


def _connect(path: bytes) -> "_socket.socket | None":
    import _socket

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return connection


def _spawn(
    connection: "_socket.socket", run_directory: bytes, root: str, python: str, arguments: list[str]
) -> int:
    program = f"import sys; sys.path.insert(0, {root!r}); from shim.zygote.main import main; main()"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC
    path = f"{run_directory.decode()}/{LOG}"
    log = posix.open(path, flags, 0o600)
    try:
        shorten(path)
        return posix.posix_spawn(
            python,
            [python, "-I", "-c", program, *arguments],
            {
                b"PYWASM_ROOM": b" " * _ROOM,
                b"PATH": posix.environ.get(b"PATH", b"/usr/sbin:/usr/bin:/sbin:/bin"),
                b"PYWASM_RUN": run_directory,
            },
            file_actions=[
                # containerd reads both outputs to their end: neither may live on in the zygote.
                (posix.POSIX_SPAWN_OPEN, 0, "/dev/null", posix.O_RDONLY, 0),
                (posix.POSIX_SPAWN_OPEN, 1, "/dev/null", posix.O_WRONLY, 0),
                (posix.POSIX_SPAWN_DUP2, log, 2),
                (posix.POSIX_SPAWN_DUP2, connection.fileno(), LISTENER),
            ],
            setsid=True,
        )
    finally:
        posix.close(log)


def shorten(path: str) -> None:
    """Move the end of a log that has become too long to another file, and begin anew.

    The log itself stays the same file: shims have it open for as long as their pods live.
    """
    size = posix.stat(path).st_size
    if size <= _LOG_LIMIT:
        return
    log = posix.open(path, posix.O_RDWR | posix.O_CLOEXEC | posix.O_NOFOLLOW)
    try:
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC | posix.O_NOFOLLOW
        old = posix.open(path + ".1", flags, 0o600)
        try:
            posix.sendfile(old, log, size - _LOG_LIMIT, _LOG_LIMIT)
        finally:
            posix.close(old)
        posix.ftruncate(log, 0)
    finally:
        posix.close(log)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[posix.write(fd, data) :]
