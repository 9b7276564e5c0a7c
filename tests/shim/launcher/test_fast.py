"""The fast path in C beside the launcher in Python, as scripts/install-launcher makes them.

A socket stands for the zygote, to see what it is asked, byte for byte.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from shim.launcher.main import FAREWELL, zygote_name
from tests.shim.launching import ROOT, zygotes

COMMAND = "containerd-shim-pywasm-v1"
BUILD = "0123456789ab"


_END = b"no more requests"


class Launchers(NamedTuple):
    fast: Path
    slow: Path


class Outcome(NamedTuple):
    status: int
    stdout: bytes
    stderr: bytes


def install(venv: Path, *within: str) -> Launchers:
    """Install both, by a command `within` which the installer runs."""
    (venv / "bin").mkdir()
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    installer = [sys.executable, "-ISE", f"{ROOT}/scripts/install-launcher"]
    subprocess.run([*within, *installer, ROOT, str(venv), BUILD], check=True)
    made = Launchers(venv / "bin" / COMMAND, venv / "launcher" / COMMAND)
    assert made.fast.read_bytes().startswith(b"\x7fELF")
    return made


@pytest.fixture(scope="module")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Launchers:
    return install(tmp_path_factory.mktemp("venv"))


def test_zig_can_build_it_where_there_are_no_headers(tmp_path: Path) -> None:
    hidden = 'mkdir -p /usr/include && mount -t tmpfs none /usr/include && CC=false exec "$@"'
    install(tmp_path, "unshare", "--mount", "sh", "-c", hidden, "sh")


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as short:  # a socket's path has 107 bytes at most
        directory = Path(short, "run")
        yield directory
        for pid in zygotes(directory):
            os.kill(pid, signal.SIGKILL)


class Zygote:
    """Listens where the launchers look for one; gives each connection the same answer."""

    def __init__(self, run_dir: Path, answer: bytes) -> None:
        run_dir.mkdir(mode=0o700, exist_ok=True)
        self.path = zygote_name(os.fsencode(run_dir), BUILD).decode() + ".sock"
        self.requests: list[bytes] = []
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                request = bytearray()
                while block := connection.recv(1 << 20):
                    request += block
                if request == _END:
                    return
                self.requests.append(bytes(request))
                with suppress(BrokenPipeError):
                    connection.sendall(self._answer)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.path)
            last.sendall(_END)
        self._thread.join()
        self._listener.close()
        os.unlink(self.path)


def run(
    program: Path,
    arguments: list[bytes],
    cwd: Path,
    env: Mapping[str, str],
    stdin: bytes = b"",
) -> Outcome:
    done = subprocess.run(
        [os.fsencode(program), *arguments],
        cwd=cwd,
        env=env,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


START = [b"-namespace", b"k8s.io", b"-id", b"x", b"start"]
VARIABLES = {
    "TTRPC_ADDRESS": "/run/containerd/containerd.sock.ttrpc",
    "MAX_SHIM_VERSION": "3",
    "PYWASM_STATE": "/var/lib/somewhere",
    "PYWASM_CONFIG": "",
    "PYWASM_RUNNER": "another",
}


@pytest.mark.parametrize(
    ("arguments", "env", "stdin"),
    [
        (START, {}, b""),
        (START, VARIABLES, b"parameters\0of\nany kind"),
        ([b"", b"\xff\xfe", b"x" * 100_000, b"start"], VARIABLES, b""),
        ([b"-v"] * 98 + [b"start"], {}, b""),
        ([b"-v"] * 9 + [b"start"], {}, b"\0"),
        (START, {}, os.urandom(9 << 20)),
    ],
    ids=["least", "all", "strange", "many", "ten", "long"],
)
def test_both_ask_the_same(
    launchers: Launchers,
    run_dir: Path,
    tmp_path: Path,
    arguments: list[bytes],
    env: dict[str, str],
    stdin: bytes,
) -> None:
    zygote = Zygote(run_dir, b"\0unix:///an/address")
    env = {"PYWASM_RUN": str(run_dir)} | env
    outcomes = [run(each, arguments, tmp_path, env, stdin) for each in launchers]
    zygote.close()
    fast, slow = zygote.requests
    assert fast == slow
    assert stdin in fast
    assert outcomes == [Outcome(0, b"unix:///an/address", b"")] * 2


@pytest.mark.parametrize(
    "answer", [b"\1one line\n", b"\x7f", b"\0", b"\0" + b"y" * 200_000, b"\xff" + b"z" * 70_000]
)
def test_both_print_the_answer(
    launchers: Launchers, run_dir: Path, tmp_path: Path, answer: bytes
) -> None:
    zygote = Zygote(run_dir, answer)
    env = {"PYWASM_RUN": str(run_dir)}
    fast, slow = (run(each, START, tmp_path, env) for each in launchers)
    zygote.close()
    assert fast == slow
    assert fast.status == answer[0]
    assert (fast.stderr if answer[0] else fast.stdout) == answer[1:]


@pytest.fixture
def told(launchers: Launchers, tmp_path: Path) -> Iterator[Path]:
    """Where a program in the place of the launcher in Python tells what it was executed with."""
    path, kept = tmp_path / "told", launchers.slow.with_suffix(".kept")
    launchers.slow.rename(kept)
    launchers.slow.write_text(
        f'#!/bin/sh\nprintf "%s|" "$@" >{path}\nprintf "%s|" "$PYWASM_RUN" >>{path}\ncat >>{path}\n'
    )
    launchers.slow.chmod(0o755)
    yield path
    kept.rename(launchers.slow)


def test_whoever_gets_no_answer_leaves_it_to_the_other(
    launchers: Launchers, run_dir: Path, tmp_path: Path, told: Path
) -> None:
    """With all that was on standard input, which has been read by then."""
    zygote = Zygote(run_dir, b"")
    stdin = os.urandom(1 << 20)
    run(launchers.fast, START, tmp_path, {"PYWASM_RUN": str(run_dir)}, stdin)
    zygote.close()
    assert len(zygote.requests) == 1
    assert told.read_bytes() == b"|".join([*START, os.fsencode(run_dir), stdin])


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_who_lacks_a_stream_leaves_it_to_the_other(
    launchers: Launchers, run_dir: Path, tmp_path: Path, told: Path, closed: int
) -> None:
    """A connection in its place would be read for input, or answered to itself."""
    zygote = Zygote(run_dir, b"\0unix:///an/address")
    without = tmp_path / "without"
    without.write_text(f'#!/bin/sh\nexec {launchers.fast} "$@" {closed}>&-\n')
    without.chmod(0o755)
    run(without, START, tmp_path, {"PYWASM_RUN": str(run_dir)})
    zygote.close()
    assert told.read_bytes().startswith(b"|".join(START))
    assert zygote.requests == []


@pytest.mark.parametrize("why", ["absent", "dead", "open to others", "a link", "another's", "long"])
def test_a_zygote_that_cannot_be_trusted_is_not_asked(
    launchers: Launchers, run_dir: Path, tmp_path: Path, told: Path, why: str
) -> None:
    zygote = Zygote(run_dir, b"\0unix:///an/address")
    asked = run_dir
    if why == "absent":
        zygote.close()
    elif why == "dead":
        zygote.close()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(zygote.path)
    elif why == "open to others":
        run_dir.chmod(0o755)
    elif why == "a link":
        asked = run_dir.parent / "link"
        asked.symlink_to(run_dir)
    elif why == "another's":
        os.chown(zygote.path, 1234, 1234)
    else:
        asked = run_dir.parent / ("long" * 30)
    run(launchers.fast, START, tmp_path, {"PYWASM_RUN": str(asked)}, b"input")
    assert told.read_bytes() == b"|".join([*START, os.fsencode(asked), b"input"])
    if why not in ("absent", "dead"):
        zygote.close()
        assert zygote.requests == []


@pytest.mark.parametrize("arguments", [[b"-v"] * 100, [b"x" * 131_000] * 9])
def test_what_does_not_fit_asks_nobody(
    launchers: Launchers, run_dir: Path, tmp_path: Path, told: Path, arguments: list[bytes]
) -> None:
    """Nor connects: a zygote forks for each connection."""
    zygote = Zygote(run_dir, b"\0unix:///an/address")
    run(launchers.fast, [*arguments, b"start"], tmp_path, {"PYWASM_RUN": str(run_dir)})
    zygote.close()
    assert told.exists()
    assert zygote.requests == []


@pytest.mark.parametrize("arguments", [[b"-v"], [b"-info"], [b"start", b"x"], [b"restart"], []])
def test_all_else_is_the_others(
    launchers: Launchers, tmp_path: Path, told: Path, arguments: list[bytes]
) -> None:
    run(launchers.fast, arguments, tmp_path, {"PYWASM_RUN": "r"}, b"input")
    assert told.read_bytes() == b"|".join([*(arguments or [b""]), b"r", b"input"])


def test_an_orderly_end_needs_nobody(launchers: Launchers, tmp_path: Path, told: Path) -> None:
    delete = [b"-id", b"x", b"delete"]
    (tmp_path / FAREWELL).write_bytes(b"an encoded answer")
    assert run(launchers.fast, delete, tmp_path, {}) == Outcome(0, b"an encoded answer", b"")
    (tmp_path / "elsewhere").write_bytes(b"of another")
    for spoil in ("empty", "absent", "a link"):
        (tmp_path / FAREWELL).unlink(missing_ok=True)
        if spoil == "empty":
            (tmp_path / FAREWELL).touch()
        elif spoil == "a link":
            (tmp_path / FAREWELL).symlink_to("elsewhere")
        told.unlink(missing_ok=True)
        assert run(launchers.fast, delete, tmp_path, {}).stdout == b""
        assert told.exists()


def test_together_they_start_a_zygote_and_find_it(
    launchers: Launchers, run_dir: Path, tmp_path: Path
) -> None:
    """The real one: the second request is answered without a launcher in Python."""
    env = {"PYWASM_RUN": str(run_dir), "PYWASM_STATE": str(tmp_path / "state")}
    (tmp_path / "config.json").write_text("{")
    first = run(launchers.fast, START, tmp_path, env)
    assert first.status == 1
    assert b"config.json" in first.stderr
    kept = launchers.slow.with_suffix(".kept")
    launchers.slow.rename(kept)
    try:
        assert run(launchers.fast, START, tmp_path, env) == first
    finally:
        kept.rename(launchers.slow)
