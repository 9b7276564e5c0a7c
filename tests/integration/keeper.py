"""The process that owns everything a private containerd starts, and ends it whatever happens.

Runs as a process of its own: `python -ISE keeper.py DIRECTORY NAMESPACE`. Shims outlive containerd
by design, so their parent is lost; the keeper is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER),
which makes every process ever started below it its descendant for good. It reads one JSON object
`{"argv", "env", "log"}` per line from stdin, starts that, and answers its pid. At the end of
input (also when the tests are killed) it kills all descendants, unmounts what is mounted below
DIRECTORY, removes the cgroups named NAMESPACE, and DIRECTORY itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
MNT_DETACH = 2

SHARED = "/run/containerd"
"""Used by the shims and clients of every containerd, whatever its own state directory."""


def descendants(root: int) -> dict[int, str]:
    """Pid and command line of every process below `root`, zombies left out."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it ended meanwhile
            if state not in "ZX":
                parents[int(entry)] = int(parent)
    found: dict[int, str] = {}
    below = {root}
    while below:
        below = {pid for pid, parent in parents.items() if parent in below and pid not in found}
        found.update((pid, _command(pid)) for pid in below)
    return found


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def mounts_below(directory: str) -> list[str]:
    """Mount points in or at `directory`, the innermost first."""
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4] for line in file]
    return [p for p in reversed(points) if p == directory or p.startswith(directory + "/")]


def cgroups_of(namespace: str) -> list[str]:
    """Every cgroup directory with `namespace` in its path, all hierarchies, the innermost first."""
    with open("/proc/self/mountinfo") as file:
        roots = [
            line.split()[4]
            for line in file
            if line.partition(" - ")[2].split()[0] in ("cgroup", "cgroup2")
        ]
    found = []
    for root in roots:
        for path, _, _ in os.walk(root, topdown=False):
            if namespace in path:
                found.append(path)
    return found


def clean(directory: str, namespace: str) -> None:
    """End and remove everything; quietly, since nobody may be left to read complaints."""
    deadline = time.monotonic() + 10
    while processes := descendants(os.getpid()):
        for pid in processes:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        reap()
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    shutil.rmtree(f"{SHARED}/runc/{namespace}", ignore_errors=True)
    libc = ctypes.CDLL(None)
    for point in mounts_below(directory):
        libc.umount2(os.fsencode(point), MNT_DETACH)
    for group in cgroups_of(namespace):
        try:
            os.rmdir(group)
        except OSError:
            pass
    shutil.rmtree(directory, ignore_errors=True)


def reap() -> None:
    """Collect every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main(directory: str, namespace: str) -> None:
    """Serve stdin until it ends, then clean up."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The end of input says when to stop. A handler, unlike SIG_IGN, is not inherited.
        signal.signal(ignored, lambda *_: None)
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(signals, selectors.EVENT_READ)
    buffer = b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if signals in ready:
            os.read(signals, 4096)
            reap()
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                os.write(1, b"%d\n" % _start(json.loads(line)))
    clean(directory, namespace)


def _start(order: dict[str, object]) -> int:
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        child = subprocess.Popen(
            order["argv"],  # type: ignore[call-overload]
            env=order["env"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        return int(child.pid)
    finally:
        os.close(log)


if __name__ == "__main__":
    main(*sys.argv[1:])
