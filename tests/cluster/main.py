"""Run a Kubernetes of one node, and the checks in it: scripts/cluster.

This process stays outside: it makes the images and the node's cgroup, starts process 1 of the node
(`inside.py`), and looks afterwards whether anything is left.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

from shim.linux.cgroups import Cgroup
from tests.cluster import inside, supplies
from tests.cluster.checks import report
from tests.cluster.machine import SETTINGS
from tests.integration import keeper

_NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc")
_PATIENCE = 20.0  # seconds, for what has been killed to be gone


def main() -> None:
    """Run it, and end with 1 if a check has failed."""
    parser = argparse.ArgumentParser(prog="cluster", allow_abbrev=False)
    parser.add_argument("binaries", help="where kube-apiserver, etcd and the others are")
    parser.add_argument("--busybox", required=True, help="a static busybox")
    parser.add_argument("--bin-dir", default="", help="where containerd is; else on PATH")
    parser.add_argument("--only", default="", metavar="TEXT", help="checks with this in their name")
    parser.add_argument("--keep", default="", metavar="DIR", help="a directory for the logs")
    arguments = parser.parse_args()
    if arguments.keep:
        os.makedirs(arguments.keep, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and clean up
    path = f"/pywasm-cluster-{secrets.token_hex(4)}"
    settings = _settings()
    with tempfile.TemporaryDirectory(prefix="pywasm-") as directory:
        for part in (inside.SCRATCH, inside.IMAGES):
            os.mkdir(f"{directory}/{part}")
        supplies.provide(f"{directory}/{inside.IMAGES}", arguments.busybox)
        cgroup = Cgroup.for_path(path)
        cgroup.create()
        order = inside.Order(
            directory,
            path,
            os.path.abspath(arguments.binaries),
            os.path.abspath(arguments.bin_dir) if arguments.bin_dir else "",
            arguments.only.replace(" ", "_"),
            os.path.abspath(arguments.keep) if arguments.keep else "",
        )
        # It ends with us, and the node with it.
        command = ["setpriv", "--pdeathsig=KILL", "unshare", *_NAMESPACES, "--fork", "--kill-child"]
        command += [sys.executable, "-m", inside.__name__, *order]
        try:
            done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL)
        finally:
            clean = report(nothing_is_left, directory, cgroup, settings)
    sys.exit(1 if done.returncode or not clean else 0)


def nothing_is_left(directory: str, cgroup: Cgroup, settings: Mapping[str, str]) -> None:
    """The last check, for which the node has to be gone. Removes the cgroup."""
    deadline = time.monotonic() + _PATIENCE
    while (pids := cgroup.pids()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not pids, f"processes: {pids}"
    cgroup.delete(patience=_PATIENCE)
    assert not cgroup.exists()
    assert keeper.mounts_below(directory) == []
    assert os.listdir(f"{directory}/{inside.SCRATCH}") == []
    assert _settings() == settings


def _settings() -> dict[str, str]:
    found = {}
    for name in SETTINGS:
        with open(f"/proc/sys/{name}") as file:
            found[name] = file.read()
    return found


if __name__ == "__main__":
    main()
