"""`scripts/bench lives`: lives of containers by the shims' protocol alone, without containerd.

Each is what containerd does for one: `start`, Create, Start, Wait, Delete, Shutdown, `delete`. So
nothing is in the time but the shim, and any other shim can be measured beside ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from bench.lab import NATIVE, WASM, Kind
from bench.spread import compare, show
from proto import task_v2_pb2 as api
from proto.events_service_pb2 import ForwardRequest
from proto.mount_pb2 import Mount
from shim.linux.cgroups import hierarchies
from shim.ttrpc import Client, Context, Method, RpcError, Server
from tests.guests.build import build
from tests.shim.launching import zygotes

M = TypeVar("M", bound=Message)

_MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
]
_WARM = 4
_ROUNDS = 10
_SECONDS = 60.0


def measure(number: int, at_once: int, others: Sequence[tuple[str, Kind]]) -> dict[str, Any]:
    """Live `number` lives under ours, runc's and each of the `others`, paths of wasm shims."""
    shims = [(f"{sys.prefix}/bin/containerd-shim-pywasm-v1", WASM), *others]
    if runc := shutil.which("containerd-shim-runc-v2"):
        shims.append((runc, NATIVE))
    with contextlib.ExitStack() as stack:
        lives = {kind.title: stack.enter_context(_lives(binary, kind)) for binary, kind in shims}
        return {"lives": asyncio.run(_in_turns(lives, number, at_once))}


async def _in_turns(lives: dict[str, Lives], number: int, at_once: int) -> dict[str, Any]:
    """Live in rounds, so that whatever the machine does meets all alike."""
    rounds = min(_ROUNDS, number)
    rates: dict[str, list[float]] = {title: [] for title in lives}
    ms: dict[str, list[float]] = {title: [] for title in lives}
    async with contextlib.AsyncExitStack() as stack:
        for some in lives.values():
            await stack.enter_async_context(_events_taken(some.directory / "events"))
            for warm in range(_WARM):  # zygote, artifact, page cache
                await some.life(f"warm{warm}")
        for turn in range(rounds):
            for title in lives if turn % 2 else reversed(lives):
                ids = [f"life{life}" for life in range(turn, number, rounds)]
                begin = time.perf_counter()
                ms[title] += await lives[title].all(ids, at_once)
                rates[title].append(len(ids) / (time.perf_counter() - begin))
    return {
        "lives": number,
        "at_once": at_once,
        "rounds": rounds,
        "rate": compare(rates, "/s", NATIVE.title),
        "seconds": compare(ms, "ms", NATIVE.title),
    }


def print_found(result: Mapping[str, Any]) -> None:
    """Print what `measure` found."""
    lives = result["lives"]
    print(
        f"{lives['lives']} lives of each by ttrpc alone, {lives['at_once']} at a time, "
        f"in {lives['rounds']} turns"
    )
    show(lives["rate"])
    print("\none life")
    show(lives["seconds"])


@contextlib.contextmanager
def _lives(binary: str, kind: Kind) -> Iterator[Lives]:
    """Make what lives need in a directory of their own, and remove what they leave."""
    with tempfile.TemporaryDirectory(prefix="pywasm-lives-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for mount in _MOUNTS:
            (directory / f"rootfs{mount['destination']}").mkdir(parents=True)
        program = build("hello", native=kind is NATIVE)
        shutil.copy2(program, directory / "rootfs" / kind.program("hello")[1:])
        try:
            yield Lives(directory, binary, kind.program("hello"))
        finally:
            for pid in zygotes(directory / "run"):
                os.kill(pid, signal.SIGKILL)
            for tree in hierarchies():
                with contextlib.suppress(OSError):
                    os.rmdir(f"{tree.mount}/{directory.name}")


class Lives(NamedTuple):
    """What lives in a directory of its own, under one shim."""

    directory: Path
    binary: str
    program: str

    async def all(self, ids: Sequence[str], at_once: int) -> list[float]:
        """Live all of these, and return how many milliseconds each took."""
        spent: list[float] = []
        waiting = iter(ids)

        async def some() -> None:
            for id in waiting:
                begin = time.perf_counter()
                await self.life(id)
                spent.append(1000 * (time.perf_counter() - begin))

        await asyncio.gather(*(some() for _ in range(at_once)))
        return spent

    async def life(self, id: str) -> None:
        """Do what containerd does for one container."""
        bundle = self.directory / id
        (bundle / "rootfs").mkdir(parents=True)
        namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]
        document = {
            "ociVersion": "1.1.0",
            "process": {"args": [self.program], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "mounts": _MOUNTS,
            "linux": {"namespaces": namespaces, "cgroupsPath": f"/{self.directory.name}/{id}"},
        }
        (bundle / "config.json").write_text(json.dumps(document))
        os.mkfifo(bundle / "log")
        # runc's shim ends without a reader.
        log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
        mount = Mount(type="bind", source=str(self.directory / "rootfs"), options=["rbind", "ro"])
        address = await self._execute(bundle, "start")
        if address.startswith("{"):
            address = json.loads(address)["address"]
        client = await Client.connect(address.removeprefix("unix://"))
        request = api.CreateTaskRequest(id=id, bundle=str(bundle), rootfs=[mount])
        await _call(client, "Create", request, api.CreateTaskResponse)
        await _call(client, "Start", api.StartRequest(id=id), api.StartResponse)
        ended = await _call(client, "Wait", api.WaitRequest(id=id), api.WaitResponse)
        if ended.exit_status:
            raise RuntimeError(f"{self.binary}: {id}: exit status {ended.exit_status}")
        await _call(client, "Delete", api.DeleteRequest(id=id), api.DeleteResponse)
        with contextlib.suppress(RpcError):  # it may end before it has answered
            await _call(client, "Shutdown", api.ShutdownRequest(id=id), Empty)
        await client.close()
        await self._execute(bundle, "delete")
        os.close(log)
        shutil.rmtree(bundle)

    async def _execute(self, bundle: Path, action: str) -> str:
        events = str(self.directory / "events")
        process = await asyncio.create_subprocess_exec(
            self.binary,
            *("-namespace", "bench", "-id", bundle.name, "-address", events),
            *(["-bundle", str(bundle)] if action == "delete" else []),
            action,
            cwd=bundle,
            env={
                **os.environ,
                "TTRPC_ADDRESS": events,
                "MAX_SHIM_VERSION": "2",
                "PYWASM_RUN": str(self.directory / "run"),
                "PYWASM_STATE": str(self.directory / "state"),
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, error = await asyncio.wait_for(process.communicate(), _SECONDS)
        if process.returncode:
            raise RuntimeError(f"{self.binary} {action}: {error.decode(errors='replace').strip()}")
        return out.decode(errors="replace").strip()


async def _call(client: Client, method: str, request: Message, response: type[M]) -> M:
    service = "containerd.task.v2.Task"
    return await client.call(service, method, request, response, timeout=_SECONDS)


@contextlib.asynccontextmanager
async def _events_taken(path: Path) -> AsyncIterator[None]:
    """Be the containerd that takes the events."""

    async def forward(_request: ForwardRequest, _: Context) -> Empty:
        return Empty()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1024)
        methods = {"Forward": Method(ForwardRequest, forward)}
        server = Server({"containerd.services.events.ttrpc.v1.Events": methods})
        serving = asyncio.create_task(server.serve(listener))
        yield
        server.close()
        await server.wait_closed(1)
        await serving
