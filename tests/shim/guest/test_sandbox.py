"""The sandbox of a pod: namespaces that a program of ours holds, and no image."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from proto import task_v2_pb2 as api
from shim.guest import sandbox
from shim.ttrpc import Client
from tests.shim.task_api import POD, Container, Shim, call

SANDBOX = POD | {"io.kubernetes.cri.container-type": "sandbox"}
KINDS = ("pid", "ipc", "uts", "network")
FILES = {"network": "net"}


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("hello", "probe"))
    yield started
    await started.close()


async def hold(shim: Shim, **spec: Any) -> tuple[Client, int]:
    """Start the pod's sandbox; its image has no such program as it names."""
    linux = {"namespaces": [{"type": kind} for kind in KINDS]}
    linux |= spec.pop("linux", {})
    client = await shim.create("pod", "/pause", annotations=SANDBOX, linux=linux, **spec)
    started = await call(client, "Start", api.StartRequest(id="pod"), api.StartResponse)
    await until(lambda: Path(f"/proc/{started.pid}/comm").read_text() == "pywasm-sandbox\n")
    return client, started.pid


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 5 s")


def output(*command: str) -> str:
    return subprocess.check_output(command, text=True)


async def end(client: Client) -> int:
    return (await call(client, "Wait", api.WaitRequest(id="pod"), api.WaitResponse)).exit_status


def pss(pid: int) -> int:
    """In KiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("Pss:")[2].split()[0])


async def test_a_few_pages_and_no_image(shim: Shim) -> None:
    _, pid = await hold(shim)
    assert os.listdir(f"/proc/{pid}/root") == ["pywasm-sandbox"]
    assert len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()) == 1
    null = os.stat("/dev/null").st_rdev
    opened = {fd: os.stat(f"/proc/{pid}/fd/{fd}").st_rdev for fd in os.listdir(f"/proc/{pid}/fd")}
    assert opened == {"0": null, "1": null, "2": null}
    assert pss(pid) < 100
    with pytest.raises(OSError, match="Read-only file system"):
        os.mkdir(f"/proc/{pid}/root/new")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(shim: Shim, signum: int) -> None:
    client, _ = await hold(shim)
    await call(client, "Kill", api.KillRequest(id="pod", signal=signum), api.KillRequest)
    assert await end(client) == 0


async def test_other_signals_are_nothing_to_an_init(shim: Shim) -> None:
    client, pid = await hold(shim)
    for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGSEGV, signal.SIGPIPE):
        os.kill(pid, signum)
    await call(client, "Kill", api.KillRequest(id="pod", signal=signal.SIGKILL), api.KillRequest)
    assert await end(client) == 137


async def test_its_names_and_sysctls_are_the_pods(shim: Shim) -> None:
    sysctl = {"net.ipv4.ip_unprivileged_port_start": "80"}
    _, pid = await hold(
        shim,
        hostname="the-pod",
        linux={"sysctl": sysctl, "namespaces": [{"type": kind} for kind in KINDS]},
    )
    inside = ["nsenter", f"--uts=/proc/{pid}/ns/uts", f"--net=/proc/{pid}/ns/net"]
    assert output(*inside, "hostname") == "the-pod\n"
    assert output(*inside, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start") == "80\n"


async def test_containers_join_it(shim: Shim) -> None:
    client, pid = await hold(shim, hostname="the-pod")
    joined = [{"type": kind, "path": f"/proc/{pid}/ns/{FILES.get(kind, kind)}"} for kind in KINDS]
    shim.bundle("x", "/probe.wasm", annotations=POD, linux={"namespaces": joined})
    container = await Container.create(shim, "x", client)
    state = await call(client, "State", api.StateRequest(id="x"), api.StateResponse)
    for kind in KINDS:
        name = FILES.get(kind, kind)
        assert os.readlink(f"/proc/{state.pid}/ns/{name}") == os.readlink(f"/proc/{pid}/ns/{name}")
    assert (await container.run()).status == 0


async def test_it_reaps_orphans(shim: Shim) -> None:
    _, pid = await hold(shim)
    # A shell that leaves two children behind, which end only then.
    script = "(sleep 0.1; exit 3) & (sleep 0.1; exit 4) & exit 0"
    output("nsenter", f"--pid=/proc/{pid}/ns/pid", "sh", "-c", f"({script}) >/dev/null")
    children = Path(f"/proc/{pid}/task/{pid}/children")
    assert children.read_text()
    await until(lambda: not children.read_text())


async def test_its_user_cannot_be_looked_into(shim: Shim) -> None:
    """Also by the same user, with whom it may share a PID namespace."""
    process = {"args": ["/pause"], "cwd": "/", "user": {"uid": 65535, "gid": 65535}}
    _, pid = await hold(shim, process=process | {"noNewPrivileges": True})
    looking = ["setpriv", "--reuid=65535", "--clear-groups", "readlink", f"/proc/{pid}/exe"]
    with pytest.raises(subprocess.CalledProcessError):
        output(*looking)
    assert os.readlink(f"/proc/{pid}/exe") == "/pywasm-sandbox"
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t65535\t65535\t65535\t65535\n" in status
    assert "CapEff:\t0000000000000000\n" in status


async def test_annotations_for_the_containers_are_not_its_own(shim: Shim) -> None:
    shim.bundle("pod", annotations=SANDBOX | {"dev.pywasm.network": "none"}, process={"cwd": "/"})
    client = await shim.start("pod")
    await call(client, "Create", shim.create_request("pod"), api.CreateTaskResponse)
    started = await call(client, "Start", api.StartRequest(id="pod"), api.StartResponse)
    assert os.readlink(f"/proc/{started.pid}/ns/net") == os.readlink("/proc/self/ns/net")


def test_the_program_of_the_other_machine() -> None:
    """It cannot be run here; its file has the form of the one that can."""
    images = [sandbox._executable(machine) for machine in ("x86_64", "aarch64")]
    assert images[0][:16] == images[1][:16]
    assert [image[18] for image in images] == [62, 183]  # EM_X86_64, EM_AARCH64 of elf(5)
    for image in images:
        assert image[-8:] == (1 << 1 | 1 << 14 | 1 << 16).to_bytes(8, "little")
