"""The node's services: units as systemd would run them, containerd and a registry. Library.

Runs in the node, in the process of the checks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from shim.linux.cgroups import Cgroup
from shim.node.containerd import CONFIG, USUAL_PATH
from tests.cluster.supplies import PAUSE
from tests.cri import registry
from tests.cri.node import SUBNET, cni_directory, may_protect_from_oom
from tests.integration.containerd import eventually

CONTAINERD = "/run/containerd/containerd.sock"
LOGS = "/var/log/units"

_REGISTRY_PORT = 5000
_UNITS = "/run/units"

_CONTAINERD = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = {restricted}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
"""

_HOST = """\
[host."http://127.0.0.1:{port}"]
  capabilities = ["pull", "resolve"]
"""

_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": SUBNET}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
}

_UNIT = 'while :; do "${@:2}" & echo $! >"$1"; wait $!; sleep 0.2; done'
"""A service that is started again whenever it ends, and says its pid in a file."""

# A stand-in: the real one wants systemd as process 1, and that the whole machine.
_SYSTEMCTL = f"""\
#!/bin/bash
[ "$1" = restart ] || exit 1
old=$(cat {_UNITS}/$2) || exit 5
kill "$old"
until new=$(cat {_UNITS}/$2) && [ -n "$new" ] && [ "$new" != "$old" ]; do sleep 0.1; done
"""


class Node:
    """The node's services, a containerd among them."""

    def __init__(self, images: str, bin_dir: str) -> None:
        """`images` is the registry's directory, `bin_dir` where containerd is, if not on PATH."""
        self.path = os.pathsep.join(filter(None, [bin_dir, USUAL_PATH]))
        for path in (_UNITS, LOGS):
            os.makedirs(path)
        hosts = Path("/etc/containerd/certs.d/_default/hosts.toml")
        hosts.parent.mkdir(parents=True)
        hosts.write_text(_HOST.format(port=_REGISTRY_PORT))
        Path(CONFIG).write_text(
            _CONTAINERD.format(
                pause=PAUSE,
                plugins=cni_directory(),
                restricted="false" if may_protect_from_oom() else "true",
            )
        )
        network = Path("/etc/cni/net.d/10-pods.conflist")
        network.parent.mkdir()
        network.write_text(json.dumps(_NETWORK))
        systemctl = Path("/usr/local/sbin/systemctl")
        systemctl.unlink(missing_ok=True)
        systemctl.write_text(_SYSTEMCTL)
        systemctl.chmod(0o755)
        command = [sys.executable, "-ISE", registry.__file__, images, str(_REGISTRY_PORT)]
        self.start("registry", command)
        self.start("containerd", ["containerd"])
        eventually(lambda: serves("127.0.0.1", _REGISTRY_PORT))
        eventually(lambda: os.path.exists(CONTAINERD))

    def start(self, unit: str, command: Sequence[str]) -> None:
        """Start a service, in a cgroup of its own."""
        cgroup = Cgroup.for_path(f"/system.slice/{unit}.service")
        cgroup.create()
        with open(f"{LOGS}/{unit}.log", "ab") as log:
            subprocess.Popen(
                ["bash", "-c", _UNIT, unit, f"{_UNITS}/{unit}", *command],
                env={"PATH": self.path},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=cgroup.attach,  # noqa: PLW1509  (there are no threads)
            )
        eventually(lambda: self.pid(unit))

    def pid(self, unit: str) -> int:
        """The process of a service; 0 while there is none."""
        with contextlib.suppress(OSError, ValueError):
            return int(Path(f"{_UNITS}/{unit}").read_text())
        return 0

    def kill(self, unit: str, signum: signal.Signals = signal.SIGTERM) -> None:
        """End a service, and wait until it runs again."""
        old = self.pid(unit)
        os.kill(old, signum)
        eventually(lambda: self.pid(unit) not in (0, old))


def serves(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False
