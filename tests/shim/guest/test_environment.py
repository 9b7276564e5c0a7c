"""What a program sees of itself, and what others see of it, as under runc."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proto import task_v2_pb2 as api
from shim.ttrpc import Code, RpcError
from tests.shim.task_api import POD, Container, Shim, call, processes

PASSWD = """
root:x:0:0:root:/root:/bin/sh
broken
one:x:1000:1000::/home/one:/bin/sh
again:x:1000:1000::/home/again:/bin/sh
homeless:x:1001:1001:::
"""

WITH_PROC = {
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "annotations": {"dev.pywasm.kernel-filesystems": "proc"},
}


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, ("args_env", "idle"))
    (started.rootfs / "etc").mkdir()
    (started.rootfs / "etc/passwd").write_text(PASSWD)
    yield started
    await started.close()


async def printed(
    shim: Shim, *args: str, uid: int = 0, spec: dict[str, Any] | None = None, **process: Any
) -> list[str]:
    id = f"c{len(shim.clients)}"
    process = {"args": list(args), "cwd": "/", "user": {"uid": uid, "gid": 0}} | process
    shim.bundle(id, process=process, **(spec or {}))
    ended = await (await Container.create(shim, id)).run()
    assert ended.status == 0, ended
    return ended.stdout.splitlines()


async def environment(shim: Shim, *env: str, uid: int = 0, **spec: Any) -> list[str]:
    lines = await printed(shim, "/args_env.wasm", env=list(env), uid=uid, spec=spec)
    return [line.removeprefix("env: ") for line in lines if line.startswith("env: ")]


@pytest.mark.parametrize(("uid", "home"), [(0, "/root"), (1000, "/home/one")])
@pytest.mark.parametrize("env", [[], ["HOME="]])
async def test_home_is_the_users(shim: Shim, uid: int, home: str, env: list[str]) -> None:
    assert await environment(shim, "A=1", *env, uid=uid) == ["A=1", f"HOME={home}"]


@pytest.mark.parametrize("uid", [1001, 7])
@pytest.mark.parametrize("env", [[], ["HOME="]])
async def test_who_has_no_home_is_given_none(shim: Shim, uid: int, env: list[str]) -> None:
    assert await environment(shim, "A=1", *env, uid=uid) == ["A=1", *env]


async def test_a_home_that_is_given_stays(shim: Shim) -> None:
    assert await environment(shim, "HOME=/a", "B=") == ["HOME=/a", "B="]


@pytest.mark.parametrize(
    "kind",
    ["none", "fifo", "link out", "directory", "not readable", "NUL", "long", "the kernel's"],
)
async def test_a_list_of_users_that_is_none_gives_no_home(shim: Shim, kind: str) -> None:
    passwd = shim.rootfs / "etc/passwd"
    passwd.unlink()
    if kind == "fifo":
        os.mkfifo(passwd)
    elif kind == "link out":
        passwd.symlink_to("../../../../../../etc/passwd")
    elif kind == "directory":
        passwd.mkdir()
    elif kind == "not readable":
        passwd.write_text(PASSWD)
        passwd.chmod(0o600)
    elif kind in ("NUL", "long"):
        home = "/\0" if kind == "NUL" else "/" * 5000
        passwd.write_text(f"one:x:1000:1000::{home}:\n")
    elif kind == "the kernel's":
        passwd.symlink_to("/proc/self/mem")
        (shim.rootfs / "proc").mkdir()
        assert await environment(shim, uid=1000, **WITH_PROC) == []
        return
    assert await environment(shim, uid=1000) == []


async def test_of_a_variable_that_is_given_twice_the_last_one_counts(shim: Shim) -> None:
    shown = await environment(shim, "A=1", "HOME=/", "B=2", "A=3")
    assert shown == ["HOME=/", "B=2", "A=3"]


async def test_the_last_path_finds_the_program(shim: Shim) -> None:
    (shim.rootfs / "bin").mkdir()
    (shim.rootfs / "args_env.wasm").rename(shim.rootfs / "bin/args_env.wasm")
    path = ["PATH=/nowhere", "PATH=/bin"]
    lines = await printed(shim, "args_env.wasm", env=[*path, "HOME=/"])
    assert lines == ["arg 0: args_env.wasm", "env: PATH=/bin", "env: HOME=/"]


@pytest.mark.parametrize("variable", ["", "A", "=B"])
async def test_what_is_no_variable_is_refused_and_not_repeated(shim: Shim, variable: str) -> None:
    with pytest.raises(RpcError) as caught:
        await environment(shim, "A=1", variable)
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert caught.value.message == "process.env[1]: expected NAME=VALUE"


@pytest.mark.parametrize(
    "init",
    [
        ["/sbin/docker-init", "--"],
        ["/dev/init/catatonit", "--"],
        ["tini", "-g", "-s", "-p", "SIGTERM", "-vv", "-e", "143"],
        ["/usr/bin/dumb-init", "--rewrite", "15:3", "--"],
        ["/usr/bin/dumb-init"],
    ],
)
async def test_the_command_of_an_init_is_run_without_it(shim: Shim, init: list[str]) -> None:
    lines = await printed(shim, *init, "/args_env.wasm", "-a", "--", "b")
    assert [line for line in lines if line.startswith("arg")] == [
        "arg 0: /args_env.wasm",
        "arg 1: -a",
        "arg 2: --",
        "arg 3: b",
    ]


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")


async def test_command_lines(shim: Shim) -> None:
    """Of every process, as ps and `docker top` show them."""
    shim.python = sys.executable  # in an environment as it is
    arguments = ["/idle.wasm", "an argument", "", "end"]
    shim.bundle("c", *arguments)
    client = await shim.start("c")
    await call(client, "Create", shim.create_request("c"), api.CreateTaskResponse)
    started = await call(client, "Start", api.StartRequest(id="c"), api.StartResponse)
    connected = await call(client, "Connect", api.ConnectRequest(id="c"), api.ConnectResponse)
    shown = {pid: command_line(pid) for pid in processes(shim.env)}
    assert shown.pop(started.pid) == arguments
    whose = ["-namespace", "n", "-id", "c"]
    assert shown.pop(connected.shim_pid) == ["containerd-shim-pywasm-v1", *whose]
    assert sorted(shown.values()) == [["pywasm-warmer"], ["pywasm-zygote"]]


async def test_a_guest_that_is_born_twice_has_its_command_line(shim: Shim) -> None:
    shim.python = sys.executable
    await shim.create("pod", "/idle.wasm", annotations=POD)
    spec = {"annotations": POD, "linux": {"namespaces": [{"type": "ipc"}]}}
    client = await shim.create("c", "/idle.wasm", "second", **spec)
    started = await call(client, "Start", api.StartRequest(id="c"), api.StartResponse)
    assert command_line(started.pid) == ["/idle.wasm", "second"]
