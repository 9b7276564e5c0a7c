"""Much output of a real container to a slow reader, beside others of the same shim; many clients.

The size is PYWASM_FLOOD megabytes.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto import task_v2_pb2 as api
from tests.shim.launching import refusals
from tests.shim.task_api import POD, Container, Shim, call

MEGABYTES = int(os.environ.get("PYWASM_FLOOD", "32"))
BOUND = 2 << 20
"""Bytes that a shim may grow by, whatever the amount."""


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("stdio", "hello"))
    yield started
    await started.close()


def anonymous(pid: int) -> int:
    """Private memory of a process, in bytes."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024


def expected(*, terminal: bool) -> str:
    """Digest of what the guest `stdio` writes."""
    digest = hashlib.sha256()
    end = b"\r\n" if terminal else b"\n"
    for first in range(0, MEGABYTES * 16384, 16384):
        numbers = range(first, first + 16384)
        digest.update(b"".join(b"%-63d" % number + end for number in numbers))
    return digest.hexdigest()


async def digest_slowly(path: Path, pid: int, grown: list[int]) -> str:
    """Read a FIFO to its end, with pauses in which it is full."""
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    amount, began = 0, False
    start = anonymous(pid)
    while True:
        try:
            data = os.read(fd, 30_000)
        except BlockingIOError:
            await asyncio.sleep(0.0005)
            continue
        if not data and began:
            os.close(fd)
            return digest.hexdigest()
        if not data:  # nobody has it open yet
            await asyncio.sleep(0.005)
            continue
        began = True
        digest.update(data)
        before, amount = amount, amount + len(data)
        if before >> 18 != amount >> 18:
            grown.append(anonymous(pid) - start)
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("target", ["fifo", "terminal", "file"])
async def test_nothing_is_lost_or_hoarded_and_nobody_waits(shim: Shim, target: str) -> None:
    out = shim.directory / "out"
    if target != "file":
        os.mkfifo(out)
    shim.bundle("flood", "/stdio.wasm", str(MEGABYTES), annotations=POD)
    client = await shim.start("flood")
    request = shim.create_request(
        "flood",
        stdout=f"file://{out}" if target == "file" else str(out),
        terminal=target == "terminal",
    )
    await call(client, "Create", request, api.CreateTaskResponse)
    answer = await call(client, "Connect", api.ConnectRequest(id="flood"), api.ConnectResponse)
    grown: list[int] = []
    if target != "file":
        reading = asyncio.create_task(digest_slowly(out, answer.shim_pid, grown))
    await call(client, "Start", api.StartRequest(id="flood"), api.StartResponse)
    others = 0
    waiting = asyncio.create_task(
        call(client, "Wait", api.WaitRequest(id="flood"), api.WaitResponse, timeout=100)
    )
    while others < 3 or (not waiting.done() and others < 20):
        shim.bundle(f"other{others}", "/hello.wasm", annotations=POD)
        other = await Container.create(shim, f"other{others}", client)
        assert (await other.run())[:2] == (0, "hello from pywasm\n")
        others += 1
    assert (await waiting).exit_status == 0
    if target == "file":
        await call(client, "Delete", api.DeleteRequest(id="flood"), api.DeleteResponse)
        digest = hashlib.sha256(out.read_bytes()).hexdigest()
        out.unlink()
    else:
        digest = await asyncio.wait_for(reading, 100)
        assert max(grown) < BOUND
    assert digest == expected(terminal=target == "terminal")


async def test_none_of_many_clients_is_refused_while_the_shim_is_busy(shim: Shim) -> None:
    shim.bundle("many", "/hello.wasm")
    address = shim.launch("many", "start").stdout.decode()
    client = await shim.connect("many", address)
    connect = api.ConnectRequest(id="many")
    answer = await call(client, "Connect", connect, api.ConnectResponse)
    assert refusals(address.removeprefix("unix://"), answer.shim_pid, 400) == 0
    await call(client, "Connect", connect, api.ConnectResponse)
