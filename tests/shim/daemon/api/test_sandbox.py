"""A pod held by its shim: the Sandbox API, without containerd."""

import asyncio
import contextlib
import itertools
import json
import os
import platform
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message

from oci.linux import IDMapping
from proto import sandbox_pb2 as api
from proto import task_v2_pb2 as tasks
from proto.cgroups_v1_pb2 import Metrics as MetricsV1
from proto.cgroups_v2_pb2 import Metrics as MetricsV2
from proto.pod_pb2 import NamespaceMode, PodSandboxConfig
from proto.task_pb2 import Status
from proto.task_v2_pb2 import DeleteResponse
from shim.linux import user_namespace
from shim.linux.cgroups import Cgroup
from shim.ttrpc import Code, RpcError
from tests.shim.task_api import Container, Shim, call, processes

M = TypeVar("M", bound=Message)

SANDBOX = "containerd.runtime.sandbox.v1.Sandbox"
GROUP = "/pywasm-test-sandbox"
KINDS = ("ipc", "net", "pid", "uts")


class Pod:
    """A sandbox, in directories as containerd lays them out."""

    def __init__(self, shim: Shim, id: str) -> None:
        self.shim = shim
        self.id = id
        top = shim.directory
        self.bundle = top / "volatile" / "plugin" / "n" / id
        self.files = top / "lasting" / "io.containerd.grpc.v1.cri" / "sandboxes" / id
        self.shm = top / "volatile" / "io.containerd.grpc.v1.cri" / "sandboxes" / id / "shm"
        work = top / "lasting" / "plugin" / "n" / id
        work.mkdir(parents=True)
        self.files.parent.mkdir(parents=True, exist_ok=True)
        (self.bundle / "rootfs").mkdir(parents=True)
        (self.bundle / "work").symlink_to(work)
        (top / id).symlink_to(self.bundle)  # where the harness executes the launcher

    async def launch(self, stdin: bytes = b"") -> None:
        """Start the shim. There is no config.json yet."""
        done = self.shim.launch(self.id, "start", stdin)
        assert done.returncode == 0, done.stderr
        self.client = await self.shim.connect(self.id, done.stdout.decode())

    async def create(self, config: PodSandboxConfig | None = None, netns: str = "") -> None:
        await self.call("CreateSandbox", self.request(config, netns), api.CreateSandboxResponse)

    def request(
        self, config: PodSandboxConfig | None = None, netns: str = ""
    ) -> api.CreateSandboxRequest:
        value = (config or PodSandboxConfig()).SerializeToString()
        options = any_pb2.Any(type_url="runtime.v1.PodSandboxConfig", value=value)
        return api.CreateSandboxRequest(
            sandbox_id=self.id, bundle_path=str(self.bundle), options=options, netns_path=netns
        )

    async def start(self) -> int:
        request = api.StartSandboxRequest(sandbox_id=self.id)
        answer = await self.call("StartSandbox", request, api.StartSandboxResponse)
        for _ in range(500):
            if name_of(answer.pid) == "pywasm-sandbox":
                break
            await asyncio.sleep(0.01)
        return answer.pid

    async def run(self, config: PodSandboxConfig | None = None, netns: str = "") -> int:
        """Go all the way; returns the pid to join."""
        await self.launch()
        await self.create(config, netns)
        return await self.start()

    async def status(self, *, verbose: bool = False) -> api.SandboxStatusResponse:
        request = api.SandboxStatusRequest(sandbox_id=self.id, verbose=verbose)
        return await self.call("SandboxStatus", request, api.SandboxStatusResponse)

    async def stop(self) -> None:
        request = api.StopSandboxRequest(sandbox_id=self.id)
        await self.call("StopSandbox", request, api.StopSandboxResponse)

    async def wait(self) -> api.WaitSandboxResponse:
        request = api.WaitSandboxRequest(sandbox_id=self.id)
        return await self.call("WaitSandbox", request, api.WaitSandboxResponse)

    async def shim_pid(self) -> int:
        request = tasks.ConnectRequest(id=self.id)
        return (await call(self.client, "Connect", request, tasks.ConnectResponse)).shim_pid

    async def shut_down(self) -> None:
        request = api.ShutdownSandboxRequest(sandbox_id=self.id)
        await self.call("ShutdownSandbox", request, api.ShutdownSandboxResponse)

    async def ended(self) -> None:
        """Wait until the shim is gone: its zygote is all that is left."""
        for _ in range(1000):
            if "pywasm-shim" not in map(name_of, processes(self.shim.env)):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the shim did not end")

    async def call(self, method: str, request: Message, response: type[M]) -> M:
        return await self.client.call(SANDBOX, method, request, response, timeout=20)

    async def refused(self, method: str, request: Message) -> tuple[Code, str]:
        with pytest.raises(RpcError) as caught:
            await self.call(method, request, api.PingResponse)
        return caught.value.code, caught.value.message

    async def container(self, id: str, pid: int, *args: str, **linux: Any) -> Container:
        """Create a container that joins the namespaces of `pid`."""
        joined = {"ipc": "ipc", "net": "network", "uts": "uts"}
        namespaces = [
            {"type": type, "path": f"/proc/{pid}/ns/{name}"} for name, type in joined.items()
        ]
        id = f"{self.id}-{id}"
        self.shim.bundle(id, *args, linux={"namespaces": [*namespaces, {"type": "pid"}], **linux})
        return await Container.create(self.shim, id, self.client)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    made = Shim(tmp_path_factory.mktemp("shim"), ["hello", "idle"])
    yield made
    asyncio.run(made.close())


_numbers = itertools.count(1)


@pytest.fixture
async def pod(shim: Shim) -> AsyncIterator[Pod]:
    made = Pod(shim, f"pod{next(_numbers)}")
    yield made
    with contextlib.suppress(RpcError, AttributeError):  # it has ended, or was never there
        await made.shut_down()
    for _, client in shim.clients:
        await client.close()
    shim.clients.clear()
    unmount(made.shm)


def unmount(path: Path) -> None:
    subprocess.run(["umount", "-l", path], capture_output=True, check=False)


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def dead(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"  # an orphan, whom init has not met yet


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def inside(pid: int, *command: str) -> str:
    done = ["nsenter", "-t", str(pid), "-n", "-u", "-i", *command]
    return subprocess.check_output(done, text=True)


async def test_a_life(pod: Pod) -> None:
    await pod.launch()
    await pod.create()
    created = await pod.status()
    assert created.state == "SANDBOX_NOTREADY"
    pid = await pod.start()
    waiting = asyncio.create_task(pod.wait())
    status = await pod.status()
    assert (status.sandbox_id, status.pid, status.state) == (pod.id, pid, "SANDBOX_READY")
    assert status.created_at.seconds > 1_700_000_000
    assert not status.HasField("exited_at")
    assert not status.info
    await pod.call("PingSandbox", api.PingRequest(sandbox_id=pod.id), api.PingResponse)
    assert not waiting.done()

    await pod.stop()
    assert (await waiting).exit_status == 128 + signal.SIGKILL
    assert dead(pid)
    status = await pod.status()
    assert (status.pid, status.state) == (0, "SANDBOX_NOTREADY")
    assert status.exited_at == (await pod.wait()).exited_at
    code, _ = await pod.refused("PingSandbox", api.PingRequest(sandbox_id=pod.id))
    assert code == Code.FAILED_PRECONDITION
    await pod.stop()  # again

    await pod.shut_down()
    await pod.ended()


async def test_namespaces_of_a_pod(pod: Pod) -> None:
    pid = await pod.run()
    for kind in KINDS:
        assert namespace(pid, kind) != namespace(os.getpid(), kind)
    assert os.listdir(f"/proc/{pid}/root") == ["pywasm-sandbox"]
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t65535\t65535" in status
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


async def test_namespaces_of_the_host(pod: Pod) -> None:
    config = PodSandboxConfig(hostname="ignored")
    modes = config.linux.security_context.namespace_options
    modes.network = modes.pid = modes.ipc = NamespaceMode.NODE
    pid = await pod.run(config)
    for kind in KINDS:
        assert namespace(pid, kind) == namespace(os.getpid(), kind)
    assert not pod.shm.exists()


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "netns"
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "true"], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


async def test_what_a_pod_is_given(pod: Pod, netns: Path) -> None:
    config = PodSandboxConfig(hostname="the-pod", annotations={"dev.pywasm.listen": "nonsense"})
    config.linux.sysctls["net.ipv4.ip_default_ttl"] = "33"
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    config.linux.security_context.run_as_user.value = 1234
    config.linux.security_context.supplemental_groups.append(77)
    pid = await pod.run(config, str(netns))
    assert namespace(pid, "net") == f"net:[{netns.stat().st_ino}]"
    assert inside(pid, "hostname") == "the-pod\n"
    assert inside(pid, "cat", "/proc/sys/net/ipv4/ip_default_ttl") == "33\n"
    assert inside(pid, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start") == "0\n"
    assert inside(pid, "cat", "/proc/sys/kernel/shm_rmid_forced") == "1\n"
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t1234" in status
    assert "Gid:\t1234" in status
    assert "Groups:\t77" in status
    info = json.loads((await pod.status(verbose=True)).info["info"])
    assert info["pid"] == pid
    assert info["processStatus"] == "running"
    assert info["runtimeSpec"]["hostname"] == "the-pod"


def with_users_of_its_own() -> PodSandboxConfig:
    config = PodSandboxConfig(hostname="the-pod")
    users = config.linux.security_context.namespace_options.userns_options
    users.mode = NamespaceMode.POD
    for mappings in (users.uids, users.gids):
        mappings.add(container_id=0, host_id=200_000, length=65_536)
    return config


@pytest.fixture
def netns_of_users(tmp_path: Path) -> Iterator[Path]:
    """A network namespace in a user namespace, as CRI makes them together."""
    path = tmp_path / "netns"
    path.touch()
    mappings = [IDMapping(container_id=0, host_id=200_000, size=65_536)]
    users = user_namespace.create(mappings, mappings)
    inside = ["nsenter", f"--user=/proc/{os.getpid()}/fd/{users}", "unshare", "--net"]
    command = [*inside, "sh", "-c", "echo && exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        subprocess.run(["mount", "--bind", f"/proc/{holder.pid}/ns/net", path], check=True)
        holder.kill()
    os.close(users)
    yield path
    subprocess.run(["umount", path], check=True)


async def test_a_pod_with_users_of_its_own(pod: Pod, netns_of_users: Path) -> None:
    config = with_users_of_its_own()
    config.linux.sysctls["net.ipv4.ip_default_ttl"] = "33"
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    pid = await pod.run(config, str(netns_of_users))
    assert namespace(pid, "net") == f"net:[{netns_of_users.stat().st_ino}]"
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", "200000", "65536"]
    for kind in KINDS:  # or no OCI runtime could mount what belongs to them
        owner = user_namespace.of_namespace(f"/proc/{pid}/ns/{kind}")
        assert os.fstat(owner).st_ino == os.stat(f"/proc/{pid}/ns/user").st_ino, kind
        os.close(owner)
    assert inside(pid, "hostname") == "the-pod\n"
    assert inside(pid, "cat", "/proc/sys/net/ipv4/ip_default_ttl") == "33\n"
    assert inside(pid, "cat", "/proc/sys/kernel/shm_rmid_forced") == "1\n"
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t265535\t265535" in status
    assert "CapEff:\t0000000000000000" in status
    assert re.search(rf"^NSpid:\t{pid}\t1$", status, re.MULTILINE)
    await pod.stop()
    assert dead(pid)


async def test_users_of_its_own_in_the_network_of_the_host(pod: Pod) -> None:
    config = with_users_of_its_own()
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    pid = await pod.run(config)
    assert namespace(pid, "net") == namespace(os.getpid(), "net")
    assert Path(f"/proc/{pid}/gid_map").read_text().split() == ["0", "200000", "65536"]


async def test_the_platform(pod: Pod) -> None:
    await pod.run()
    answer = await pod.call(
        "Platform", api.PlatformRequest(sandbox_id=pod.id), api.PlatformResponse
    )
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    machine = platform.machine()
    assert (answer.platform.os, answer.platform.architecture) == (
        "linux",
        names.get(machine, machine),
    )


async def test_files_of_a_pod(pod: Pod) -> None:
    config = PodSandboxConfig(hostname="the-pod")
    config.dns_config.servers[:] = ["198.51.100.1", "2001:db8::1"]
    config.dns_config.searches[:] = ["a.example", "b.example"]
    config.dns_config.options[:] = ["ndots:5"]
    await pod.run(config)
    assert (pod.files / "hostname").read_text() == "the-pod\n"
    assert (pod.files / "hosts").read_text() == Path("/etc/hosts").read_text()
    assert (pod.files / "resolv.conf").read_text() == (
        "search a.example b.example\n"
        "nameserver 198.51.100.1\nnameserver 2001:db8::1\n"
        "options ndots:5\n"
    )
    assert os.stat(pod.files / "resolv.conf").st_mode & 0o777 == 0o644
    assert os.path.ismount(pod.shm)
    assert os.stat(pod.shm).st_mode & 0o7777 == 0o1777
    await pod.shut_down()
    assert not pod.files.exists()
    assert not pod.shm.exists()


async def test_files_without_a_name_or_dns(pod: Pod) -> None:
    await pod.run()
    assert (pod.files / "hostname").read_text() == f"{socket.gethostname()}\n"
    assert (pod.files / "resolv.conf").read_text() == Path("/etc/resolv.conf").read_text()


# ---- containers


async def test_containers_of_a_pod(pod: Pod) -> None:
    pid = await pod.run(PodSandboxConfig(hostname="the-pod"))
    for id in ("one", "two"):
        container = await pod.container(id, pid, "/hello.wasm")
        assert (await container.run()).status == 0
        # containerd asks after each Delete; the shim stays for the pod.
        request = tasks.ShutdownRequest(id=id)
        await call(pod.client, "Shutdown", request, tasks.ConnectResponse)
    assert (await pod.status()).state == "SANDBOX_READY"


async def test_start_of_a_container_finds_the_shim(pod: Pod) -> None:
    await pod.run()
    mark = {"io.kubernetes.cri.sandbox-id": pod.id}
    pod.shim.bundle("one", "/hello.wasm", annotations=mark)
    client = await pod.shim.start("one")
    request = tasks.ConnectRequest(id="one")
    shims = [
        (await call(c, "Connect", request, tasks.ConnectResponse)).shim_pid
        for c in (client, pod.client)
    ]
    assert shims[0] == shims[1]
    assert (await (await Container.create(pod.shim, "one", client)).run()).status == 0


async def test_stop_ends_the_containers(pod: Pod) -> None:
    pid = await pod.run()
    container = await pod.container("one", pid, "/idle.wasm")
    await container.start()
    created = await pod.container("two", pid, "/idle.wasm")
    await pod.stop()
    assert (await container.ended()).status == 128 + signal.SIGKILL
    assert (await created.ended()).status == 128 + signal.SIGKILL


async def test_shutdown_ends_all(pod: Pod) -> None:
    config = PodSandboxConfig()
    config.linux.cgroup_parent = GROUP
    pid = await pod.run(config)
    container = await pod.container("one", pid, "/idle.wasm", cgroupsPath=f"{GROUP}/one")
    await container.start()
    assert await container.status() == Status.RUNNING
    await pod.shut_down()
    await pod.ended()
    for name in ("one", pod.id):
        assert not Cgroup.for_path(f"{GROUP}/{name}").exists()
    remove_group()
    # What containerd executes next is answered without asking anybody.
    done = pod.shim.launch(pod.id, "delete")
    assert DeleteResponse.FromString(done.stdout).exit_status == 128 + signal.SIGKILL


async def test_the_answer_to_shutdown_is_not_the_last_thing(pod: Pod) -> None:
    """containerd's client may miss an answer that the end of the connection comes right after."""
    await pod.run(PodSandboxConfig())
    await pod.shut_down()
    refused = await pod.refused("PingSandbox", api.PingRequest(sandbox_id=pod.id))
    assert refused[0] is Code.NOT_FOUND
    await pod.ended()


# ---- cgroups


def remove_group() -> None:
    for _, directory in Cgroup.for_path(GROUP)._directories:
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(directory)


async def test_metrics_are_those_of_the_whole_pod(pod: Pod) -> None:
    config = PodSandboxConfig()
    config.linux.cgroup_parent = GROUP
    pid = await pod.run(config)
    own = Cgroup.for_path(f"{GROUP}/{pod.id}")
    assert own.pids() == [pid]
    request = api.SandboxMetricsRequest(sandbox_id=pod.id)
    found = (await pod.call("SandboxMetrics", request, api.SandboxMetricsResponse)).metrics
    assert found.id == pod.id
    assert found.timestamp.seconds > 1_700_000_000
    kind = MetricsV2 if own.unified else MetricsV1
    assert found.data.type_url == kind.DESCRIPTOR.full_name
    container = await pod.container("one", pid, "/idle.wasm", cgroupsPath=f"{GROUP}/one")
    found = (await pod.call("SandboxMetrics", request, api.SandboxMetricsResponse)).metrics
    if not own.unified:
        memory = MetricsV1.FromString(found.data.value).memory.usage.usage
    else:
        memory = MetricsV2.FromString(found.data.value).memory.usage
    assert memory > 100_000  # the container's: the sandbox alone has a few pages
    await pod.stop()
    await container.ended()
    await pod.shut_down()
    assert not own.exists()
    remove_group()


async def test_a_pod_without_a_cgroup(pod: Pod) -> None:
    await pod.run()
    request = api.SandboxMetricsRequest(sandbox_id=pod.id)
    code, message = await pod.refused("SandboxMetrics", request)
    assert code == Code.FAILED_PRECONDITION
    assert "no cgroup" in message


# ---- what goes wrong

CALLS: list[tuple[str, type[Message]]] = [
    ("StartSandbox", api.StartSandboxRequest),
    ("Platform", api.PlatformRequest),
    ("StopSandbox", api.StopSandboxRequest),
    ("WaitSandbox", api.WaitSandboxRequest),
    ("SandboxStatus", api.SandboxStatusRequest),
    ("PingSandbox", api.PingRequest),
    ("SandboxMetrics", api.SandboxMetricsRequest),
]


async def test_before_create_and_of_another(pod: Pod) -> None:
    await pod.launch()
    for method, request in CALLS:
        code, message = await pod.refused(method, request(sandbox_id=pod.id))
        assert (code, message) == (Code.NOT_FOUND, f"sandbox {pod.id}: not found"), method
    await pod.create()
    shutdown: tuple[str, type[Message]] = ("ShutdownSandbox", api.ShutdownSandboxRequest)
    for method, request in [*CALLS, shutdown]:
        code, message = await pod.refused(method, request(sandbox_id="other"))
        assert (code, message) == (Code.NOT_FOUND, "sandbox other: not found"), method


async def test_twice(pod: Pod) -> None:
    await pod.launch()
    both = await asyncio.gather(pod.create(), pod.create(), return_exceptions=True)
    (error,) = [e for e in both if e is not None]
    assert isinstance(error, RpcError)
    assert error.code == Code.ALREADY_EXISTS
    pid = await pod.start()
    code, _ = await pod.refused("StartSandbox", api.StartSandboxRequest(sandbox_id=pod.id))
    assert code == Code.FAILED_PRECONDITION
    request = pod.request()
    request.sandbox_id = "other"
    assert (await pod.refused("CreateSandbox", request))[0] == Code.ALREADY_EXISTS
    await pod.stop()
    code, _ = await pod.refused("StartSandbox", api.StartSandboxRequest(sandbox_id=pod.id))
    assert code == Code.FAILED_PRECONDITION
    assert dead(pid)


async def test_stopped_before_it_was_started(pod: Pod) -> None:
    await pod.launch()
    await pod.create()
    pid = (await pod.status()).pid
    await pod.stop()
    assert (await pod.wait()).exit_status == 128 + signal.SIGKILL
    assert dead(pid)
    assert (await pod.refused("StartSandbox", api.StartSandboxRequest(sandbox_id=pod.id)))[0] == (
        Code.FAILED_PRECONDITION
    )


def with_(**change: Any) -> dict[str, Any]:
    return change


SYSCTL = PodSandboxConfig()
SYSCTL.linux.sysctls["vm.swappiness"] = "1"
USERS = PodSandboxConfig()
USERS.linux.security_context.namespace_options.userns_options.mode = NamespaceMode.TARGET
CRI = "runtime.v1.PodSandboxConfig"


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (with_(sandbox_id=""), "invalid sandbox id ''"),
        (with_(sandbox_id="../x"), "invalid sandbox id '../x'"),
        (with_(options=any_pb2.Any()), "config.json: No such file"),
        (with_(options=any_pb2.Any(type_url="a/b.C")), "unknown type 'b.C'"),
        (with_(options=any_pb2.Any(type_url=CRI, value=b"\xff")), f"not an encoded {CRI}"),
        (
            with_(options=any_pb2.Any(type_url=CRI, value=SYSCTL.SerializeToString())),
            "linux.sysctl['vm.swappiness']",
        ),
        (
            with_(options=any_pb2.Any(type_url=CRI, value=USERS.SerializeToString())),
            "userns_options.mode: expected POD or NODE, got TARGET",
        ),
        (with_(netns_path="/nonexistent"), "/nonexistent"),
        (with_(bundle_path="/nonexistent"), "/nonexistent"),
    ],
)
async def test_a_create_that_fails(pod: Pod, change: dict[str, Any], culprit: str) -> None:
    await pod.launch()
    request = pod.request()
    for name, value in change.items():
        if isinstance(value, Message):
            getattr(request, name).CopyFrom(value)
        else:
            setattr(request, name, value)
    _, message = await pod.refused("CreateSandbox", request)
    assert culprit in message
    assert not pod.files.exists()
    assert not pod.shm.exists()
    # containerd asks for the shim's end then.
    await pod.shut_down()
    await pod.ended()


async def test_the_cgroup_driver_of_the_options(pod: Pod) -> None:
    options = any_pb2.Any(type_url="containerd.runc.v1.Options", value=b"\x48\x01")
    await pod.launch(options.SerializeToString())
    config = PodSandboxConfig()
    config.linux.cgroup_parent = GROUP
    code, message = await pod.refused("CreateSandbox", pod.request(config))
    assert code == Code.INVALID_ARGUMENT
    assert "SystemdCgroup" in message


async def test_the_sandbox_is_killed(pod: Pod) -> None:
    pid = await pod.run()
    waiting = asyncio.create_task(pod.wait())
    os.kill(pid, signal.SIGTERM)
    assert (await waiting).exit_status == 0
    assert (await pod.status()).state == "SANDBOX_NOTREADY"


async def test_the_shim_is_killed(pod: Pod) -> None:
    config = PodSandboxConfig()
    config.linux.cgroup_parent = GROUP
    pid = await pod.run(config)
    os.kill(await pod.shim_pid(), signal.SIGKILL)
    await pod.ended()
    done = pod.shim.launch(pod.id, "delete")
    assert DeleteResponse.FromString(done.stdout).pid == pid
    assert dead(pid)
    assert not Cgroup.for_path(f"{GROUP}/{pod.id}").exists()
    assert not pod.files.exists()
    assert not pod.shm.exists()
    remove_group()


# ---- other clients than CRI


async def test_a_spec_of_the_clients_own(pod: Pod) -> None:
    """As `ctr sandboxes run` does it: a spec in the bundle, and no options."""
    spec = {
        "ociVersion": "1.1.0",
        "hostname": "theirs",
        "root": {"path": "rootfs"},
        "process": {"cwd": "/"},
        "linux": {"namespaces": [{"type": "uts"}, {"type": "mount"}]},
    }
    (pod.bundle / "config.json").write_text(json.dumps(spec))
    empty = any_pb2.Any(type_url="google.protobuf.Empty")
    await pod.launch(empty.SerializeToString())
    request = api.CreateSandboxRequest(sandbox_id=pod.id, bundle_path=str(pod.bundle))
    await pod.call("CreateSandbox", request, api.CreateSandboxResponse)
    pid = await pod.start()
    assert inside(pid, "hostname") == "theirs\n"
    assert namespace(pid, "ipc") == namespace(os.getpid(), "ipc")
    assert not pod.files.exists()
