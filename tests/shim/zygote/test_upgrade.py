"""The installation is replaced, in place, while containers run."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from proto import task_v2_pb2 as api
from shim.linux.cgroups import hierarchies
from shim.ttrpc import Client
from tests.shim.daemon.patience import patiently
from tests.shim.launching import ROOT
from tests.shim.task_api import POD, Shim, call, end, events_taken, processes

PACKAGES = ("shim", "oci", "proto")


class Installation(Shim):
    """A copy of the sources with a launcher of their own, as scripts/setup makes it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, ("exit3", "idle"))
        self.root = directory / "root"
        self.venv = directory / "venv"
        (self.venv / "bin").mkdir(parents=True)
        (self.venv / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
        (self.venv / "lib").symlink_to(f"{sys.prefix}/lib")
        shutil.copy(f"{sys.prefix}/pyvenv.cfg", self.venv)

    def install(self, build: str) -> None:
        """Install a build that can be told by the name of its shims' processes."""
        for package in PACKAGES:
            shutil.rmtree(self.root / package, ignore_errors=True)
            caches = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(ROOT) / package, self.root / package, ignore=caches)
        for name, old, new in (
            ("shim/daemon/main.py", '"pywasm-shim"', f'"pywasm-shim-{build}"'),
            ("shim/zygote/main.py", "IDLE = 600.0", "IDLE = 0.2"),
        ):
            source = (self.root / name).read_text()
            assert old in source
            (self.root / name).write_text(source.replace(old, new))
        python = os.path.realpath(sys.executable)
        script = f"{ROOT}/scripts/install-launcher"
        arguments = [str(self.root), str(self.venv), build]
        subprocess.run([python, "-ISE", script, *arguments], check=True)

    def spoil(self) -> None:
        """Let everything fail that still imports: nothing is of the build that began."""
        for package in PACKAGES:
            for file in (self.root / package).rglob("*.py"):
                file.write_text("raise SystemExit('of another build')\n")
            for cache in list((self.root / package).rglob("__pycache__")):
                shutil.rmtree(cache)

    def launch(
        self, id: str, action: str, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Execute the launcher that is installed now."""
        return subprocess.run(
            [self.venv / "bin" / "containerd-shim-pywasm-v1", "-namespace", "n", "-id", id, action],
            env=self.env,
            cwd=self.directory / id,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=30,
        )

    def zygote(self, build: str) -> int:
        """Return the pid of a build's zygote."""
        (lock,) = (self.directory / "run").glob(f"zygote-{build}-*.lock")
        return int(lock.read_text())


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    made = Installation(tmp_path)
    async with events_taken(made):
        yield made
        await made.close()


async def comm_of_shim(client: Client, id: str) -> str:
    answer = await call(client, "Connect", api.ConnectRequest(id=id), api.ConnectResponse)
    return Path(f"/proc/{answer.shim_pid}/comm").read_text().strip()


async def finish(client: Client, id: str) -> int:
    await call(client, "Start", api.StartRequest(id=id), Empty)
    ended = await call(client, "Wait", api.WaitRequest(id=id), api.WaitResponse)
    await call(client, "Delete", api.DeleteRequest(id=id), Empty)
    await end(client, id)
    return ended.exit_status


async def test_an_upgrade_while_containers_run(installation: Installation) -> None:
    cgroup = f"/pywasm-upgrade-{os.getpid()}"
    linux = {"namespaces": [{"type": "pid"}], "cgroupsPath": cgroup}
    groups = [Path(tree.mount + cgroup) for tree in hierarchies()]
    installation.install("a")
    old = await installation.create("x", "/idle.wasm", annotations=POD)
    await call(old, "Start", api.StartRequest(id="x"), Empty)
    doomed = await installation.create("doomed", "/idle.wasm", linux=linux)
    await call(doomed, "Start", api.StartRequest(id="doomed"), Empty)
    first = installation.zygote("a")

    # While the files are being replaced, nobody reads them: what runs goes on, and compiles, too.
    installation.spoil()
    process = AnyMessage(value=b'{"args": ["/exit3.wasm"], "cwd": "/"}')
    await call(old, "Exec", api.ExecProcessRequest(id="x", exec_id="e", spec=process), Empty)
    await call(old, "Start", api.StartRequest(id="x", exec_id="e"), Empty)
    ended = await call(old, "Wait", api.WaitRequest(id="x", exec_id="e"), api.WaitResponse)
    assert ended.exit_status == 3
    await call(old, "Delete", api.DeleteRequest(id="x", exec_id="e"), Empty)
    installation.bundle("second", "/exit3.wasm", annotations=POD)
    await call(old, "Create", installation.create_request("second"), Empty)
    assert await finish(old, "second") == 3

    # A new container gets the new code, one of an old pod the pod's shim.
    installation.install("b")
    new = await installation.create("y", "/exit3.wasm")
    assert await comm_of_shim(new, "y") == "pywasm-shim-b"
    assert installation.zygote("b") != first
    assert await finish(new, "y") == 3
    joined = await installation.create("third", "/exit3.wasm", annotations=POD)
    assert await comm_of_shim(joined, "third") == "pywasm-shim-a"
    assert await finish(joined, "third") == 3

    # Nobody asks the old zygote any more. Its shims do not need it.
    async for _ in patiently(0.02):
        if not os.path.exists(f"/proc/{first}"):
            break
    assert os.path.exists(f"/proc/{installation.zygote('b')}")

    # The new `delete` cleans up after a shim of the old build.
    answer = await call(doomed, "Connect", api.ConnectRequest(id="doomed"), api.ConnectResponse)
    assert any(group.exists() for group in groups)
    os.kill(answer.shim_pid, signal.SIGKILL)
    done = installation.launch("doomed", "delete")
    deleted = api.DeleteResponse.FromString(done.stdout)
    assert (deleted.pid, deleted.exit_status) == (answer.task_pid, 137)
    assert not any(group.exists() for group in groups)

    await call(old, "Kill", api.KillRequest(id="x", signal=signal.SIGTERM), Empty)
    ended = await call(old, "Wait", api.WaitRequest(id="x"), api.WaitResponse)
    assert ended.exit_status == 143
    await call(old, "Delete", api.DeleteRequest(id="x"), Empty)
    await end(old, "x")
    zygote = installation.zygote("b")
    async for _ in patiently(0.02):
        children = Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
        if sorted(processes(installation.env)) == sorted([zygote, *map(int, children)]):
            break  # only it and its warmer
    assert not list((installation.directory / "run" / "s").iterdir())
    assert len(list((installation.directory / "run").glob("*.sock"))) == 1
