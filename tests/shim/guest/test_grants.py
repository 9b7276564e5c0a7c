"""What a guest gets of its spec and its annotations, as a guest sees it: real shim, real guests."""

import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from proto import task_v2_pb2 as api
from shim.engines import engines
from shim.ttrpc import Code, RpcError
from tests.guests.build import SOURCES, build
from tests.installed import LIBWASMER, WHEELS, needs_libwasmer
from tests.shim.task_api import Container, Shim, call

ENGINES = [engine.name for engine in engines()]
GUESTS = ("probe", "spin", "idle")
BIND = "CAP_NET_BIND_SERVICE"
BINDING = {"bounding": [BIND], "permitted": [BIND], "effective": [BIND]}


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    started = Shim(tmp_path, GUESTS)
    yield started
    await started.close()


def annotated(**annotations: str) -> dict[str, dict[str, str]]:
    return {
        "annotations": {
            f"dev.pywasm.{name.replace('_', '-')}": value for name, value in annotations.items()
        }
    }


def process(*args: str, **more: Any) -> dict[str, Any]:
    return {"process": {"args": list(args), "cwd": "/"} | more}


async def container_of(shim: Shim, id: str, *args: str, **spec: Any) -> Container:
    shim.bundle(id, *args, **spec)
    return await Container.create(shim, id)


async def proc(container: Container) -> Path:
    request = api.StateRequest(id=container.id)
    return Path(f"/proc/{(await call(container.client, 'State', request, api.StateResponse)).pid}")


async def lines(shim: Shim, *args: str, **spec: Any) -> list[str]:
    """Run /probe.wasm and return its lines, one for each thing it tried."""
    container = await container_of(shim, f"c{len(shim.clients)}", "/probe.wasm", *args, **spec)
    ended = await container.run()
    assert ended.status == 0, ended
    return ended.stdout.splitlines()


async def refused(shim: Shim, *args: str, **spec: Any) -> str:
    with pytest.raises(RpcError) as caught:
        await container_of(shim, f"c{len(shim.clients)}", *args, **spec)
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_the_root_and_each_mounted_directory(shim: Shim, engine: str) -> None:
    for name in ("data", "data/inner", "fixed"):
        (shim.directory / name).mkdir()
    (shim.directory / "file").write_text("of the host\n")
    (shim.directory / "fixed" / "f").write_text("fixed\n")
    binds = [
        ("/data", "data", "rw"),
        ("/ro", "fixed", "ro"),
        ("/etc/file", "file", "ro"),
    ]
    mounts = [
        {
            "destination": there,
            "type": "bind",
            "source": str(shim.directory / here),
            "options": ["rbind", mode],
        }
        for there, here, mode in binds
    ]
    mounts.append({"destination": "/proc", "type": "proc", "source": "proc"})
    said = await lines(
        shim,
        *("preopens", "read", "/etc/file", "write", "/data/new", "write", "/plain"),
        *("read", "/ro/f", "write", "/ro/f", "write", "/ro/new", "write", "/data/../ro/new"),
        *("list", "/proc"),
        mounts=mounts,
        **annotated(engine=engine),
    )
    assert said[:5] == ["/ /data /ro", "of the host", "ok", "ok", "fixed"]
    assert said[5:7] == ["EROFS", "EROFS"]
    assert said[7] in ("ENOTCAPABLE", "EPERM", "EROFS")
    assert said[8] == "ENOENT"
    assert (shim.directory / "data" / "new").read_text() == "written\n"
    assert not (shim.directory / "fixed" / "new").exists()


async def test_a_root_that_is_read_only(shim: Shim, engine: str) -> None:
    root = {"path": "rootfs", "readonly": True}
    said = await lines(shim, "write", "/x", "read", "/x", root=root, **annotated(engine=engine))
    assert said == ["EROFS", "ENOENT"]


async def test_relative_paths_start_in_the_working_directory(shim: Shim, engine: str) -> None:
    app = shim.rootfs / "app"
    app.mkdir()
    (app / "data").write_text("relative\n")
    (shim.rootfs / "etc").mkdir()
    (shim.rootfs / "etc" / "data").write_text("absolute\n")
    operations = ["read", "data", "read", "./data", "read", "/etc/data", "write", "new", "env"]
    spec = process("/probe.wasm", *operations, "PWD", cwd="/app")
    said = await lines(shim, **spec, **annotated(engine=engine))
    assert said == ["relative", "relative", "absolute", "ok", "/app"]
    assert (app / "new").exists()
    assert not (shim.rootfs / "new").exists()


async def test_arguments_and_environment_as_they_are(shim: Shim, engine: str) -> None:
    value = "a b\t\"'$\\ \u00e9\u4e16 =="
    spec = process(
        *("/probe.wasm", "env", "STRANGE", "env", "EMPTY", "env", "LANG", "env", value),
        env=[f"STRANGE={value}", "EMPTY=", f"{value}=odd"],
    )
    os.environ["LANG"] = os.environ.get("LANG", "C")  # the host's, which is none of its business
    said = await lines(shim, **spec, **annotated(engine=engine))
    assert said[:3] == [value, "", "(unset)"]


async def test_extra_preopens(shim: Shim, engine: str) -> None:
    (shim.rootfs / "deep" / "er").mkdir(parents=True)
    (shim.rootfs / "deep" / "er" / "file").write_text("found\n")
    said = await lines(
        shim,
        *("preopens", "read", "fs/file", "write", "fs/file", "write", "/file"),
        **annotated(preopens="fs=/deep/er:ro,/=/deep", engine=engine),
    )
    assert said == ["/ fs", "found", "EROFS", "ok"]
    assert (shim.rootfs / "deep" / "file").exists()


async def test_what_is_replaced_is_not_held(shim: Shim) -> None:
    for name in ("a", "b"):
        (shim.rootfs / name).mkdir()
    twice = annotated(preopens="/=/a,x=/a,x=/b")
    container = await container_of(shim, "x", "/idle.wasm", **twice)
    await container.start()
    held = [fd for fd in (await proc(container) / "fd").iterdir() if fd.is_dir()]
    assert sorted(map(os.readlink, held)) == ["/a", "/b"]


async def test_no_root_directory(shim: Shim, engine: str) -> None:
    (shim.rootfs / "only").mkdir()
    spec = annotated(rootfs="off", preopens="/only=/only", engine=engine)
    said = await lines(shim, "preopens", "write", "/only/this", "read", "/probe.wasm", **spec)
    assert said[:2] == ["/only", "ok"]
    assert said[2] in ("ENOENT", "ENOTCAPABLE")


async def test_an_extra_preopen_that_is_not_there(shim: Shim) -> None:
    with pytest.raises(RpcError) as caught:
        await container_of(shim, "x", "/probe.wasm", **annotated(preopens="fs=/no/where"))
    assert "dev.pywasm.preopens: /no/where: No such file" in caught.value.message


async def test_a_bound_for_memory(shim: Shim, engine: str) -> None:
    said = await lines(
        shim, "grow", "40", "grow", "50", **annotated(memory_pages="300", engine=engine)
    )
    assert said == ["ok", "refused"]
    message = await refused(shim, "/probe.wasm", **annotated(memory_pages="1", engine=engine))
    assert message == "/probe.wasm: its memory begins with 257 pages, and 1 are allowed"


async def test_a_limit_of_time(shim: Shim) -> None:
    container = await container_of(shim, "x", "/spin.wasm", **annotated(time_limit="300ms"))
    ended = await container.run()
    assert ended.status == 137
    assert ended.stderr.endswith("pywasm: killed: it exceeded its time limit of 0.3 s\n")


async def test_a_limit_of_time_that_is_kept(shim: Shim) -> None:
    container = await container_of(shim, "x", "/probe.wasm", **annotated(time_limit="20s"))
    assert (await container.run())[::2] == (0, "")


async def test_kernel_filesystems_on_demand(shim: Shim) -> None:
    kinds = ("proc", "mqueue")
    mounts = [{"destination": f"/{kind}", "type": kind, "source": kind} for kind in kinds]
    spec = annotated(kernel_filesystems="proc")
    said = await lines(shim, "read", "/proc/1/comm", "list", "/mqueue", mounts=mounts, **spec)
    assert said == ["probe.wasm", "ENOENT"]


async def test_without_a_network(shim: Shim) -> None:
    namespaces = [{"type": "network", "path": "/proc/self/ns/net"}]
    networks = {os.stat("/proc/self/ns/net").st_ino}
    for id, switch in ("on", "on"), ("off", "off"):
        linux = {"namespaces": namespaces}
        container = await container_of(
            shim, id, "/idle.wasm", linux=linux, **annotated(network=switch)
        )
        networks.add(os.stat(await proc(container) / "ns/net").st_ino)
        assert len(networks) == (1 if switch == "on" else 2)
        devices = (await proc(container) / "net/dev").read_text()
        if switch == "off":
            assert [line.split(":")[0].strip() for line in devices.splitlines()[2:]] == ["lo"]


async def test_listening_sockets(shim: Shim) -> None:
    linux = {"namespaces": [{"type": "network"}]}
    addresses = "tcp://127.0.0.1:80,tcp://[::1]:81"
    spec = process("/idle.wasm", capabilities=BINDING) | annotated(listen=addresses)
    container = await container_of(shim, "x", linux=linux, **spec)
    listening = []
    for table in ("tcp", "tcp6"):
        for line in (await proc(container) / "net" / table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            listening.append((int(local.split(":")[1], 16), state))
    assert listening == [(80, "0A"), (81, "0A")]


async def test_an_address_that_is_taken(shim: Shim) -> None:
    linux = {"namespaces": [{"type": "network"}]}
    twice = annotated(listen="tcp://127.0.0.1:8080,tcp://127.0.0.1:8080")
    with pytest.raises(RpcError) as caught:
        await container_of(shim, "x", "/idle.wasm", linux=linux, **twice)
    message = caught.value.message
    assert message == "annotations: dev.pywasm.listen: tcp://127.0.0.1:8080: Address already in use"


@pytest.mark.parametrize(
    ("process", "sysctl", "bound"),
    [
        ({"user": {"uid": 65532, "gid": 65532}, "capabilities": BINDING}, {}, False),
        ({"capabilities": {}}, {}, False),
        ({"capabilities": BINDING}, {}, True),
        (
            {
                "user": {"uid": 65532, "gid": 65532},
                "capabilities": BINDING | {"inheritable": [BIND], "ambient": [BIND]},
            },
            {},
            True,
        ),
        (
            {"user": {"uid": 65532, "gid": 65532}},
            {"net.ipv4.ip_unprivileged_port_start": "0"},
            True,
        ),
    ],
)
async def test_a_port_below_1024_as_the_program_could_bind_it(
    shim: Shim, process: dict[str, Any], sysctl: dict[str, str], bound: bool
) -> None:
    linux = {"namespaces": [{"type": "network"}], "sysctl": sysctl}
    spec = {"process": {"args": ["/idle.wasm"], "cwd": "/"} | process}
    spec |= annotated(listen="tcp://127.0.0.1:80")
    if bound:
        await container_of(shim, "x", linux=linux, **spec)
        return
    with pytest.raises(RpcError) as caught:
        await container_of(shim, "x", linux=linux, **spec)
    assert caught.value.message == (
        "annotations: dev.pywasm.listen: tcp://127.0.0.1:80: Permission denied"
    )


async def test_annotations_that_are_not_understood(shim: Shim) -> None:
    message = await refused(shim, "/probe.wasm", **annotated(enigne="wasmer"))
    assert "annotations: dev.pywasm.enigne: unknown" in message
    message = await refused(shim, "/probe.wasm", **annotated(memory_pages="many"))
    assert "dev.pywasm.memory-pages: expected " in message


FORMS = [
    (["/bin/probe.wasm"], {}),
    (["probe.wasm"], {"env": ["PATH=/nowhere:/bin"]}),
    (["probe.wasm"], {"cwd": "/bin"}),
    (["./probe.wasm"], {"cwd": "/bin"}),
    (["../bin/probe.wasm"], {"cwd": "/bin"}),
    (["/bin/probe.wasm#_start"], {}),
    (["link.wasm"], {"env": ["PATH=/bin"]}),
    # A file whose name has the character that an export comes after.
    (["/bin/with#hash.wasm"], {}),
    (["with#hash.wasm"], {"env": ["PATH=/bin"]}),
    (["/bin/with#hash.wasm#_start"], {}),
    (["/bin/probe.wasm#file"], {}),
    (["/bin/probe#module"], {}),
]


@pytest.mark.parametrize(("args", "more"), FORMS)
async def test_forms_of_the_entrypoint(shim: Shim, args: list[str], more: dict[str, Any]) -> None:
    (shim.rootfs / "bin").mkdir()
    (shim.rootfs / "probe.wasm").rename(shim.rootfs / "bin" / "probe.wasm")
    (shim.rootfs / "bin" / "link.wasm").symlink_to("/bin/probe.wasm")
    for name in ("with#hash.wasm", "probe.wasm#file", "probe#module"):
        (shim.rootfs / "bin" / name).symlink_to("probe.wasm")
    assert await lines(shim, **process(*args, "env", "X", **more)) == ["(unset)"]


TEXT = """
;; Prints what it is.
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\08\\00\\00\\00\\05\\00\\00\\00text\\0a")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64))))
  (func (export "other") unreachable))
"""


async def test_text_as_an_entrypoint(shim: Shim, engine: str) -> None:
    (shim.rootfs / "text.wat").write_text(TEXT)
    spec = annotated(engine=engine)
    assert (await (await container_of(shim, "a", "/text.wat", **spec)).run()).stdout == "text\n"
    trapped = await (await container_of(shim, "b", "/text.wat#other", **spec)).run()
    assert (trapped.status, trapped.stderr.splitlines()[0]) == (
        134,
        "pywasm: wasm trap: unreachable",
    )
    (shim.rootfs / "broken.wat").write_text("(module\n  (func (export 3)))\n")
    assert "/broken.wat: " in (message := await refused(shim, "/broken.wat", **spec))
    assert "2:10" in message


needs_both = pytest.mark.skipif(len(ENGINES) < 2, reason="there is one engine only")
by_wheels = pytest.mark.skipif(LIBWASMER or not WHEELS, reason="wasmer is not that of the wheels")

# A tail call, which wasmer has only with LLVM.
TAIL_CALL = '(module (func $f) (func (export "_start") return_call $f))'


def logged(shim: Shim, id: str) -> list[str]:
    return (shim.directory / id / "log").read_text().splitlines()


@needs_both
async def test_what_wasmer_refuses_goes_to_wasmtime(shim: Shim) -> None:
    (shim.rootfs / "tail.wat").write_text(TAIL_CALL)
    for id in ("first", "second"):
        container = await container_of(shim, id, "/tail.wat")
        assert (await container.run()).status == 0
    message = await refused(shim, "/tail.wat", **annotated(engine="wasmer"))
    assert message.startswith("/tail.wat: invalid wasm module: ")
    # The refusal and the artifact: the second start, and the one that demanded, compiled nothing.
    assert len(os.listdir(shim.directory / "state" / "artifacts")) == 2


async def simd(shim: Shim, id: str, **spec: Any) -> tuple[int, str]:
    """Run tests/guests/simd.wat; return its status and which engine it was, and why."""
    shutil.copy(SOURCES / "simd.wat", shim.rootfs / "simd.wat")
    (shim.bundle(id, "/simd.wat", **spec) / "log").touch()
    ended = await (await Container.create(shim, id)).run()
    [created] = [line for line in logged(shim, id) if "msg=created" in line]
    return ended.status, created


@needs_libwasmer
async def test_simd_under_wasmer(shim: Shim) -> None:
    for id, spec in (("default", {}), ("demanded", annotated(engine="wasmer"))):
        status, created = await simd(shim, id, **spec)
        assert status == 239
        assert "engine=wasmer" in created


@by_wheels
async def test_what_wasmer_gets_wrong_goes_to_wasmtime(shim: Shim) -> None:
    for id in ("first", "second"):
        status, created = await simd(shim, id)
        assert status == 239
        assert "engine=wasmtime" in created
        assert "refused by wasmer: wasmer 1.1.0 is not safe" in created
        assert "CVE-2022-31104" in created
    # The refusal and the artifact.
    assert len(os.listdir(shim.directory / "state" / "artifacts")) == 2


@by_wheels
async def test_a_demand_for_what_is_not_safe(shim: Shim) -> None:
    shim.env["PYWASM_CONFIG"] = str(shim.directory / "config.toml")
    settings = shim.directory / "config.toml"
    wanted = annotated(engine="wasmer")
    # Allowed by the node it is run, whatever comes out ...
    settings.write_text('unsafe_engines = ["wasmer"]\n')
    _, created = await simd(shim, "allowed", **wanted)
    assert "engine=wasmer" in created
    # ... but nobody gets it who has not asked for it ...
    status, created = await simd(shim, "default")
    assert status == 239
    assert "engine=wasmtime" in created
    # ... and without the setting the artifact that there is by now is not used.
    settings.write_text('engine = "wasmer"\n')
    message = await refused(shim, "/simd.wat", **wanted)
    assert message.startswith("/simd.wat: wasmer 1.1.0 is not safe for a module that uses SIMD")
    assert (await simd(shim, "preferred"))[0] == 239


@by_wheels
async def test_a_further_process_that_wasmer_gets_wrong(shim: Shim) -> None:
    shutil.copy(SOURCES / "simd.wat", shim.rootfs / "simd.wat")
    container = await container_of(shim, "x", "/idle.wasm", **annotated(engine="wasmer"))
    await container.start()
    request = api.ExecProcessRequest(id="x", exec_id="e")
    request.spec.value = json.dumps(process("/simd.wat")["process"]).encode()
    await call(container.client, "Exec", request, Empty)
    with pytest.raises(RpcError, match=r"wasmer 1\.1\.0 is not safe"):
        await call(container.client, "Start", api.StartRequest(id="x", exec_id="e"), Empty)


@needs_both
async def test_a_demand_and_the_node_s_preference(shim: Shim) -> None:
    shim.env["PYWASM_CONFIG"] = str(shim.directory / "config.toml")
    (shim.directory / "config.toml").write_text('engine = "wasmtime"\n')
    artifacts = shim.directory / "state" / "artifacts"
    assert await lines(shim, "env", "X") == ["(unset)"]
    assert len(os.listdir(artifacts)) == 1
    assert await lines(shim, "env", "X", **annotated(engine="wasmtime")) == ["(unset)"]
    assert len(os.listdir(artifacts)) == 1
    assert await lines(shim, "env", "X", **annotated(engine="wasmer")) == ["(unset)"]
    assert len(os.listdir(artifacts)) == 2


async def test_what_the_node_forbids(shim: Shim) -> None:
    shim.env["PYWASM_CONFIG"] = str(shim.directory / "config.toml")
    rules = '["handler=native", "kernel-filesystems=proc", "listen"]'
    (shim.directory / "config.toml").write_text(f"forbid = {rules}\n")
    pod = {"io.kubernetes.cri.container-name": "web"}
    for asked in (
        {"dev.pywasm.handler": "native"},
        {"dev.pywasm.handler": "wasm", "dev.pywasm.handler/web": "native"},
        {"dev.pywasm.kernel-filesystems": "all"},
        {"dev.pywasm.listen": "tcp://127.0.0.1:8080"},
    ):
        message = await refused(shim, annotations={**pod, **asked})
        assert "the settings of this node forbid it" in message
    kept = annotated(handler="wasm", **{"kernel-filesystems": "mqueue"})
    assert await lines(shim, "env", "X", **kept) == ["(unset)"]


async def test_a_configuration_with_a_mistake_fails_the_start(shim: Shim) -> None:
    shim.env["PYWASM_CONFIG"] = str(shim.directory / "config.toml")
    (shim.directory / "config.toml").write_text("engin = 1\n")
    bundle = shim.bundle("x", "/probe.wasm")
    done = shim.launch("x", "start")
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert "config.toml" in done.stderr.decode()
    assert "engin" in done.stderr.decode()
    assert sorted(os.listdir(bundle)) == ["config.json", "rootfs"]
    assert json.loads((bundle / "config.json").read_text())
    assert build("probe").exists()


async def test_a_user_maps_the_artifact_and_can_enter_nothing_of_the_host(shim: Shim) -> None:
    user = {"user": {"uid": 4321, "gid": 4321}, "noNewPrivileges": True}
    for id in ("compiled", "cached"):
        spec = process("/idle.wasm", **user) | annotated(engine="wasmtime")
        container = await container_of(shim, id, **spec)
        await container.start()
        of_it = await proc(container)
        [artifact] = os.listdir(shim.directory / "state" / "artifacts")
        assert artifact in (of_it / "maps").read_text()
        assert "Uid:\t4321\t4321\t4321\t4321" in (of_it / "status").read_text()
        assert os.readlink(of_it / "cwd") == "/"
        held = {os.readlink(of_it / "fd" / fd) for fd in os.listdir(of_it / "fd")}
        of_the_cache = {name for name in held if str(shim.directory / "state") in name}
        assert of_the_cache <= {str(shim.directory / "state" / "artifacts" / artifact)}
