"""A real shim, started by the launcher and spoken to over ttrpc; no containerd is involved.

For tests, and for scripts/wasi-testsuite.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from proto import task_v2_pb2 as api
from proto.envelope_pb2 import Envelope
from proto.events_service_pb2 import ForwardRequest
from proto.mount_pb2 import Mount
from proto.task_pb2 import Status
from shim.ttrpc import Client, Code, Context, Method, RpcError, Server
from tests.guests.build import build
from tests.shim.blocking import interpreter
from tests.shim.launching import launch

M = TypeVar("M", bound=Message)

POD = {"io.kubernetes.cri.sandbox-id": "pod"}
"""Annotations of containers that are to share a shim."""

_PATIENCE = 20.0


class LaunchError(Exception):
    """The launcher failed; what it said."""


class Ended(NamedTuple):
    """How a container's program ended, and all it wrote."""

    status: int
    stdout: str
    stderr: str


class Shim:
    """The shims of one directory, which also holds their bundles, and calls to them.

    Its own PYWASM_RUN and PYWASM_STATE make it independent of every other shim of the machine.
    """

    def __init__(self, directory: Path, guests: Iterable[str] = ()) -> None:
        self.directory = directory
        self.env = {
            "PYWASM_RUN": str(directory / "run"),
            "PYWASM_STATE": str(directory / "state"),
            "TTRPC_ADDRESS": str(directory / "nobody"),
        }
        self.rootfs = directory / "rootfs"
        self.rootfs.mkdir(mode=0o755)
        for name in guests:
            shutil.copy(build(name), self.rootfs / f"{name}.wasm")
        self.clients: list[tuple[str, Client]] = []
        self.wrapper: list[str] = []
        self.python, self._blocking = interpreter(directory)

    def bundle(self, id: str, *args: str, **spec: Any) -> Path:
        """Write a bundle; `spec` replaces what is at the top of the default one."""
        bundle = self.directory / id
        (bundle / "rootfs").mkdir(parents=True)
        document = {
            "ociVersion": "1.1.0",
            "process": {"args": list(args), "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}]},
        }
        (bundle / "config.json").write_text(json.dumps(document | spec))
        return bundle

    def launch(
        self, id: str, action: str, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Execute the launcher as containerd does."""
        return launch(
            ["-namespace", "n", "-id", id, action],
            self.env,
            cwd=self.directory / id,
            stdin=stdin,
            python=self.python,
            wrapper=self.wrapper,
        )

    async def start(self, id: str) -> Client:
        """Start the shim of a bundle, or find the one of its pod. Raises LaunchError."""
        done = self.launch(id, "start")
        if done.returncode != 0:
            raise LaunchError(done.stderr.decode(errors="replace").strip())
        return await self.connect(id, done.stdout.decode())

    async def connect(self, id: str, address: str) -> Client:
        """Connect to a shim that was started otherwise."""
        client = await Client.connect(address.removeprefix("unix://"))
        self.clients.append((id, client))
        return client

    def create_request(self, id: str, **more: Any) -> api.CreateTaskRequest:
        """Return a request for a container on the shared rootfs."""
        rootfs = [Mount(type="bind", source=str(self.rootfs), options=["rbind", "rw"])]
        return api.CreateTaskRequest(
            **{"id": id, "bundle": str(self.directory / id), "rootfs": rootfs} | more
        )

    async def create(self, id: str, *args: str, **spec: Any) -> Client:
        """Create a container without streams, in a new bundle on the shared rootfs."""
        self.bundle(id, *args, **spec)
        client = await self.start(id)
        await call(client, "Create", self.create_request(id), api.CreateTaskResponse)
        return client

    async def close(self) -> None:
        """End everything that was started here: in order if that works, by force if not."""
        for id, client in self.clients:
            for method, request in (
                ("Kill", api.KillRequest(id=id, signal=signal.SIGKILL)),
                ("Wait", api.WaitRequest(id=id)),
                ("Delete", api.DeleteRequest(id=id)),
                ("Shutdown", api.ShutdownRequest(id=id)),
            ):
                try:
                    await call(client, method, request, Empty)
                except RpcError:
                    pass  # it is as far as that already
            await client.close()
        while pids := processes(self.env):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            await asyncio.sleep(0.01)
        assert not self._blocking.exists(), self._blocking.read_text()


@contextlib.asynccontextmanager
async def events_taken(shim: Shim) -> AsyncIterator[list[Envelope]]:
    """Be the containerd that takes the events; a shim that ends waits for one, a while."""
    seen: list[Envelope] = []

    async def forward(request: ForwardRequest, _: Context) -> Empty:
        seen.append(request.envelope)
        return Empty()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(shim.env["TTRPC_ADDRESS"])
        listener.listen(64)
        methods = {"Forward": Method(ForwardRequest, forward)}
        server = Server({"containerd.services.events.ttrpc.v1.Events": methods})
        serving = asyncio.create_task(server.serve(listener))
        yield seen
        os.unlink(shim.env["TTRPC_ADDRESS"])
        server.close()
        await server.wait_closed(1)
        await serving


class Container:
    """A container with its standard output and error; stdin is /dev/null."""

    def __init__(self, shim: Shim, id: str, client: Client, stdout: Output, stderr: Output) -> None:
        self.shim, self.id, self.client = shim, id, client
        self.stdout, self.stderr = stdout, stderr

    @classmethod
    async def create(
        cls, shim: Shim, id: str, client: Client | None = None, **request: Any
    ) -> Container:
        """Create the container of a bundle that is there; `request` replaces fields of Create.

        With a `client`, of the shim that runs the pod, no launcher is executed.
        """
        bundle = shim.directory / id
        stdout, stderr = Output(bundle / "stdout"), Output(bundle / "stderr")
        client = client or await shim.start(id)
        made = cls(shim, id, client, stdout, stderr)
        streams = {"stdout": str(stdout.path), "stderr": str(stderr.path)}
        try:
            await call(
                client,
                "Create",
                shim.create_request(id, **streams | request),
                api.CreateTaskResponse,
            )
        except RpcError:
            stdout.close()
            stderr.close()
            raise
        return made

    async def start(self) -> None:
        """Let the program run."""
        await call(self.client, "Start", api.StartRequest(id=self.id), Empty)

    async def status(self) -> Status:
        """Ask how far it is."""
        return await status(self.client, self.id)

    async def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal."""
        await call(self.client, "Kill", api.KillRequest(id=self.id, signal=signum), Empty)

    async def ended(self, timeout: float = _PATIENCE) -> Ended:
        """Wait for the end, and delete the container."""
        request = api.WaitRequest(id=self.id)
        answer = await call(self.client, "Wait", request, api.WaitResponse, timeout=timeout)
        stdout, stderr = await self.stdout.read(), await self.stderr.read()
        await call(self.client, "Delete", api.DeleteRequest(id=self.id), Empty)
        return Ended(answer.exit_status, stdout, stderr)

    async def run(self, timeout: float = _PATIENCE) -> Ended:
        """Start it and wait for its end."""
        await self.start()
        return await self.ended(timeout)


class Output:
    """The reading end of a FIFO, made for one of a container's output streams."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._data = bytearray()
        self._end = asyncio.Event()
        # Without a writer yet there is nothing to be woken for, and no end either.
        asyncio.get_running_loop().add_reader(self._fd, self._more)

    async def read(self) -> str:
        """Return everything, as soon as the last writer is gone."""
        await asyncio.wait_for(self._end.wait(), _PATIENCE)
        return self._data.decode(errors="replace")

    @property
    def is_open(self) -> bool:
        """Whether more may come."""
        return not self._end.is_set()

    async def line(self) -> str:
        """Return the first line as soon as it is there."""
        while b"\n" not in self._data:
            assert not self._end.is_set(), self._data
            await asyncio.sleep(0.005)
        return self._data.decode().partition("\n")[0]

    async def beginning(self, length: int) -> bytes:
        """Return so much of it, as soon as it is there."""
        while len(self._data) < length:
            assert not self._end.is_set(), self._data
            await asyncio.sleep(0.005)
        return bytes(self._data[:length])

    def close(self) -> None:
        """Stop reading."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._end.set()

    def _more(self) -> None:
        data = os.read(self._fd, 1 << 16)
        self._data += data
        if not data:
            self.close()


async def call(
    client: Client,
    method: str,
    request: Message,
    response: type[M],
    version: int = 2,
    timeout: float = _PATIENCE,
) -> M:
    """Call a method of the Task service. Raises RpcError."""
    service = f"containerd.task.v{version}.Task"
    return await client.call(service, method, request, response, timeout=timeout)


async def refused(client: Client, method: str, request: Message) -> tuple[Code, str]:
    """Return the error that a call ends with, and it must."""
    try:
        await call(client, method, request, Empty)
    except RpcError as error:
        return error.code, error.message
    raise AssertionError(f"{method} was not refused")


async def status(client: Client, id: str) -> Status:
    """Ask how far a task is."""
    return (await call(client, "State", api.StateRequest(id=id), api.StateResponse)).status


async def end(client: Client, id: str) -> None:
    """Tell the shim that this task is done with."""
    await call(client, "Shutdown", api.ShutdownRequest(id=id), Empty)


def processes(env: Mapping[str, str]) -> list[int]:
    """Find the zygotes, shims, guests and compilers that were started with this PYWASM_RUN."""
    wanted = f"PYWASM_RUN={env['PYWASM_RUN']}".encode()
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(int(pid))
        except OSError:
            continue  # it has ended meanwhile
    return found
