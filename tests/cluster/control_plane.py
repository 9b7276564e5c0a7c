"""etcd, API server, controllers, scheduler and kubelet, as services of the node. Library.

Who they are is said by tokens, and what they may by Kubernetes' own roles. The API server is the
only one at port 443 of the address that the service `kubernetes` gets, so that pods reach it there
without a kube-proxy.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.machine import ADDRESS, NAME, run
from tests.cluster.node import CONTAINERD, Node
from tests.integration.containerd import eventually

_DIRECTORY = "/etc/kubernetes"
_SERVICES = "203.0.113.0/24"  # RFC 5737
_SERVER = "203.0.113.1"  # the first of them is that of the API server
_ETCD = "http://127.0.0.1:2379"
_CERTIFICATE, _KEY = f"{_DIRECTORY}/pki/apiserver.crt", f"{_DIRECTORY}/pki/apiserver.key"

_USERS = {  # name, and group
    "admin": ("admin", "system:masters"),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kubelet": (f"system:node:{NAME}", "system:nodes"),
}

_KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "address": ADDRESS,
    # Nobody else is on this network.
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs",
    "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
    "failCgroupV1": False,
    "failSwapOn": False,
    "oomScoreAdj": 0,  # which cannot be lowered everywhere
    "makeIPTablesUtilChains": False,
    "resolvConf": "",
    "clusterDNS": ["203.0.113.10"],  # nobody, but pods ask for one
    # The machine is shared, and how full it is is not the matter here.
    "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
    "imageGCHighThresholdPercent": 100,
}


class Kubectl:
    """kubectl, as the administrator."""

    def __init__(self, binaries: str) -> None:
        self._program = f"{binaries}/kubectl"

    def command(self, *arguments: str) -> list[str]:
        """Its command line, for who starts it himself."""
        return [self._program, "--kubeconfig", f"{_DIRECTORY}/admin.conf", *arguments]

    def run(
        self, *arguments: str, input: str | None = None, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """Run it, whatever its exit status."""
        return subprocess.run(
            self.command(*arguments),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def __call__(self, *arguments: str, input: str | None = None) -> str:
        """Run it, and return its stdout. Raises AssertionError with what it says."""
        done = self.run(*arguments, input=input)
        said = done.stderr.strip() or done.stdout.strip()
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {said}"
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """An object, or a list of them."""
        return json.loads(self("get", *arguments, "-o", "json"))

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Apply some objects."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        self("apply", "-f", "-", input=text)


def start(node: Node, binaries: str) -> Kubectl:
    """Start all of it; returns when the node is ready for pods."""
    run("ip", "address", "add", f"{_SERVER}/32", "dev", "lo")
    Path(_DIRECTORY).mkdir(exist_ok=True)
    tokens = {name: secrets.token_hex(16) for name in _USERS}
    lines = [f'{tokens[n]},{user},{user},"{group}"\n' for n, (user, group) in _USERS.items()]
    Path(f"{_DIRECTORY}/tokens.csv").write_text("".join(lines))
    for name, token in tokens.items():
        Path(f"{_DIRECTORY}/{name}.conf").write_text(_kubeconfig(token))
    Path(f"{_DIRECTORY}/kubelet.json").write_text(json.dumps(_KUBELET))
    kubectl = Kubectl(binaries)
    for name, arguments in _services().items():
        node.start(name, [f"{binaries}/{name}", *arguments])
        if name == "kube-apiserver":
            eventually(lambda: kubectl.run("get", "--raw", "/readyz").returncode == 0)
    eventually(lambda: _is_ready(kubectl))
    return kubectl


def _services() -> dict[str, Sequence[str]]:
    def as_user(name: str) -> str:
        return f"--kubeconfig={_DIRECTORY}/{name}.conf"

    return {
        "etcd": [
            "--data-dir=/var/lib/etcd-of-cluster",
            f"--listen-client-urls={_ETCD}",
            f"--advertise-client-urls={_ETCD}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
        "kube-apiserver": [
            f"--etcd-servers={_ETCD}",
            f"--cert-dir={_DIRECTORY}/pki",  # which it makes itself
            f"--advertise-address={ADDRESS}",
            "--secure-port=443",
            f"--service-cluster-ip-range={_SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--token-auth-file={_DIRECTORY}/tokens.csv",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={_KEY}",
            f"--service-account-signing-key-file={_KEY}",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged",
        ],
        "kube-controller-manager": [
            as_user("kube-controller-manager"),
            "--leader-elect=false",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={_KEY}",
            f"--root-ca-file={_CERTIFICATE}",
        ],
        "kube-scheduler": [as_user("kube-scheduler"), "--leader-elect=false"],
        "kubelet": [
            as_user("kubelet"),
            f"--config={_DIRECTORY}/kubelet.json",
            f"--hostname-override={NAME}",
            f"--node-ip={ADDRESS}",
        ],
    }


def _kubeconfig(token: str) -> str:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "cluster",
                "cluster": {
                    "server": f"https://{_SERVER}",
                    "certificate-authority": _CERTIFICATE,
                },
            }
        ],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
        "current-context": "context",
    }
    return json.dumps(document)


def _is_ready(kubectl: Kubectl) -> bool:
    """Whether the node is, and pods have an account to run with."""
    done = kubectl.run("get", "node", NAME, "-o", "json")
    if done.returncode or kubectl.run("get", "serviceaccount", "default").returncode:
        return False
    conditions = json.loads(done.stdout)["status"]["conditions"]
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
