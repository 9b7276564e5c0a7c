import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message

from oci.runtime import SpecError
from proto import task_v2_pb2 as api
from proto.bootstrap_pb2 import BootstrapParams, Extension
from proto.mount_pb2 import Mount
from proto.runc_options_pb2 import Options as RuncOptions
from proto.runtime_options_pb2 import Options as RuntimeOptions
from shim.daemon import options
from shim.daemon.options import Options
from shim.engines import engines
from shim.linux.cgroups import Cgroup, trees
from shim.ttrpc import Code
from tests.shim.task_api import Shim, call, refused

# As containerd's own go-toml writes `[...runtimes.pywasm.options]`.
TABLE = b"""
BinaryName = "/usr/bin/crun"
IoGid = 7
IoUid = 1000
NoNewKeyring = true
NoPivotRoot = true
Root = "/run/elsewhere"
ShimCgroup = "/shims"
SystemdCgroup = true
TypeUrl = "anything"
"""
ALL = Options(
    binary_name="/usr/bin/crun",
    root="/run/elsewhere",
    systemd_cgroup=True,
    no_pivot_root=True,
    no_new_keyring=True,
    shim_cgroup="/shims",
    io_uid=1000,
    io_gid=7,
)


def packed(message: Message, prefix: str = "") -> any_pb2.Any:
    name = message.DESCRIPTOR.full_name
    return any_pb2.Any(type_url=prefix + name, value=message.SerializeToString())


def of_table(text: bytes) -> any_pb2.Any:
    return packed(RuntimeOptions(config_body=text))


def test_no_options() -> None:
    assert options.read(any_pb2.Any()) == Options()
    assert options.read(of_table(b"")) == Options()


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
def test_the_options_of_runc(prefix: str) -> None:
    fields: dict[str, Any] = ALL._asdict()
    del fields["engine"]
    message = RuncOptions(**fields, criu_work_path="/ignored")
    assert options.read(packed(message, prefix)) == ALL


def test_the_table_as_containerd_sends_it() -> None:
    assert options.read(of_table(TABLE)) == ALL


def test_the_case_of_keys_does_not_matter() -> None:
    assert options.read(of_table(b"systemdcgroup = true")).systemd_cgroup


def test_a_file_is_read_instead(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_bytes(TABLE)
    message = RuntimeOptions(config_path=str(path), config_body=b"Root = '/not me'")
    assert options.read(packed(message)) == ALL


def test_every_engine_can_be_preferred() -> None:
    for engine in engines():
        text = f'Engine = "{engine.name}"'.encode()
        assert options.read(of_table(text)).engine == engine.name


@pytest.mark.parametrize(
    ("message", "culprit"),
    [
        (any_pb2.Any(type_url="runhcs.v1.Options"), "runhcs.v1.Options"),
        (any_pb2.Any(value=b"x"), "unknown type ''"),
        (any_pb2.Any(type_url="containerd.runc.v1.Options", value=b"\xff"), "containerd.runc.v1"),
        (of_table(b"BinaryNaem = 'x'"), "BinaryNaem: unknown"),
        (of_table(b"SystemdCgroup = 'yes'"), "SystemdCgroup: expected true or false, got 'yes'"),
        (of_table(b"BinaryName = true"), "BinaryName: expected a string"),
        (of_table(b"IoUid = true"), "IoUid: expected a number"),
        (of_table(b"IoUid = -1"), "IoUid: expected a number"),
        (of_table(b"IoGid = 4294967295"), "4294967295 is no id"),
        (packed(RuncOptions(io_uid=2**32 - 1)), "4294967295 is no id"),
        (of_table(b"Engine = 'v8'"), "Engine: no engine 'v8'"),
        (of_table(b"Root = "), "Invalid value"),
        (of_table(b"Root = '\xff'"), "0xff"),
        (packed(RuntimeOptions(config_path="here.toml")), "not an absolute path: 'here.toml'"),
        (packed(RuntimeOptions(config_path="/a\0b")), "not an absolute path"),
        (packed(RuntimeOptions(config_path="/nonexistent/x")), "/nonexistent/x: No such file"),
        (packed(RuntimeOptions(config_path="/etc")), "/etc: Is a directory"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(message: any_pb2.Any, culprit: str) -> None:
    with pytest.raises(SpecError) as caught:
        options.read(message)
    assert culprit in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("Rooot = 'x'")
    with pytest.raises(SpecError, match=f"^{path}: Rooot: unknown$"):
        options.read(packed(RuntimeOptions(config_path=str(path))))


@pytest.mark.parametrize("path", ["", "system.slice:cri-containerd:x", ":x:y"])
def test_paths_for_the_cgroup_driver_of_systemd(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "systemd_runs", lambda: True)
    options.check_cgroups_path(Options(systemd_cgroup=True), path)


def test_the_cgroup_driver_of_systemd_needs_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "systemd_runs", lambda: False)
    with pytest.raises(SpecError, match="SystemdCgroup is set, but systemd does not run here"):
        options.check_cgroups_path(Options(systemd_cgroup=True), "system.slice:cri-containerd:x")


def test_a_path_for_the_other_cgroup_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "systemd_runs", lambda: True)
    options.check_cgroups_path(Options(), "/kubepods/x")
    with pytest.raises(SpecError, match=r"cgroupsPath.*slice:prefix:name, got '/kubepods/x'"):
        options.check_cgroups_path(Options(systemd_cgroup=True), "/kubepods/x")


# ---- a real shim


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    made = Shim(tmp_path, ["idle"])
    try:
        yield made
    finally:
        await made.close()


def bootstrap(id: str, *values: any_pb2.Any) -> bytes:
    params = BootstrapParams(
        instance_id=id, namespace="n", extensions=[Extension(value=value) for value in values]
    )
    return params.SerializeToString()


@pytest.mark.parametrize("new", [False, True], ids=["2.2 and before", "since 2.3"])
async def test_start_refuses_what_it_cannot_follow(shim: Shim, new: bool) -> None:
    shim.bundle("a", "/idle.wasm")
    mistake = of_table(b"Rooot = 'x'")
    # An extension that is not for us comes first.
    other = packed(Mount(type="x"))
    stdin = bootstrap("a", other, mistake) if new else mistake.SerializeToString()
    done = shim.launch("a", "start", stdin)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr == b"containerd-shim-pywasm-v1: runtime options: Rooot: unknown\n"


@pytest.fixture
async def group(shim: Shim) -> AsyncIterator[str]:
    """The name of a cgroup for containers; it is removed when they are gone."""
    name = "/pywasm-test-options"
    yield name
    await shim.close()
    for tree in trees.hierarchies():
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(tree.mount + name)


async def test_the_cgroup_driver_is_checked_at_start_and_at_create(shim: Shim, group: str) -> None:
    linux: dict[str, Any] = {"cgroupsPath": f"{group}/a", "namespaces": []}
    shim.bundle("a", "/idle.wasm", linux=linux)
    systemd = packed(RuncOptions(systemd_cgroup=True))
    done = shim.launch("a", "start", systemd.SerializeToString())
    assert done.returncode == 1
    assert b"linux.cgroupsPath: SystemdCgroup is set" in done.stderr
    client = await shim.start("a")  # a client may give Create options that `start` had not
    code, message = await refused(client, "Create", shim.create_request("a", options=systemd))
    assert code == Code.INVALID_ARGUMENT
    assert "linux.cgroupsPath: SystemdCgroup is set" in message
    assert not Cgroup.for_path(f"{group}/a").exists()
    assert (await refused(client, "State", api.StateRequest(id="a")))[0] == Code.NOT_FOUND
    # And then it can still be done right.
    await call(client, "Create", shim.create_request("a"), api.CreateTaskResponse)


async def test_unknown_options_of_create(shim: Shim) -> None:
    shim.bundle("a", "/idle.wasm")
    client = await shim.start("a")
    strange = any_pb2.Any(type_url="runhcs.v1.Options")
    code, message = await refused(client, "Create", shim.create_request("a", options=strange))
    assert code == Code.INVALID_ARGUMENT
    assert "runhcs.v1.Options" in message


async def test_the_shim_joins_the_cgroup_that_the_options_name(shim: Shim) -> None:
    path = "/pywasm-test-shims"
    stdin = packed(RuncOptions(shim_cgroup=path)).SerializeToString()
    shim.bundle("a", "/idle.wasm")
    done = shim.launch("a", "start", stdin)
    assert done.stderr == (
        b"containerd-shim-pywasm-v1: runtime options: ShimCgroup: "
        b"/pywasm-test-shims: no such cgroup\n"
    )
    tree = trees.hierarchies()[-1]  # one of them has it, the others stay as they are
    Path(tree.mount + path).mkdir()
    try:
        done = shim.launch("a", "start", stdin)
        client = await shim.connect("a", done.stdout.decode())
        answer = await call(client, "Connect", api.ConnectRequest(id="a"), api.ConnectResponse)
        found = Path(f"/proc/{answer.shim_pid}/cgroup").read_text().splitlines()
        assert [line for line in found if line.endswith(":" + path)] != []
        await call(client, "Create", shim.create_request("a"), api.CreateTaskResponse)
    finally:
        await shim.close()
        for _ in range(200):
            try:
                os.rmdir(tree.mount + path)
                break
            except OSError:  # its last process is on its way out
                await asyncio.sleep(0.01)


async def test_the_engine_of_the_runtime_goes_before_that_of_the_node(shim: Shim) -> None:
    shim.bundle("a", "/idle.wasm")
    engine = engines()[-1].name
    log = shim.directory / "a" / "log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        text = f'Engine = "{engine}"'.encode()
        done = shim.launch("a", "start", of_table(text).SerializeToString())
        client = await shim.connect("a", done.stdout.decode())
        await call(client, "Create", shim.create_request("a"), api.CreateTaskResponse)
        assert f"engine={engine}" in os.read(reader, 1 << 16).decode()
    finally:
        os.close(reader)


async def test_create_without_options_has_those_of_start(shim: Shim) -> None:
    """containerd 2.0 replaces them in Create by the address of the pod's shim."""
    shim.bundle("a", "/idle", annotations={"dev.pywasm.handler": "native"})
    stdin = packed(RuncOptions(binary_name="/nonexistent/runc")).SerializeToString()
    done = shim.launch("a", "start", stdin)
    client = await shim.connect("a", done.stdout.decode())
    other = packed(RuncOptions(task_api_address="unix:///x", task_api_version=3))
    _, message = await refused(client, "Create", shim.create_request("a", options=other))
    assert "/nonexistent/runc" in message
