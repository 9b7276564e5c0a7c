"""Whoever asks for a shim first: a pod does not end with that one's cgroup."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from proto import task_v2_pb2 as api
from proto.task_pb2 import RUNNING
from shim.linux.cgroups import Cgroup, hierarchies
from shim.linux.cgroups.trees import own
from tests.integration.containerd import eventually
from tests.shim.launching import launch, zygotes
from tests.shim.task_api import Shim, call, processes, status

NAME = f"pywasm-test-{uuid.uuid4().hex[:8]}"
MOUNTS = [tree.mount for tree in hierarchies()]


@pytest.fixture
def callers() -> Iterator[Cgroup]:
    """The cgroup of somebody who asks, with a name of its own in every hierarchy."""
    cgroup = Cgroup.for_path(f"/{NAME}")
    cgroup.create()
    yield cgroup
    cgroup.kill()
    cgroup.delete(10)


@pytest_asyncio.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    shim = Shim(tmp_path, ["idle"])
    moves = "".join(f"echo $$ >{shlex.quote(f'{m}/{NAME}/cgroup.procs')}; " for m in MOUNTS)
    shim.wrapper = ["sh", "-c", f'{moves}exec "$@"', "sh"]
    yield shim
    await shim.close()


async def test_a_zygote_and_its_shims_outlive_who_asked(callers: Cgroup, shim: Shim) -> None:
    client = await shim.create("a", "/idle.wasm")
    await call(client, "Start", api.StartRequest(id="a"), api.StartResponse)
    assert callers.pids() == []
    (zygote,) = zygotes(shim.directory / "run")
    places = {pid: own(pid) for pid in processes(shim.env)}
    assert zygote in places
    assert not [path for place in places.values() for path in place.values() if NAME in path]
    callers.kill()
    eventually(lambda: not callers.pids())
    assert await status(client, "a") == RUNNING


def test_one_that_serves_once_stays(callers: Cgroup, shim: Shim, tmp_path: Path) -> None:
    stubborn = tmp_path / "python"
    stubborn.write_text(f'#!/bin/sh\n[ "$4" = --once ] && exec {sys.executable} "$@"\nexit 1\n')
    stubborn.chmod(0o755)
    bundle = shim.bundle("a", "/idle.wasm")
    command = ["-namespace", "n", "-id", "a", "start"]
    done = launch(command, shim.env, cwd=bundle, wrapper=shim.wrapper, python=str(stubborn))
    assert done.returncode == 0, done.stderr
    assert callers.pids() != []
    assert os.path.exists(done.stdout.decode().removeprefix("unix://"))
