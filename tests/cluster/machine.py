"""A machine of its own to the eye of a kubelet: root, processes, network, cgroups, name.

Runs in the node's process 1, which `unshare` has put into new namespaces (mount, net, pid, uts,
ipc), and which makes the rest. When it ends, the kernel ends and removes everything but the
cgroups.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from shim.linux.cgroups import Cgroup, hierarchies
from shim.linux.clone import unshare

NAME = "node"
ADDRESS = "192.0.2.1"  # RFC 5737: of no real network

_CLONE_NEWCGROUP = 0x02000000
_EMPTY = ("/etc/containerd", "/etc/cni", "/opt/pywasm", "/var/lib/cni")
_MISSING = ("/var/lib/pywasm", "/etc/pywasm")
_IN_MEMORY = ("/var/lib/containerd", "/var/lib/kubelet")
"""A layer of an overlay cannot be in an overlay, and volumes are found by their file system."""

SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}
"""What a kubelet insists on. They are the machine's, which keeps its own: it is only told so."""


def make(scratch: str, cgroup: str, shown: Sequence[str]) -> None:
    """Make the node around this process.

    `scratch` is an empty directory for the layer that is written to; `cgroup` is the path of the
    one that will be the root for the node; `shown` are paths of the machine that the node has to
    see, wherever they are mounted.
    """
    Cgroup.for_path(cgroup).attach()
    unshare(_CLONE_NEWCGROUP)
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", scratch)
    root, upper, work = (f"{scratch}/{name}" for name in ("root", "upper", "work"))
    for path in (root, upper, work):
        os.mkdir(path)
    layers = f"lowerdir=/,upperdir={upper},workdir={work}"
    run("mount", "-t", "overlay", "-o", layers, "overlay", root)
    for path in shown:
        os.makedirs(root + path, exist_ok=True)
        run("mount", "--bind", path, root + path)
    run("mount", "--rbind", "/dev", f"{root}/dev")
    run("mount", "-t", "proc", "proc", f"{root}/proc")
    run("mount", "-t", "sysfs", "sysfs", f"{root}/sys")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{root}/run")
    _mount_cgroups(root)
    _tell_settings(root)
    run("rm", "-rf", *(root + path for path in (*_EMPTY, *_MISSING)))
    for path in (*_EMPTY, *_IN_MEMORY):
        os.makedirs(root + path, exist_ok=True)
    for path in _IN_MEMORY:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", root + path)
    _enter(root)

    # On cgroup v2 one that has children has no processes of its own.
    own = Cgroup.for_path("/init.scope")
    own.create()
    own.attach()
    socket.sethostname(NAME)
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")


def _mount_cgroups(root: str) -> None:
    """Mount the hierarchies, of which this cgroup namespace shows its own part."""
    trees = hierarchies()
    if all(tree.mount != "/sys/fs/cgroup" for tree in trees):
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{root}/sys/fs/cgroup")
    for tree in trees:
        os.makedirs(root + tree.mount, exist_ok=True)
        kind = ["cgroup2"] if tree.is_v2 else ["cgroup", "-o", ",".join(sorted(tree.controllers))]
        run("mount", "-t", *kind, "cgroup", root + tree.mount)


def _tell_settings(root: str) -> None:
    for name, value in SETTINGS.items():
        file = Path(f"{root}/run/settings/{name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
        run("mount", "--bind", str(file), f"{root}/proc/sys/{name}")


def _enter(root: str) -> None:
    """Make `root` the only root there is."""
    os.mkdir(f"{root}/run/machine")
    run("pivot_root", root, f"{root}/run/machine")
    os.chdir("/")
    run("umount", "--lazy", "/run/machine")
    run("mount", "--make-rshared", "/")  # as systemd does; volumes are mounted into containers
    hierarchies.cache_clear()


def reap(child: int) -> int:
    """Wait for everybody who loses his parent, until this child ends; return its exit status."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def run(*command: str) -> None:
    """Run a command that has to succeed. Raises subprocess.CalledProcessError."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
