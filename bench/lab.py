"""The shims that are compared, and containers under them (library)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.guests.build import SOURCES, build
from tests.integration import images
from tests.integration.containerd import PYWASM, RUNC, Containerd


@dataclass(frozen=True)
class Kind:
    """One of the runtimes that are compared, and its programs in the image."""

    title: str
    runtime: str
    suffix: str

    def program(self, name: str) -> str:
        """Path of a guest in the image."""
        return f"/{name}{self.suffix}"


WASM = Kind("pywasm", PYWASM, ".wasm")
NATIVE = Kind("runc", RUNC, "")

IMAGE = "localhost/hello:1"


def other(shim: str) -> tuple[str, Kind]:
    """Return the path of a wasm shim that is named by its path or found on PATH, and its kind.

    From here on containerd finds it, too, which derives the binary's name from the runtime's.

    Raises:
        SystemExit: there is no such binary, or containerd could not find it.

    """
    path = shutil.which(shim)
    named = re.fullmatch(r"containerd-shim-(\w+)-(v\d+)", os.path.basename(shim))
    if path is None or named is None:
        raise SystemExit(f"bench: there is no shim {shim} (a containerd-shim-NAME-vN) here")
    path = os.path.abspath(path)
    os.environ["PATH"] = os.path.dirname(path) + os.pathsep + os.environ["PATH"]
    return path, Kind(
        "-".join(named.groups()), ".".join(("io.containerd", *named.groups())), ".wasm"
    )


def make_image(*guests: str, sources: Path = SOURCES) -> images.Image:
    """An image with these guests, compiled from the same C sources to wasm and natively."""
    files = {}
    for guest in guests:
        wasm, native = (build(guest, native=native, sources=sources) for native in (False, True))
        files[WASM.program(guest)] = images.File(wasm.read_bytes())
        files[NATIVE.program(guest)] = images.File(native.read_bytes(), 0o755)
    return images.build(IMAGE, files, entrypoint=[WASM.program(guests[0])])


@contextlib.contextmanager
def containerd_with(image: images.Image) -> Iterator[Containerd]:
    """A private containerd that has the image; PYWASM_CONTAINERD may name its directory."""
    with Containerd(os.environ.get("PYWASM_CONTAINERD") or None) as daemon:
        daemon.load(image.tar)
        yield daemon


def run_command(daemon: Containerd, kind: Kind, program: str, *options: str) -> list[str]:
    """Command line of a `ctr run` under a new name."""
    run = [*daemon.run_options(kind.runtime), *options, IMAGE, daemon.new_name()]
    return daemon.ctr_command(*run, kind.program(program))


def timed(daemon: Containerd, kind: Kind, program: str, *options: str) -> tuple[float, str]:
    """Seconds that one `ctr run --rm` takes, the client included, and what it printed.

    Raises:
        RuntimeError: it failed; the message holds its stderr.

    """
    command = run_command(daemon, kind, program, "--rm", *options)
    start = time.perf_counter()
    done = subprocess.run(
        command,
        env=daemon.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{kind.title}: exit status {done.returncode}: {done.stderr.strip()}")
    return seconds, done.stdout
