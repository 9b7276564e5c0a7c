"""A private containerd as a Kubernetes node has it: with the CRI plugin and a bridge network.

Library, no pytest in it. The network is a namespace of its own, with a bridge in it that the CNI
plugins make: the machine's interfaces, firewall rules and sysctls stay as they are, and all of it
goes with its last process. "The host's network" is that namespace, for the pods here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cri import registry
from tests.guests.build import build
from tests.integration import images
from tests.integration.containerd import PYWASM, RUNC, TIMEOUT, Containerd, eventually

PAUSE = "localhost/pause:1"
"""The sandbox image. Runc executes its program; for ours it only has to exist."""

REGISTRY_PORT = 5000  # the network is the node's own
SUBNET = "198.51.100.0/24"  # RFC 5737: addresses of no real network, enough for 250 pods
CNI_RESULTS = "/var/lib/cni/results"  # where containerd keeps them, which nothing changes

_CNI_DIRECTORIES = ("/usr/lib/cni", "/opt/cni/bin")
_CLONE_NEWNET = 0x40000000
_CAP_SYS_RESOURCE = 24

# pywasm-plain: with options that are not runc's, containerd 2 makes no user namespace.
_CRI = """\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  netns_mounts_under_state_dir = true
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = {restricted}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{directory}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "{runc}"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{directory}/runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.pywasm]
      runtime_type = "{pywasm}"
      pod_annotations = ["dev.pywasm.*", "dev.pywasm.*/*"]
      container_annotations = ["dev.pywasm.*"]
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.pywasm.options]
        ConfigPath = "{directory}/pywasm.toml"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.pywasm-plain]
      runtime_type = "{pywasm}"
      pod_annotations = ["dev.pywasm.*", "dev.pywasm.*/*"]
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.pywasm-shim]
      runtime_type = "{pywasm}"
      sandboxer = "shim"
      sandbox_mode = "shim"
      pod_annotations = ["dev.pywasm.*", "dev.pywasm.*/*"]
      container_annotations = ["dev.pywasm.*"]
"""


def pause_image() -> images.Image:
    """The sandbox image."""
    program = images.File(build("native", native=True).read_bytes(), mode=0o755)
    return images.build(PAUSE, {"pause": program}, entrypoint=["/pause", "term"])


class Node(Containerd):
    """One running containerd with the CRI plugin; use it as a context manager."""

    cri = True
    kept_namespaces: tuple[str, ...] = ("ipc", "pid", "uts")
    """Besides that of the network, in a pod that is to have none of its own."""
    cgroup_prefix = ""
    """Before a container's id, in the name of its cgroup."""
    _network = 0  # the pid of the process that holds the network namespace
    _registry = 0

    def __init__(self, bin_dir: str | None = None, *, debug: bool = False) -> None:
        super().__init__(bin_dir, debug=debug, namespace="k8s.io")  # the one the CRI plugin uses
        os.chmod(self.directory, 0o711)  # the root of a user namespace has to get to its rootfs

    def start(self, *, events_at: str = "") -> None:
        """Start containerd, and the network if there is none. Raises as Containerd's."""
        if not self._network:
            self._make_network()
        super().start(events_at=events_at)

    def __enter__(self) -> Node:
        return self

    def add(self, image: images.Image) -> None:
        """Have an image; `Kubelet` finds it by its name."""
        self.load(image.tar)

    def stop(self) -> None:
        """End all of it; remove every trace."""
        super().stop()
        for path in self._results():
            os.unlink(path)

    def configuration(self) -> str:
        """What its configuration file says."""
        return super().configuration() + _CRI.format(
            directory=self.directory,
            pause=PAUSE,
            plugins=cni_directory(),
            snapshotter=self.snapshotter,
            restricted="false" if may_protect_from_oom() else "true",
            runc=RUNC,
            pywasm=PYWASM,
        )

    def command_line(self) -> list[str]:
        """What starts it."""
        return [*self._inside(), *super().command_line()]

    # --- its network ------------------------------------------------------------------------

    def _make_network(self) -> None:
        self._network = self.spawn(["unshare", "--net", "sleep", "infinity"], self.log)
        ours = os.readlink("/proc/self/ns/net")
        eventually(lambda: self.network not in ("", ours))
        self.inside("ip", "link", "set", "lo", "up")
        os.mkdir(f"{self.directory}/cni")
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": SUBNET}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": f"{self.directory}/addresses",
            },
        }
        network = {"cniVersion": "0.4.0", "name": self.group, "plugins": [bridge]}
        Path(f"{self.directory}/cni/10-{self.group}.conflist").write_text(json.dumps(network))
        Path(f"{self.directory}/pywasm.toml").write_text(f'Root = "{self.directory}/runc"\n')

    @property
    def network(self) -> str:
        """The namespace, as in /proc/PID/ns/net; empty before there is one."""
        try:
            return os.readlink(f"/proc/{self._network}/ns/net")
        except OSError:
            return ""

    def _inside(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._network}/ns/net"]

    def inside(self, *command: str) -> str:
        """Run a command in the node's network; return its stdout.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        return subprocess.run(
            [*self._inside(), *command], check=True, capture_output=True, text=True, timeout=TIMEOUT
        ).stdout

    def connect(self, host: str, port: int, timeout: float = 10) -> socket.socket:
        """Connect by TCP from the node's network. Raises OSError."""

        def make() -> socket.socket:
            with open(f"/proc/{self._network}/ns/net") as namespace:
                if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

        # A socket belongs to the network it was made in; a thread joins that and ends.
        with ThreadPoolExecutor(1) as thread:
            made = thread.submit(make).result()
        made.settimeout(timeout)
        try:
            made.connect((host, port))
            made.settimeout(None)
        except BaseException:
            made.close()
            raise
        return made

    def _results(self) -> list[str]:
        """Files of pods of ours; each names the network namespace, which is in our directory."""
        found = []
        for name in _listdir(CNI_RESULTS):
            path = Path(CNI_RESULTS, name)
            with contextlib.suppress(FileNotFoundError):
                if f"{self.directory}/" in path.read_text():
                    found.append(str(path))
        return found

    # --- its registry -----------------------------------------------------------------------

    def serve(self, made: Mapping[str, images.Image]) -> None:
        """Have these images pulled by these names, without a host; returns when they can be."""
        directory = f"{self.directory}/images"
        for name, image in made.items():
            repository, _, tag = name.rpartition(":")
            registry.add(directory, repository, tag, image.tar)
        if not self._registry:
            command = [sys.executable, "-ISE", registry.__file__, directory, str(REGISTRY_PORT)]
            log = f"{self.directory}/registry.log"
            self._registry = self.spawn([*self._inside(), *command], log)
        eventually(self._listens)

    def _listens(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            self.connect("127.0.0.1", REGISTRY_PORT).close()
            return True
        return False

    # --- what must not be left --------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Pid and command line of the shims, sandboxes and containers that run now."""
        found = super().processes()
        for own in (self._network, self._registry):
            found.pop(own, None)
        return found

    def _leftovers(self) -> Iterator[str]:
        yield from super()._leftovers()
        state = f"{self.directory}/state/io.containerd.grpc.v1.cri"
        root = f"{self.directory}/root/io.containerd.grpc.v1.cri"
        held = f"io.containerd.sandbox.controller.v1.shim/{self.namespace}"
        for path in (
            *(f"{self.directory}/{top}/{held}" for top in ("state", "root")),
            *(f"{top}/{kind}" for top in (state, root) for kind in ("sandboxes", "containers")),
            f"{state}/netns",
            f"{self.directory}/runc/{self.namespace}",
        ):
            yield from (f"of a pod: {path}/{name}" for name in _listdir(path))
        addresses = f"{self.directory}/addresses/{self.group}"
        for name in _listdir(addresses):
            if name[0].isdecimal():
                yield f"address {addresses}/{name}"
        yield from (f"result {path}" for path in self._results())
        links = json.loads(self.inside("ip", "-json", "link", "show", "type", "veth"))
        yield from (f"link {link['ifname']}" for link in links if "ifname" in link)


_libc = ctypes.CDLL(None, use_errno=True)


def cni_directory() -> str:
    """Where the CNI plugins are. Raises FileNotFoundError."""
    for path in _CNI_DIRECTORIES:
        if os.access(f"{path}/bridge", os.X_OK):
            return path
    raise FileNotFoundError("there are no CNI plugins: run scripts/setup --containerd")


def may_protect_from_oom() -> bool:
    """Whether an OOM score may be lowered, as a sandbox's is; not in every virtual machine."""
    with open("/proc/self/status") as file:
        (effective,) = (int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return bool(effective >> _CAP_SYS_RESOURCE & 1)


def _listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []
