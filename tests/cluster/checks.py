"""What a cluster needs of a runtime, in the order in which a node sees it. Runs in the node.

A check is a function that raises AssertionError, or waits for something in vain. Those that
`--only` leaves out are neither the first nor the last: the runtime is installed and taken away in
any case. What one of them needs, it makes itself, and removes.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from shim.linux.cgroups import hierarchies
from shim.node import processes
from shim.node.containerd import CONFIG
from shim.node.pod import LABEL
from tests.cluster import control_plane
from tests.cluster.control_plane import Kubectl
from tests.cluster.load import Load, addresses, get
from tests.cluster.machine import NAME
from tests.cluster.node import Node
from tests.cluster.supplies import GUESTS, INSTALLER, NEXT_VERSION, PREFIX, ROOT, VERSION
from tests.integration.containerd import eventually

SYSTEM = ("-n", "pywasm-system")
INSTALLATION = (*SYSTEM, "daemonset/pywasm-installer")
SAMPLES = str(ROOT / "deploy/samples")
SERVICE, PORT = "wasm-http", 8080  # of a sample
SIDECAR = "wasm-with-sidecar"  # a sample
_MIB = 1 << 20


class Cluster(NamedTuple):
    """What the checks work on."""

    node: Node
    kubectl: Kubectl
    deploy: str
    """A copy of deploy/, in which the installer's image has a name."""
    config: bytes
    """Of containerd, as it was."""


Check = Callable[[Cluster], "str | None"]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Add a check. What it returns is told with its success."""
    CHECKS.append(function)
    return function


def run(binaries: str, images: str, bin_dir: str, only: str) -> bool:
    """Start the cluster and run the checks; return whether all have passed."""
    made: list[Cluster] = []
    if not report(_the_cluster_starts, binaries, images, bin_dir, made):
        return False
    first, *others, last = CHECKS
    chosen = [function for function in others if only in function.__name__]
    (cluster,) = made
    failed = 0
    for function in (first, *chosen, last):
        if not report(function, cluster):
            failed += 1
            print(textwrap.indent(_warnings(cluster), "    "), flush=True)
    return not failed


def report(function: Callable[..., str | None], *arguments: Any) -> bool:
    """Run one, and print its line; return whether it has passed."""
    name = function.__name__.strip("_").replace("_", " ")
    start = time.monotonic()
    try:
        said, passed = function(*arguments), True
    except Exception as error:  # whatever it met that it did not expect
        place = traceback.extract_tb(error.__traceback__)
        line = next(frame.line for frame in reversed(place) if frame.name == function.__name__)
        said, passed = f"{line}\n    {error!r}", False
    spent = f"{time.monotonic() - start:6.1f} s"
    print(f"{'ok    ' if passed else 'failed'} {spent}  {name}" + (f": {said}" if said else ""))
    sys.stdout.flush()
    return passed


def _the_cluster_starts(binaries: str, images: str, bin_dir: str, made: list[Cluster]) -> str:
    node = Node(images, bin_dir)
    config = Path(CONFIG).read_bytes()
    kubectl = control_plane.start(node, binaries)
    deploy = "/run/deploy"
    shutil.copytree(ROOT / "deploy", deploy)
    cluster = Cluster(node, kubectl, deploy, config)
    _set_image(cluster, VERSION)
    made.append(cluster)
    info = kubectl.get("node", NAME)["status"]["nodeInfo"]
    return f"Kubernetes {info['kubeletVersion']}, {info['containerRuntimeVersion']}"


# --- installing -------------------------------------------------------------------------------


@check
def the_daemonset_installs_the_runtime(cluster: Cluster) -> None:
    kubectl, node = cluster.kubectl, cluster.node
    kubectl("apply", "-k", f"{cluster.deploy}/install")
    _rolled_out(cluster, *INSTALLATION)
    assert kubectl.get("node", NAME)["metadata"]["labels"][LABEL] == "true"
    (installation,) = os.listdir(PREFIX)
    assert re.fullmatch(rf"{VERSION}-\w+", installation)
    doctor = [f"{PREFIX}/{installation}/bin/pywasm", "doctor"]
    done = subprocess.run(
        doctor, env={"PATH": node.path}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@check
def an_installer_that_runs_again_changes_nothing(cluster: Cluster) -> None:
    before = cluster.node.pid("containerd"), Path(CONFIG).read_bytes()
    cluster.kubectl("rollout", "restart", *INSTALLATION)
    _rolled_out(cluster, *INSTALLATION)
    said = cluster.kubectl("logs", *INSTALLATION, "-c", "node")
    assert "is on the node already" in said
    assert "registered already" in said
    assert before == (cluster.node.pid("containerd"), Path(CONFIG).read_bytes())


@check
def the_samples_run(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    with samples(cluster):
        kubectl("wait", "--for=condition=complete", "job/wasm", "--timeout=120s")
        kubectl("create", "job", "--from=cronjob/wasm", "now")
        kubectl("wait", "--for=condition=complete", "job/now", "--timeout=60s")
        assert kubectl("logs", "job/now") == "hello from pywasm\n"
        endpoints = addresses(kubectl, SERVICE)
        assert len(endpoints) == 2, endpoints
        for address in endpoints:
            assert get(address, PORT, "/content") == "the content\n"
        assert _restarts(cluster) == 0


# --- pods -------------------------------------------------------------------------------------


@check
def probes(cluster: Cluster) -> None:
    listens = {"dev.pywasm.listen": f"tcp://0.0.0.0:{PORT}"}
    quick = {"periodSeconds": 1, "failureThreshold": 1}

    def server(name: str, **probes: Any) -> dict[str, Any]:
        return pod(name, "/http_listen.wasm", annotations=listens, **probes)

    def http(path: str) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": PORT}, **quick}

    good = {"exec": {"command": ["/hello.wasm"]}, **quick}
    bad = {"exec": {"command": ["/exit3.wasm"]}, **quick}
    with pods(
        cluster,
        server(
            "passing",
            startupProbe={"tcpSocket": {"port": PORT}, **quick},
            readinessProbe=http("/content"),
            livenessProbe=good,
        ),
        server("unready", readinessProbe=http("/missing")),
        server("dying", livenessProbe=bad),
    ):
        _ready(cluster, "passing")
        eventually(lambda: _status(cluster, "dying")["restartCount"])
        before = ("logs", "--previous", "dying")
        eventually(lambda: "listening on 1\n" in cluster.kubectl.run(*before).stdout)
        eventually(lambda: "statuscode: 404" in _events(cluster, "unready"))
        assert not _status(cluster, "unready")["ready"]
        assert _status(cluster, "unready")["restartCount"] == 0
        assert _status(cluster, "passing")["restartCount"] == 0


@check
def volumes(cluster: Cluster) -> None:
    config = {"kind": "ConfigMap", "data": {"key": "of a config map"}}
    secret = {"kind": "Secret", "stringData": {"key": "of a secret"}}
    objects = [
        {"apiVersion": "v1", "metadata": {"name": "given"}, **given} for given in (config, secret)
    ]
    field = {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}
    token = {"serviceAccountToken": {"path": "token"}}
    sources: dict[str, Any] = {
        "config": {"configMap": {"name": "given"}},
        "secret": {"secret": {"secretName": "given"}},
        "fields": {"downwardAPI": {"items": [field]}},
        "token": {"projected": {"sources": [token]}},
        "host": {"hostPath": {"path": "/run/host"}},
        "shared": {"emptyDir": {}},
        "memory": {"emptyDir": {"medium": "Memory"}},
    }
    mounts = [
        *({"name": name, "mountPath": f"/{name}"} for name in sources if name != "host"),
        {"name": "host", "mountPath": "/host", "readOnly": True},
        {"name": "config", "mountPath": "/one", "subPath": "key"},
    ]
    read = ("/config/key", "/secret/key", "/fields/name", "/host/key", "/shared/key", "/one")
    written = ("/shared/new", "/memory/new", "/host/new", "/config/new")
    words = [word for path in read for word in ("read", path)]
    words += [word for path in written for word in ("write", path)]
    words += ["read", "/token/token"]
    manifest = pod("volumes", "/probe.wasm", *words, volumeMounts=mounts)
    manifest["spec"] |= {
        "volumes": [{"name": name, **source} for name, source in sources.items()],
        "restartPolicy": "Never",
        "initContainers": [  # a native one
            {
                "name": "prepare",
                "image": "busybox:1.36",
                "command": ["sh", "-c", "echo of the first >/shared/key"],
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
            }
        ],
    }
    os.makedirs("/run/host", exist_ok=True)
    Path("/run/host/key").write_text("of the node\n")
    cluster.kubectl.apply(*objects)
    with pods(cluster, manifest):
        *lines, token_line = _finished(cluster, "volumes").splitlines()
        assert lines == [
            "of a config map",
            "of a secret",
            "volumes",
            "of the node",
            "of the first",
            "of a config map",
            *("ok", "ok", "EROFS", "EROFS"),
        ], lines
        assert token_line.startswith("eyJ"), token_line
    cluster.kubectl("delete", "configmap/given", "secret/given")


@check
def exec_attach_and_port_forward(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    listens = {"dev.pywasm.listen": f"tcp://127.0.0.1:{PORT}"}
    reading = pod("reading", "/cat.wasm", stdin=True, stdinOnce=True)
    reading["spec"]["restartPolicy"] = "Never"
    serving = pod("serving", "/http_listen.wasm", annotations=listens)
    with pods(cluster, reading, serving):
        _ready(cluster, "reading", "serving")
        assert kubectl("exec", "serving", "--", "/hello.wasm") == "hello from pywasm\n"
        assert kubectl("exec", "serving", "--", "/hello") == "hello from pywasm\n"  # native
        assert kubectl.run("exec", "serving", "--", "/exit3.wasm", "4").returncode == 4
        text = "some text\n" * 10_000
        assert kubectl("exec", "-i", "serving", "--", "/cat.wasm", input=text) == text
        assert kubectl.run("exec", "serving", "--", "/none.wasm").returncode not in (0, 4)

        assert "some words\n" in kubectl("attach", "-i", "reading", input="some words\n")
        assert _finished(cluster, "reading") == "some words\n"

        command = kubectl.command("port-forward", "pod/serving", f":{PORT}", "--address=127.0.0.1")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
            assert forward.stdout is not None
            found = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
            try:
                assert found
                assert get("127.0.0.1", int(found[1]), "/content") == "the content\n"
            finally:
                forward.terminate()


@check
def logs(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    trapping, missing = pod("trapping", "/trap.wasm"), pod("missing", "/missing.wasm")
    trapping["spec"]["restartPolicy"] = "Never"
    with pods(cluster, pod("speaking", "/idle.wasm"), trapping, missing):
        _ready(cluster, "speaking")
        assert kubectl("logs", "speaking") == "idle\n"
        command = kubectl.command("logs", "--follow", "speaking")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follow:
            assert follow.stdout is not None
            assert follow.stdout.readline() == "idle\n"
            kubectl("delete", "pod", "speaking", "--grace-period=1")
            assert follow.stdout.read() == ""  # it ends with its pod
        eventually(lambda: _terminated(cluster, "trapping"))
        ended = _terminated(cluster, "trapping")
        assert (ended["exitCode"], ended["reason"]) == (134, "Error"), ended
        assert "wasm trap" in kubectl("logs", "trapping")
        eventually(lambda: "No such file or directory" in _events(cluster, "missing"))


@check
def limits(cluster: Cluster) -> None:
    def ending(name: str, *command: str, **annotations: str) -> dict[str, Any]:
        given = {f"dev.pywasm.{key.replace('_', '-')}": value for key, value in annotations.items()}
        resources = {"limits": {"memory": "48Mi", "cpu": "500m"}}
        manifest = pod(name, *command, annotations=given, resources=resources)
        manifest["spec"]["restartPolicy"] = "Never"
        return manifest

    with pods(
        cluster,
        ending("greedy", "/bombs.wasm", "memory", "200"),
        ending("slow", "/spin.wasm", time_limit="1s"),
        ending("bounded", "/probe.wasm", "grow", "1000", memory_pages="300"),
        ending("limited", "/idle.wasm"),
    ):
        eventually(lambda: _terminated(cluster, "greedy"))
        ended = _terminated(cluster, "greedy")
        assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled"), ended
        eventually(lambda: _terminated(cluster, "slow"))
        assert _terminated(cluster, "slow")["exitCode"] == 137
        assert "exceeded its time limit of 1 s" in cluster.kubectl("logs", "slow")
        assert _finished(cluster, "bounded") == "refused\n"

        _ready(cluster, "limited")
        assert _limits(cluster, "limited") == (48 * _MIB, 0.5)
        resources = {"limits": {"memory": "64Mi", "cpu": "250m"}}
        resources["requests"] = resources["limits"]
        patch = {"spec": {"containers": [{"name": "main", "resources": resources}]}}
        cluster.kubectl(
            "patch", "pod", "limited", "--subresource=resize", "-p", yaml.safe_dump(patch)
        )
        eventually(lambda: _limits(cluster, "limited") == (64 * _MIB, 0.25))
        assert _status(cluster, "limited")["restartCount"] == 0


@check
def statistics(cluster: Cluster) -> None:
    def found() -> list[Any]:
        path = f"/api/v1/nodes/{NAME}/proxy/stats/summary"
        summary = yaml.safe_load(cluster.kubectl("get", "--raw", path))
        return [
            container["memory"]["workingSetBytes"]
            for each in summary["pods"]
            if each["podRef"]["name"] == "measured"
            for container in each["containers"]
            if container.get("memory", {}).get("workingSetBytes")
            and container.get("cpu", {}).get("usageCoreNanoSeconds")
        ]

    with pods(cluster, pod("measured", "/idle.wasm")):
        _ready(cluster, "measured")
        eventually(found)
        (memory,) = found()
        assert _MIB < memory < 32 * _MIB, memory


# --- what ends and starts again ---------------------------------------------------------------


@check
def pods_outlive_the_kubelet(cluster: Cluster) -> str:
    with samples(cluster), Load(cluster.kubectl, SERVICE, PORT, "/content") as load:
        before = _containers(cluster)
        cluster.node.kill("kubelet")
        _runs_a_pod(cluster)
        assert _containers(cluster) == before
    return load.check(pods=2)


@check
def pods_outlive_containerd(cluster: Cluster) -> str:
    with samples(cluster), Load(cluster.kubectl, SERVICE, PORT, "/content") as load:
        before = _containers(cluster)
        for signum in (signal.SIGTERM, signal.SIGKILL):
            cluster.node.kill("containerd", signum)
            _runs_a_pod(cluster)
            said = cluster.kubectl("exec", f"deployment/{SERVICE}", "--", "/hello.wasm")
            assert said == "hello from pywasm\n"
        assert _containers(cluster) == before
    return load.check(pods=2)


@check
def a_rolling_update_under_load(cluster: Cluster) -> str:
    with samples(cluster), Load(cluster.kubectl, SERVICE, PORT, "/content") as load:
        before = _containers(cluster)
        for _ in range(3):
            cluster.kubectl("rollout", "restart", f"deployment/{SERVICE}")
            _rolled_out(cluster, f"deployment/{SERVICE}")
        assert not any(
            id in before.values()
            for name, id in _containers(cluster).items()
            if name.startswith(SERVICE)
        )
    # Some of those in between are gone before a client hears of them.
    return load.check(pods=4)


@check
def an_upgrade_under_load(cluster: Cluster) -> str:
    kubectl = cluster.kubectl
    (old,) = glob.glob(f"{PREFIX}/*")
    with samples(cluster), Load(kubectl, SERVICE, PORT, "/content") as load:
        before = _containers(cluster)
        _set_image(cluster, NEXT_VERSION)
        kubectl("apply", "-k", f"{cluster.deploy}/install")
        _rolled_out(cluster, *INSTALLATION)
        assert _containers(cluster) == before
        assert processes.of(old, processes.SHIM)
        (new,) = glob.glob(f"{PREFIX}/{NEXT_VERSION}-*")
        with pods(cluster, pod("newer", "/idle.wasm")):
            _ready(cluster, "newer")
            assert processes.of(new, processes.SHIM)

        for name in ("wasm", SERVICE):
            kubectl("rollout", "restart", f"deployment/{name}")
            _rolled_out(cluster, f"deployment/{name}")
        kubectl("delete", "pod", SIDECAR, "--grace-period=3")
        eventually(lambda: not processes.of(old, processes.SHIM))
        kubectl("rollout", "restart", *INSTALLATION)  # as docs/kubernetes.md has it
        _rolled_out(cluster, *INSTALLATION)
        assert glob.glob(f"{PREFIX}/*") == [new]
        eventually(lambda: not processes.of(old, processes.ZYGOTE))
    return load.check(pods=4)


@check
def a_drain(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    with samples(cluster):
        kubectl("drain", NAME, "--ignore-daemonsets", "--delete-emptydir-data", "--force")
        eventually(lambda: not list(processes.named(processes.SHIM)))
        kubectl("uncordon", NAME)
        for name in ("wasm", SERVICE):
            _rolled_out(cluster, f"deployment/{name}")
        assert len(addresses(kubectl, SERVICE)) == 2


# --- the end ----------------------------------------------------------------------------------


@check
def an_uninstallation(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    with pods(cluster, pod("last", "/idle.wasm")):
        _ready(cluster, "last")
        kubectl("apply", "-k", f"{cluster.deploy}/uninstall")
        chosen = (*SYSTEM, "-l", "app.kubernetes.io/name=pywasm-installer", "-c", "node")
        refusal = "1 pods still run with this runtime"
        eventually(lambda: refusal in kubectl.run("logs", *chosen).stdout)
        assert LABEL not in kubectl.get("node", NAME)["metadata"]["labels"]
        assert _status(cluster, "last")["ready"]
        assert kubectl("exec", "last", "--", "/hello.wasm") == "hello from pywasm\n"
    _rolled_out(cluster, *INSTALLATION)
    kubectl("delete", "-k", f"{cluster.deploy}/install")
    assert Path(CONFIG).read_bytes() == cluster.config
    assert os.listdir(PREFIX) == []
    for name in (processes.SHIM, processes.ZYGOTE):
        assert list(processes.named(name)) == []
    left = [*glob.glob(f"{CONFIG}?*"), *glob.glob("/usr/local/bin/containerd-shim-pywasm*")]
    left += [path for path in ("/run/pywasm", "/var/lib/pywasm") if os.path.exists(path)]
    left += [found for tree in hierarchies() for found in glob.glob(f"{tree.mount}/pywasm*")]
    assert left == []


# --- what they share --------------------------------------------------------------------------


def pod(name: str, *command: str, annotations: Any = None, **container: Any) -> dict[str, Any]:
    """A pod of one container; `container` is what else that has."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {
            "runtimeClassName": "pywasm",
            "terminationGracePeriodSeconds": 2,
            "containers": [{"name": "main", "image": GUESTS, "command": command, **container}],
        },
    }


@contextlib.contextmanager
def pods(cluster: Cluster, *manifests: dict[str, Any]) -> Iterator[None]:
    """Some pods, which are gone afterwards."""
    cluster.kubectl.apply(*manifests)
    try:
        yield
    finally:
        names = [f"pod/{manifest['metadata']['name']}" for manifest in manifests]
        cluster.kubectl("delete", "--ignore-not-found", *names)


@contextlib.contextmanager
def samples(cluster: Cluster) -> Iterator[None]:
    """The samples, which run; they are gone afterwards."""
    cluster.kubectl("apply", "-f", SAMPLES)
    try:
        for name in ("wasm", SERVICE):
            _rolled_out(cluster, f"deployment/{name}")
        _ready(cluster, SIDECAR)
        yield
    finally:
        # The client there, a shell, does not end at SIGTERM.
        how = ("--ignore-not-found", "--cascade=foreground", "--grace-period=3")
        cluster.kubectl("delete", *how, "-f", SAMPLES)
        eventually(lambda: not cluster.kubectl.get("pods")["items"])


def _set_image(cluster: Cluster, version: str) -> None:
    """What `kustomize edit set image` does."""
    path = Path(cluster.deploy, "install/kustomization.yaml")
    document = yaml.safe_load(path.read_text())
    (image,) = document["images"]
    image |= {"newName": INSTALLER, "newTag": version}
    path.write_text(yaml.safe_dump(document))


def _rolled_out(cluster: Cluster, *what: str) -> None:
    cluster.kubectl("rollout", "status", "--timeout=150s", *what)


def _ready(cluster: Cluster, *names: str) -> None:
    each = [f"pod/{name}" for name in names]
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=60s", *each)


def _status(cluster: Cluster, name: str) -> Any:
    """Of the pod's container; before it has one, of one that is not ready."""
    status = cluster.kubectl.get("pod", name)["status"]
    (found,) = status.get("containerStatuses") or [{"ready": False, "restartCount": 0, "state": {}}]
    return found


def _terminated(cluster: Cluster, name: str) -> Any:
    return _status(cluster, name)["state"].get("terminated")


def _finished(cluster: Cluster, name: str) -> str:
    """Wait until a pod has ended well; return what it has printed."""
    eventually(lambda: _terminated(cluster, name))
    said = cluster.kubectl("logs", name)
    assert _terminated(cluster, name)["exitCode"] == 0, said
    return said


def _events(cluster: Cluster, name: str) -> str:
    """The messages about a pod."""
    found = cluster.kubectl.get("events", "--field-selector", f"involvedObject.name={name}")
    return "\n".join(event["message"] for event in found["items"])


def _warnings(cluster: Cluster) -> str:
    """What Kubernetes has complained of last."""
    chosen = ("--all-namespaces", "--field-selector=type=Warning", "--sort-by=.lastTimestamp")
    lines = cluster.kubectl.run("get", "events", *chosen, "--no-headers").stdout.splitlines()
    return "\n".join(lines[-5:])


def _containers(cluster: Cluster) -> dict[str, str]:
    """The containers that go on, by pod and name: another start, another id."""
    selector = "!batch.kubernetes.io/job-name"  # those of jobs come and go
    return {
        f"{each['metadata']['name']}/{status['name']}": status["containerID"]
        for each in cluster.kubectl.get("pods", "-l", selector)["items"]
        for status in each["status"].get("containerStatuses", [])
        if "running" in status["state"]
    }


def _restarts(cluster: Cluster) -> int:
    return sum(
        status["restartCount"]
        for each in cluster.kubectl.get("pods")["items"]
        for status in each["status"].get("containerStatuses", [])
    )


def _runs_a_pod(cluster: Cluster) -> None:
    manifest = pod("passing", "/hello.wasm")
    manifest["spec"]["restartPolicy"] = "Never"
    with pods(cluster, manifest):
        assert _finished(cluster, "passing") == "hello from pywasm\n"


def _limits(cluster: Cluster, name: str) -> tuple[int, float]:
    """Bytes of memory and number of processors that a container's cgroup allows."""
    id = _status(cluster, name)["containerID"].partition("://")[2]
    found: dict[str, str] = {}
    for tree in hierarchies():
        for path, _, files in os.walk(tree.mount):
            if os.path.basename(path) == id:
                found |= {file: f"{path}/{file}" for file in files}

    def read(file: str) -> list[str]:
        return Path(found[file]).read_text().split()

    if "cpu.max" in found:
        quota, period = read("cpu.max")
        return int(read("memory.max")[0]), int(quota) / int(period)
    (quota,), (period,) = read("cpu.cfs_quota_us"), read("cpu.cfs_period_us")
    return int(read("memory.limit_in_bytes")[0]), int(quota) / int(period)
