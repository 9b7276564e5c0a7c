"""What the kubelet does with a node: pods, containers, streams. Library, no pytest in it.

grpcio and websockets start threads: only the process of the tests imports this.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import grpc
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from proto.api import cri_pb2 as cri
from tests.cri.node import Node
from tests.integration import keeper
from tests.integration.client import Connection, Service
from tests.integration.containerd import TIMEOUT, eventually

RUNNING, EXITED = cri.CONTAINER_RUNNING, cri.CONTAINER_EXITED
POD, CONTAINER, NODE = cri.POD, cri.CONTAINER, cri.NODE  # whose a namespace is
FIRST_ID = 1 << 20
"""The host's id of root in a pod with users of its own."""

_IDS = cri.IDMapping(host_id=FIRST_ID, container_id=0, length=1 << 16)
_OWN_USERS = cri.UserNamespace(mode=cri.NamespaceMode.Name(cri.POD), uids=[_IDS], gids=[_IDS])


class Kubelet(Connection):
    """A connection to a node's CRI plugin, or to its CRI-O."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.node = node
        self.runtime = Service(self, cri.DESCRIPTOR, "RuntimeService")
        self.images = Service(self, cri.DESCRIPTOR, "ImageService")
        self.log_directory = f"{node.directory}/pods"
        self._numbers = itertools.count(1)
        self._cgroups: set[str] = set()
        self.until_ready()

    def until_ready(self) -> None:
        """Wait until the plugin serves, which is later than containerd itself."""

        def ready() -> bool:
            try:
                status = self.runtime.Status(cri.StatusRequest()).status
            except grpc.RpcError:
                return False
            return all(c.status for c in status.conditions if c.type.endswith("Ready"))

        eventually(ready)

    def has_image(self, name: str) -> bool:
        """Whether the plugin has learnt of an image, which takes it a moment after an import."""
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name))
        return bool(self.images.ImageStatus(request).image.id)

    def pull(self, name: str) -> None:
        """Have an image pulled from its registry. Raises grpc.RpcError."""
        self.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=name)))

    def run_pod(
        self,
        handler: str,
        *,
        hostname: str = "",
        network: int = POD,
        pid: int = CONTAINER,
        ipc: int = POD,
        privileged: bool = False,
        own_users: bool = False,
        cgroup: str = "",
        sysctls: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Pod:
        """Run a pod with a runtime handler; its cgroup is `cgroup` below that of this containerd.

        `own_users`: with a user namespace, as a pod with `hostUsers: false` gets it.

        Raises:
            grpc.RpcError: it did not start.
        """
        name = f"pod-{next(self._numbers)}"
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="test"),
            hostname=hostname,
            log_directory=f"{self.log_directory}/{name}",
            labels=labels,
            annotations=annotations,
            linux=cri.LinuxPodSandboxConfig(
                cgroup_parent=f"/{self.node.group}{cgroup}",
                sysctls=sysctls,
                security_context=cri.LinuxSandboxSecurityContext(
                    privileged=privileged,
                    namespace_options=cri.NamespaceOption(
                        network=cri.NamespaceMode.Name(network),
                        pid=cri.NamespaceMode.Name(pid),
                        ipc=cri.NamespaceMode.Name(ipc),
                        userns_options=_OWN_USERS if own_users else None,
                    ),
                ),
            ),
        )
        os.makedirs(config.log_directory)
        if cgroup:
            self._cgroups.add(config.linux.cgroup_parent)
        request = cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return Pod(self, config, self.runtime.RunPodSandbox(request).pod_sandbox_id)

    def list_pods(self, **labels: str) -> list[Any]:
        """The `PodSandbox`es there are."""
        chosen = cri.PodSandboxFilter(label_selector=labels)
        return list(self.runtime.ListPodSandbox(cri.ListPodSandboxRequest(filter=chosen)).items)

    def list_containers(self, pod: str = "") -> list[Any]:
        """The `Container`s there are, or those of a pod."""
        request = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod))
        return list(self.runtime.ListContainers(request).containers)

    def remove_all(self) -> None:
        """Stop and remove every pod, as far as that goes; and their cgroups, which are ours."""
        for container in self.list_containers():  # CRI-O is patient with those of a pod
            with contextlib.suppress(grpc.RpcError):
                self.runtime.StopContainer(cri.StopContainerRequest(container_id=container.id))
        for pod in self.list_pods():
            with contextlib.suppress(grpc.RpcError):
                self.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id))
            with contextlib.suppress(grpc.RpcError):
                self.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
        for group in keeper.cgroups_of(self.node.group) if self._cgroups else ():
            if group.endswith(tuple(self._cgroups)):
                with contextlib.suppress(OSError):
                    os.rmdir(group)
        self._cgroups.clear()


class Pod:
    """One pod that runs, or ran."""

    def __init__(self, kubelet: Kubelet, config: Any, id: str) -> None:
        self.kubelet = kubelet
        self.config = config
        self.id = id
        self._runtime = kubelet.runtime
        self._numbers = itertools.count(1)

    def status(self) -> Any:
        """Its `PodSandboxStatus`."""
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=self.id)
        return self._runtime.PodSandboxStatus(request).status

    def ready(self) -> bool:
        """Whether its sandbox runs."""
        return bool(self.status().state == cri.SANDBOX_READY)

    @property
    def address(self) -> str:
        """Its IP address."""
        return str(self.status().network.ip)

    @property
    def pid(self) -> int:
        """The sandbox's first process."""
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=self.id, verbose=True)
        return int(json.loads(self._runtime.PodSandboxStatus(request).info["info"])["pid"])

    def stats(self) -> Any:
        """Its `PodSandboxStats`."""
        request = cri.PodSandboxStatsRequest(pod_sandbox_id=self.id)
        return self._runtime.PodSandboxStats(request).stats

    def create(
        self,
        image: str,
        *command: str,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        mounts: Sequence[tuple[str, str, bool]] = (),
        user: tuple[int, int] | None = None,
        groups: Sequence[int] = (),
        memory: int = 0,
        stdin: bool = False,
        tty: bool = False,
        annotations: Mapping[str, str] | None = None,
        target: Container | None = None,
        **security: Any,
    ) -> Container:
        """Create a container. A mount is `(host's path, path, whether it is read-only)`.

        In a pod with users of its own a mount shows them the host's ids, as a kubelet's volumes do.
        With `target` it is in the PID namespace of another one. `security` is what else is in its
        security context.

        Raises:
            grpc.RpcError: it was refused.
        """
        number = next(self._numbers)
        context = cri.LinuxContainerSecurityContext(supplemental_groups=groups, **security)
        context.namespace_options.CopyFrom(self.config.linux.security_context.namespace_options)
        if target is not None:
            context.namespace_options.pid = cri.TARGET
            context.namespace_options.target_id = target.id
        if user is not None:
            context.run_as_user.value, context.run_as_group.value = user
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=f"c{number}"),
            image=cri.ImageSpec(image=image, user_specified_image=image),
            command=command,
            working_dir=cwd,
            envs=[cri.KeyValue(key=k, value=v.encode()) for k, v in (env or {}).items()],
            mounts=[
                cri.Mount(
                    host_path=there,
                    container_path=here,
                    readonly=readonly,
                    uidMappings=context.namespace_options.userns_options.uids,
                    gidMappings=context.namespace_options.userns_options.gids,
                )
                for there, here, readonly in mounts
            ],
            annotations=annotations,
            log_path=f"c{number}.log",
            stdin=stdin,
            tty=tty,
            linux=cri.LinuxContainerConfig(
                resources=cri.LinuxContainerResources(memory_limit_in_bytes=memory),
                security_context=context,
            ),
        )
        request = cri.CreateContainerRequest(
            pod_sandbox_id=self.id, config=config, sandbox_config=self.config
        )
        id = self._runtime.CreateContainer(request).container_id
        return Container(self, f"{self.config.log_directory}/c{number}.log", id)

    def run(self, image: str, *command: str, **more: Any) -> Container:
        """Create and start a container. Raises as `create`."""
        container = self.create(image, *command, **more)
        container.start()
        return container

    def forward(self, *ports: int) -> Stream:
        """Open a stream to these ports in the pod's network: channels 2 N and 2 N + 1 each."""
        request = cri.PortForwardRequest(pod_sandbox_id=self.id, port=ports)
        url = self._runtime.PortForward(request).url
        return Stream(self.kubelet.node, f"{url}?{'&'.join(f'port={port}' for port in ports)}")

    def stop(self) -> None:
        """Stop it: its containers, its network."""
        self._runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=self.id))

    def remove(self) -> None:
        """Remove it with its containers."""
        self._runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=self.id))
        shutil.rmtree(self.config.log_directory, ignore_errors=True)


class Line(NamedTuple):
    """One line of a log in CRI's format."""

    time: str
    stream: str
    tag: str
    """F for a line's end, P for a part of one."""
    text: str


class Container:
    """One container of a pod."""

    def __init__(self, pod: Pod, log: str, id: str) -> None:
        self.pod = pod
        self.log = log
        self.id = id
        self._runtime = pod.kubelet.runtime

    def start(self) -> None:
        """Start it. Raises grpc.RpcError."""
        self._runtime.StartContainer(cri.StartContainerRequest(container_id=self.id))

    def status(self) -> Any:
        """Its `ContainerStatus`."""
        request = cri.ContainerStatusRequest(container_id=self.id)
        return self._runtime.ContainerStatus(request).status

    @property
    def pid(self) -> int:
        """Its first process."""
        request = cri.ContainerStatusRequest(container_id=self.id, verbose=True)
        return int(json.loads(self._runtime.ContainerStatus(request).info["info"])["pid"])

    def wait(self, timeout: float = TIMEOUT) -> Any:
        """Wait until it has exited; return its status. Raises TimeoutError."""
        eventually(lambda: self.status().state == EXITED, timeout)
        return self.status()

    def stop(self, grace: int = 0) -> None:
        """Stop it: SIGTERM, and `grace` seconds later SIGKILL."""
        request = cri.StopContainerRequest(container_id=self.id, timeout=grace)
        self._runtime.StopContainer(request)

    def remove(self) -> None:
        """Remove it."""
        self._runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=self.id))

    def lines(self) -> list[Line]:
        """Its log so far."""
        with open(self.log) as file:
            return [Line(*line.rstrip("\n").split(" ", 3)) for line in file]

    def output(self) -> str:
        """What it has printed so far, as the log has it."""
        return "".join(line.text + "\n" * (line.tag == "F") for line in self.lines())

    def until_says(self, text: str) -> None:
        """Wait until its log has a text. Raises TimeoutError."""
        eventually(lambda: text in self.output())

    def finish(self) -> str:
        """Wait until it has exited with 0; return what it printed."""
        status = self.wait()
        assert (status.exit_code, status.reason) == (0, "Completed"), (status, self.output())
        return self.output()

    def reopen_log(self) -> None:
        """Begin a new log file, the old one having been moved away."""
        self._runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=self.id))

    def stats(self) -> Any:
        """Its `ContainerStats`."""
        request = cri.ContainerStatsRequest(container_id=self.id)
        return self._runtime.ContainerStats(request).stats

    def update(self, **resources: Any) -> None:
        """Change these of its `LinuxContainerResources`."""
        request = cri.UpdateContainerResourcesRequest(
            container_id=self.id, linux=cri.LinuxContainerResources(**resources)
        )
        self._runtime.UpdateContainerResources(request)

    def exec_sync(self, *command: str, timeout: int = 0) -> tuple[int, str, str]:
        """Run a command in it; return its exit status, stdout and stderr. Raises grpc.RpcError."""
        request = cri.ExecSyncRequest(container_id=self.id, cmd=command, timeout=timeout)
        done = self._runtime.ExecSync(request)
        return done.exit_code, done.stdout.decode(), done.stderr.decode()

    def exec(self, *command: str, tty: bool = False, stdin: bool = True) -> Stream:
        """Run a command in it with streams of its own; with a terminal stderr is none."""
        request = cri.ExecRequest(
            container_id=self.id, cmd=command, tty=tty, stdin=stdin, stdout=True, stderr=not tty
        )
        return Stream(self.pod.kubelet.node, self._runtime.Exec(request).url)

    def attach(self, *, tty: bool = False, stdin: bool = True) -> Stream:
        """Attach to its own streams."""
        request = cri.AttachRequest(
            container_id=self.id, tty=tty, stdin=stdin, stdout=True, stderr=not tty
        )
        return Stream(self.pod.kubelet.node, self._runtime.Attach(request).url)


STDIN, STDOUT, STDERR, STATUS, RESIZE = range(5)


class Stream:
    """A connection to the streaming server, as a WebSocket: each message begins with a channel.

    For exec and attach the channels are stdin, stdout, stderr, status (at the end a JSON object,
    of Kubernetes' kind `Status`) and the terminal's size, also in JSON.
    """

    def __init__(self, node: Node, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.seen: dict[int, bytes] = {}
        connection = connect(
            parts._replace(scheme="ws").geturl(),
            sock=node.connect(parts.hostname, parts.port),
            subprotocols=[Subprotocol("v4.channel.k8s.io")],
            compression=None,
            proxy=None,
            open_timeout=TIMEOUT,
            close_timeout=2,
        )
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(connection)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes, channel: int = STDIN) -> None:
        """Write to a channel."""
        self._socket.send(bytes([channel]) + data)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the terminal."""
        self.send(json.dumps({"Width": width, "Height": height}).encode(), RESIZE)

    def _receive(self) -> bool:
        """Read one message; return whether there was one."""
        try:
            message = self._socket.recv(TIMEOUT)
        except ConnectionClosed:
            return False
        assert isinstance(message, bytes)
        self.seen[message[0]] = self.seen.get(message[0], b"") + message[1:]
        return True

    def until(self, text: bytes, channel: int = STDOUT) -> bytes:
        """Read until a channel has had a text; return all it had. Raises TimeoutError, EOFError."""
        while text not in self.seen.get(channel, b""):
            if not self._receive():
                raise EOFError(f"no {text!r}: {self.seen}")
        return self.seen[channel]

    def finish(self) -> int:
        """Read to the end; return the exit status of what was executed. Raises TimeoutError."""
        while self._receive():
            pass
        status = json.loads(self.seen[STATUS])
        if status["status"] == "Success":
            return 0
        assert status["reason"] == "NonZeroExitCode", status
        (code,) = (c["message"] for c in status["details"]["causes"] if c["reason"] == "ExitCode")
        return int(code)

    def port(self, number: int) -> int:
        """Read the port that the channels 2 N and 2 N + 1 begin with."""
        for channel in (2 * number, 2 * number + 1):
            while len(self.seen.get(channel, b"")) < 2:
                assert self._receive(), self.seen
        (port,) = struct.unpack("<H", self.seen[2 * number][:2])
        return int(port)

    def close(self) -> None:
        """Hang up."""
        self._stack.close()
