"""A private CRI-O as a Kubernetes node has it, in the place of a containerd: scripts/crio.

Library, no pytest in it. CRI-O is Go's, and belongs to the repository cri-o/cri-o; PYWASM_CRIO
names the directory that `crio`, `conmon` and `pinns` are in. All that it writes is below one
temporary directory, and it pulls images from a registry of ours, on the loopback interface of a
network of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from shim.node.crio import SHIM, drop_in
from tests.cri.kubelet import Kubelet
from tests.cri.node import PAUSE, REGISTRY_PORT, Node, cni_directory, may_protect_from_oom
from tests.integration import images, keeper

DIRECTORY = os.environ.get("PYWASM_CRIO", "")
"""Where it is; empty for tests with containerd."""

_CONTAINERD = "it is about containerd"
_PATIENT = "CRI-O waits for as long as the call may take before it kills what a pod still runs"
_NOTHING = "CRI-O forwards nothing where the runtime's type is vm"
SKIPPED = {
    "test_sandboxer.py": _CONTAINERD,
    "test_registration.py": _CONTAINERD,
    "test_exec.py::test_terminal*-runc]": "conmon loses the first words at times",
    "test_pods.py::test_a_pod_is_stopped_with_its_containers": _PATIENT,
    "test_pods.py::test_it_is_removed_by_force": _PATIENT,
    "test_pods.py::test_it_is_stopped_in_the_middle_of_things": _PATIENT,
    "test_pods.py::test_a_shim_that_dies": "CRI-O does not notice, and cannot stop such a pod",
    "test_pods.py::test_a_sysctl_that_there_is_not": "CRI-O passes over it",
    "test_pods.py::test_one_shim": "there is one for each container",
    "test_streaming.py::test_port_forward*-native]": _NOTHING,
    "test_streaming.py::test_port_forward*wasm]": _NOTHING,
}
"""Tests that CRI-O is not asked to pass, by the beginning of their names (fnmatch), and why."""
if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
    SKIPPED["test_containers.py::test_statistics_of_a_pod"] = "CRI-O counts none on cgroup v1"

_CONFIG = """\
[crio]
  root = "{directory}/storage"
  runroot = "{directory}/run-storage"
  storage_driver = "{driver}"
  log_dir = "{directory}/log"
  version_file = "{directory}/version"
  clean_shutdown_file = "{directory}/clean.shutdown"
[crio.api]
  listen = "{directory}/c.sock"
[crio.runtime]
  default_runtime = "runc"
  cgroup_manager = "cgroupfs"
  # The tests ask for the process that holds a pod, which runc's have only so.
  drop_infra_ctr = false
  apparmor_profile = "unconfined"
  namespaces_dir = "{directory}/namespaces"
  pinns_path = "{programs}/pinns"
  container_exits_dir = "{directory}/exits"
  container_attach_socket_dir = "{directory}/attach"
  decryption_keys_path = "{directory}/none"
  irqbalance_config_restore_file = "disable"
  enable_criu_support = false
  hooks_dir = []
  cdi_spec_dirs = []
  [crio.runtime.runtimes.runc]
    runtime_path = "{runc}"
    runtime_root = "{directory}/runc"
    monitor_path = "{programs}/conmon"
    monitor_cgroup = "pod"
[crio.image]
  pause_image = "{pause}"
  pause_command = ""
  namespaced_auth_dir = "{directory}/none"
  signature_policy = "{directory}/policy.json"
  signature_policy_dir = "{directory}/none"
[crio.network]
  network_dir = "{directory}/cni"
  plugin_dirs = ["{plugins}"]
[crio.nri]
  enable_nri = false
"""
_REGISTRIES = """\
unqualified-search-registries = []
[[registry]]
  prefix = "localhost"
  location = "127.0.0.1:{port}"
  insecure = true
"""
_WITHOUT_RIGHTS = """\
#!/bin/sh
# Not every virtual machine lets root have all capabilities. CRI-O does not look.
bundle=. before=
for word; do
  [ "$before" = --bundle ] && bundle=$word
  before=$word
done
spec=$bundle/config.json
[ -e "$spec" ] &&
  sed -i 's/"oomScoreAdj": *-[0-9]*/"oomScoreAdj":0/; s/"CAP_SYS_RESOURCE",//' "$spec"
exec {program} "$@"
"""
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
_CACHE = "/var/lib/containers/cache"  # of where layers come from; nothing moves it
_LEFT = {
    "namespace": "namespaces/*ns/*",
    "exit": "exits/*",
    "streams": "pywasm/crio/fifo/io/*",
    "bundle": "*storage/overlay-containers/" + "[0-9a-f]" * 64,
}


class CrioNode(Node):
    """One running CRI-O; use it as a context manager.

    Its handlers are those of a containerd, save that there is no Sandbox API.
    """

    kept_namespaces = ("ipc", "pid")
    cgroup_prefix = "crio-"

    def __init__(self, programs: str) -> None:
        self.programs = os.path.abspath(programs)
        self._own_mounts: set[str] = set()
        self._had_cache = os.path.exists(_CACHE)
        super().__init__()

    def __enter__(self) -> CrioNode:
        return self

    def start(self, *, events_at: str = "") -> None:
        """Start CRI-O, and the network if there is none. Raises as Containerd's."""
        super().start(events_at=events_at)
        if not self._own_mounts:
            self._own_mounts.update(keeper.mounts_below(self.directory))

    def configuration(self) -> str:
        """What its configuration file says."""
        directory = Path(self.directory)
        (directory / "bin").mkdir(exist_ok=True)
        shim = self._runtime("containerd-shim-pywasm-v1", SHIM)
        (directory / "none").mkdir(exist_ok=True)
        (directory / "storage.conf").write_text("")
        (directory / "registries.conf").write_text(_REGISTRIES.format(port=REGISTRY_PORT))
        (directory / "policy.json").write_text(json.dumps(_POLICY))
        ours = drop_in("pywasm", shim).replace("/run/pywasm-crio", f"{directory}/pywasm")
        runtime_config = f'  runtime_config_path = "{directory}/pywasm.toml"\n'
        return (
            ours
            + runtime_config
            + _CONFIG.format(
                directory=directory,
                driver="overlay" if self.snapshotter == "overlayfs" else "vfs",
                pause=PAUSE,
                plugins=cni_directory(),
                programs=self.programs,
                runc=self._runtime("runc", "runc"),
            )
        )

    def _runtime(self, program: str, name: str) -> str:
        """Where CRI-O is told that a runtime is."""
        path = Path(self.directory, "bin", name)
        if not may_protect_from_oom():
            path.write_text(_WITHOUT_RIGHTS.format(program=self._command(program)))
            path.chmod(0o755)
        elif not path.exists():
            path.symlink_to(self._command(program))
        return str(path)

    def command_line(self) -> list[str]:
        """What starts it."""
        return [
            *self._inside(),
            *("env", f"CONTAINERS_STORAGE_CONF={self.directory}/storage.conf"),
            f"{self.programs}/crio",
            *("--config", f"{self.directory}/config.toml"),
            *("--config-dir", f"{self.directory}/none"),
            *("--registries-conf", f"{self.directory}/registries.conf"),
            *("--registries-conf-dir", f"{self.directory}/none"),
        ]

    def _serves(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
            sock.connect(self.address)
            return True
        return False

    def add(self, image: images.Image) -> None:
        """Have an image; `Kubelet` finds it by its name."""
        self.serve({image.name.removeprefix("localhost/"): image})
        kubelet = Kubelet(self)
        kubelet.pull(image.name)
        kubelet.close()

    def scrub(self) -> None:
        """Remove by force what containers have left behind; CRI-O forgets it with a restart."""
        self.end(signal.SIGKILL)
        self._remove_by_force()
        self.start()

    def stop(self) -> None:
        """End all of it; remove every trace."""
        super().stop()
        if not self._had_cache:
            shutil.rmtree(_CACHE, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(_CACHE))  # only if empty

    def _stale_sockets(self) -> list[str]:
        """Those are of containerd's."""
        return []

    def _leftovers(self) -> Iterator[str]:
        for line in super()._leftovers():
            if line.removeprefix("mount ") not in self._own_mounts:
                yield line
        for what, pattern in _LEFT.items():
            yield from (f"{what} {path}" for path in Path(self.directory).glob(pattern))
