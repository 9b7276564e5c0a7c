"""The launcher from the source tree, executed as the installed one is: for tests."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])


def launch(
    arguments: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: Path | None = None,
    stdin: bytes = b"",
    python: str = sys.executable,
    build: str = "test",
    wrapper: Sequence[str] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run one invocation; `wrapper` is a command that executes it, such as unshare(1)."""
    program = (
        f"import sys; sys.path.insert(0, {ROOT!r}); from shim.launcher.main import main; "
        f"main(root={ROOT!r}, python={python!r}, build={build!r})"
    )
    interpreter = os.path.realpath(sys.executable)
    return subprocess.run(
        [*wrapper, interpreter, "-ISE", "-c", program, *arguments],
        cwd=cwd,
        env=env,
        input=stdin,
        capture_output=True,
        timeout=30,
        check=False,
    )


def zygotes(run_dir: Path) -> list[int]:
    """The zygotes that were started with this run directory."""
    return [int(lock.read_text()) for lock in run_dir.glob("zygote-*.lock")]


def refusals(path: str, pid: int, connections: int) -> int:
    """How many of so many simultaneous connects `pid` refuses, which cannot accept meanwhile.

    A client that is written in Go does not wait for room in the queue, as these do not.
    """
    refused = 0
    with contextlib.ExitStack() as stack:
        os.kill(pid, signal.SIGSTOP)
        stack.callback(os.kill, pid, signal.SIGCONT)
        for _ in range(connections):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            refused += client.connect_ex(path) != 0
    return refused
