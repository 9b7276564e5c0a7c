"""The Sandbox API: a pod held by its shim, with no container of its own for that. Runs in: shim.

containerd calls it where a runtime has `sandboxer = "shim"`. The pod's containers join the
namespaces of a process whose pid StartSandbox tells; that is the same guest of a few pages that a
sandbox container of the Task API becomes, but no image, snapshot or task is made for it.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from oci.bundle import CONFIG, read_outline
from oci.runtime import SpecError
from proto import sandbox_pb2 as api
from proto.pod_pb2 import PodSandboxConfig
from proto.task_v2_pb2 import DeleteResponse
from shim.daemon import options
from shim.daemon.api.events import timestamp
from shim.daemon.api.service import TaskService
from shim.daemon.containers.artifacts import Artifacts
from shim.daemon.containers.child import GuestError
from shim.daemon.containers.container import PID_FILE
from shim.daemon.containers.guest import Guest
from shim.daemon.log import Logger
from shim.daemon.pods import files as pod_files
from shim.daemon.pods.spec import has_own_users, pod_spec, sandbox_annotations
from shim.guest import control
from shim.launcher.main import FAREWELL
from shim.linux import user_namespace
from shim.linux.cgroups import Cgroup
from shim.linux.cgroups.metrics import metrics
from shim.linux.files import write_small
from shim.ttrpc import Code, Context, Method, RpcError

_CRI_CONFIG: Final = "runtime.v1.PodSandboxConfig"
_SPEC: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
_LINGER: Final = 0.05  # seconds
_READY, _NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"

# Go's names, as in an image index, for what uname(2) says.
_ARCHITECTURES: Final[Mapping[str, tuple[str, str]]] = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
}


class SandboxService:
    """The one sandbox of a shim, if containerd makes one."""

    def __init__(
        self, tasks: TaskService, artifacts: Artifacts, runtime: options.Options, log: Logger
    ) -> None:
        self._tasks = tasks
        self._artifacts = artifacts
        self._runtime = runtime
        self._log = log
        self._sandbox: _Sandbox | None = None
        self._creating = False

    def services(self) -> Mapping[str, Mapping[str, Method]]:
        """What the ttrpc server offers."""
        methods = {
            "CreateSandbox": Method(api.CreateSandboxRequest, self.create),
            "StartSandbox": Method(api.StartSandboxRequest, self.start),
            "Platform": Method(api.PlatformRequest, self.platform),
            "StopSandbox": Method(api.StopSandboxRequest, self.stop),
            "WaitSandbox": Method(api.WaitSandboxRequest, self.wait, cancel_on_disconnect=True),
            "SandboxStatus": Method(api.SandboxStatusRequest, self.status),
            "PingSandbox": Method(api.PingRequest, self.ping),
            "ShutdownSandbox": Method(api.ShutdownSandboxRequest, self.shut_down),
            "SandboxMetrics": Method(api.SandboxMetricsRequest, self.metrics),
        }
        return {"containerd.runtime.sandbox.v1.Sandbox": methods}

    async def create(
        self, request: api.CreateSandboxRequest, _: Context
    ) -> api.CreateSandboxResponse:
        """Make the namespaces and the files of a pod."""
        id = request.sandbox_id
        if not id or "/" in id or id in (".", ".."):
            raise RpcError(Code.INVALID_ARGUMENT, f"invalid sandbox id {id!r}")
        if self._sandbox is not None or self._creating:
            raise RpcError(Code.ALREADY_EXISTS, f"sandbox {id}: this shim has one already")
        self._creating = True
        try:
            await self._tasks.discard_early()  # it took the sandbox for a container
            self._sandbox = await _Sandbox.create(
                request, self._runtime, self._artifacts, self._log
            )
        except (GuestError, SpecError) as error:
            code = error.code if isinstance(error, GuestError) else Code.INVALID_ARGUMENT
            raise RpcError(code, f"sandbox {id}: {error}") from error
        except OSError as error:
            raise RpcError(Code.UNKNOWN, f"sandbox {id}: {control.reason(error)}") from error
        finally:
            self._creating = False
        self._tasks.sandbox = request.bundle_path
        self._tasks.joining.arrived(id)
        self._log.info("sandbox created", sandbox=id, pid=self._sandbox.guest.pid)
        return api.CreateSandboxResponse()

    async def start(self, request: api.StartSandboxRequest, _: Context) -> api.StartSandboxResponse:
        """Let containers join."""
        sandbox = self._get(request.sandbox_id)
        if sandbox.started or sandbox.stopped:
            what = "has stopped" if sandbox.stopped else "runs already"
            raise RpcError(Code.FAILED_PRECONDITION, f"sandbox {sandbox.id}: {what}")
        sandbox.started = True
        try:
            await sandbox.guest.start(hooked=sandbox.hooked)
        except GuestError as error:
            raise RpcError(Code.UNKNOWN, f"sandbox {sandbox.id}: {error}") from error
        return api.StartSandboxResponse(
            pid=sandbox.guest.pid,
            created_at=timestamp(sandbox.created_at),
            spec=any_pb2.Any(type_url=_SPEC, value=sandbox.spec()),
        )

    async def platform(self, request: api.PlatformRequest, _: Context) -> api.PlatformResponse:
        """Tell for what the specs of the pod's containers are to be made."""
        self._get(request.sandbox_id)
        machine = os.uname().machine
        architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
        platform = api.Platform(os="linux", architecture=architecture, variant=variant)
        return api.PlatformResponse(platform=platform)

    async def stop(self, request: api.StopSandboxRequest, _: Context) -> api.StopSandboxResponse:
        """End every process of the pod."""
        sandbox = self._get(request.sandbox_id)
        self._tasks.kill_all()
        await sandbox.stop()
        return api.StopSandboxResponse()

    async def wait(self, request: api.WaitSandboxRequest, _: Context) -> api.WaitSandboxResponse:
        """Answer when the sandbox has stopped."""
        sandbox = self._get(request.sandbox_id)
        status = await asyncio.shield(sandbox.guest.exited)
        return api.WaitSandboxResponse(
            exit_status=status, exited_at=timestamp(sandbox.guest.exited_at)
        )

    async def status(
        self, request: api.SandboxStatusRequest, _: Context
    ) -> api.SandboxStatusResponse:
        """Tell how far the sandbox is."""
        sandbox = self._get(request.sandbox_id)
        response = api.SandboxStatusResponse(
            sandbox_id=sandbox.id,
            # Not of one that has stopped: another process may have that pid by now.
            pid=0 if sandbox.stopped else sandbox.guest.pid,
            state=_READY if sandbox.started and not sandbox.stopped else _NOT_READY,
            created_at=timestamp(sandbox.created_at),
        )
        if sandbox.stopped:
            response.exited_at.CopyFrom(timestamp(sandbox.guest.exited_at))
        if request.verbose:
            # One entry of this name, with JSON in it, is what CRI's clients show.
            response.info["info"] = json.dumps(sandbox.info())
        return response

    async def ping(self, request: api.PingRequest, _: Context) -> api.PingResponse:
        """Answer if the sandbox lives."""
        sandbox = self._get(request.sandbox_id)
        if sandbox.stopped:
            raise RpcError(Code.FAILED_PRECONDITION, f"sandbox {sandbox.id}: has stopped")
        return api.PingResponse()

    async def shut_down(
        self, request: api.ShutdownSandboxRequest, _: Context
    ) -> api.ShutdownSandboxResponse:
        """End this shim, with all that is in it.

        Also one whose sandbox could not be created: containerd asks for that, too.
        """
        sandbox = self._sandbox
        if sandbox is not None:
            self._get(request.sandbox_id)
            await self._tasks.delete_all()
            await sandbox.delete()
            self._sandbox = None
        self._tasks.sandbox = ""
        # Not at once: where the end of the connection follows the answer too soon, containerd's
        # client may see the end alone, and fails the pod's removal.
        loop = asyncio.get_running_loop()
        loop.call_later(_LINGER, self._tasks.dismiss, request.sandbox_id)
        return api.ShutdownSandboxResponse()

    async def metrics(
        self, request: api.SandboxMetricsRequest, _: Context
    ) -> api.SandboxMetricsResponse:
        """Tell what the pod uses, all its containers together."""
        sandbox = self._get(request.sandbox_id)
        if (cgroup := sandbox.pod_cgroup()) is None:
            raise RpcError(Code.FAILED_PRECONDITION, f"sandbox {sandbox.id}: it has no cgroup")
        try:
            found = metrics(cgroup)
        except OSError as error:
            raise RpcError(Code.UNKNOWN, control.reason(error)) from error
        data = any_pb2.Any(type_url=found.DESCRIPTOR.full_name, value=found.SerializeToString())
        now = timestamp(time.time_ns())
        return api.SandboxMetricsResponse(
            metrics=api.Metric(timestamp=now, id=sandbox.id, data=data)
        )

    def _get(self, id: str) -> "_Sandbox":
        if self._sandbox is None or self._sandbox.id != id:
            raise RpcError(Code.NOT_FOUND, f"sandbox {id}: not found")
        return self._sandbox


class _Sandbox:
    """What holds a pod: a guest with its namespaces, and its files."""

    def __init__(self, id: str, guest: Guest, *, hooked: bool) -> None:
        self.id = id
        self.guest = guest
        self.hooked = hooked
        self.started = False
        self.created_at = time.time_ns()

    @classmethod
    async def create(
        cls,
        request: api.CreateSandboxRequest,
        runtime: options.Options,
        artifacts: Artifacts,
        log: Logger,
    ) -> "_Sandbox":
        """Make it. Raises SpecError, GuestError or OSError, and then nothing of it is left."""
        id, bundle = request.sandbox_id, request.bundle_path
        config = _pod_config(request.options)
        with _users(request, config) as users:
            _write_spec(request, config, users)
            outline = read_outline(bundle)
            options.check_cgroups_path(runtime, outline.cgroups_path)
            guest = Guest(id, bundle, outline, artifacts, log)
            guest.watch()
            try:
                if config is not None:
                    pod_files.write(id, bundle, config)
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                try:
                    ready = await guest.prepare([], [null] * 3)
                finally:
                    os.close(null)
                write_small(os.path.join(bundle, PID_FILE), b"%d" % guest.pid)
            except BaseException:
                await guest.discard()
                pod_files.remove(bundle)
                raise
        return cls(id, guest, hooked=ready.hooked)

    @property
    def stopped(self) -> bool:
        """Whether there is nothing to join any more."""
        return self.guest.exited.done()

    async def stop(self) -> None:
        """End the guest."""
        if not self.stopped:
            self.guest.kill(signal.SIGKILL)
            await asyncio.shield(self.guest.exited)

    async def delete(self) -> None:
        """End the guest and free what it held. Raises OSError."""
        await self.guest.discard()
        pod_files.remove(self.guest.bundle)
        farewell = DeleteResponse(
            pid=self.guest.pid,
            exit_status=self.guest.exited.result(),
            exited_at=timestamp(self.guest.exited_at),
        )
        # For the `delete` that containerd executes next.
        write_small(os.path.join(self.guest.bundle, FAREWELL), farewell.SerializeToString())

    def spec(self) -> bytes:
        """Return the spec of the guest, in JSON."""
        with open(os.path.join(self.guest.bundle, CONFIG), "rb") as file:
            return file.read()

    def info(self) -> dict[str, Any]:
        """Return what is of interest to people."""
        return {
            "pid": self.guest.pid,
            "processStatus": "stopped" if self.stopped else "running",
            "runtimeType": "io.containerd.pywasm.v1",
            "runtimeSpec": json.loads(self.spec()),
        }

    def pod_cgroup(self) -> Cgroup | None:
        """Return the cgroup of all the pod: the one that the guest's own is in."""
        placement = self.guest.placement
        if placement is None:
            return None
        scope = placement.scope
        own = "/" + scope.path.lstrip("/") if scope else self.guest.outline.cgroups_path
        parent = os.path.dirname(own.rstrip("/"))
        return Cgroup.for_path(parent) if parent.strip("/") else None


def _pod_config(message: any_pb2.Any) -> PodSandboxConfig | None:
    """Return what CRI says of the pod, None if it was not CRI that asked. Raises SpecError."""
    name = message.type_url.rpartition("/")[2]
    if not name:
        return None
    if name != _CRI_CONFIG:
        raise SpecError(f"options: unknown type {name!r}; expected {_CRI_CONFIG}")
    try:
        return PodSandboxConfig.FromString(message.value)
    except DecodeError as error:
        raise SpecError(f"options: not an encoded {name}: {error}") from None


@contextlib.contextmanager
def _users(request: api.CreateSandboxRequest, config: PodSandboxConfig | None) -> Iterator[str]:
    """Open the pod's user namespace, if CRI has made one, and yield its path or "".

    Raises OSError, SpecError.
    """
    if config is None or not has_own_users(config) or not request.netns_path:
        yield ""
        return
    # CRI names the network alone, which it has made in there.
    fd = user_namespace.of_namespace(request.netns_path)
    try:
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


def _write_spec(
    request: api.CreateSandboxRequest, config: PodSandboxConfig | None, users: str
) -> None:
    """Have a spec for the guest in the bundle: of CRI's making, or a client's. Raises SpecError."""
    path = os.path.join(request.bundle_path, CONFIG)
    id = request.sandbox_id
    if config is not None:
        document = pod_spec(id, config, request.netns_path, users)
    else:
        read_outline(request.bundle_path)  # names what is wrong with it
        with open(path, "rb") as file:
            document = json.load(file)
        document["annotations"] = {**(document.get("annotations") or {}), **sandbox_annotations(id)}
    write_small(path, json.dumps(document).encode())
