"""What cannot work says why in one line that names the culprit, and leaves nothing behind.

That nothing is left is asked after every test here, by the fixtures.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from proto import mount_pb2
from tests.guests.build import build
from tests.integration import client as api
from tests.integration import images, specs
from tests.integration.conftest import IMAGE, Container, Containers
from tests.integration.containerd import PYWASM, Containerd, Result


def one_line(done: Result) -> str:
    """The only line on stderr of a `ctr run` that failed."""
    assert done.returncode != 0
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("entrypoint", "culprits"),
    [
        ("/no/such/file.wasm", ["/no/such/file.wasm"]),
        ("/bad/directory.wasm", ["/bad/directory.wasm"]),
        ("/bad/text.wasm", ["/bad/text.wasm"]),
        ("/bad/truncated.wasm", ["/bad/truncated.wasm"]),
        ("/bad/empty.wasm", ["_start"]),
        ("/bad/import.wasm", ["env", "no_such_function"]),
    ],
)
def test_entrypoint(containerd: Containerd, entrypoint: str, culprits: list[str]) -> None:
    # Twice: a refusal must not become an artifact.
    for _ in range(2):
        reason = one_line(containerd.run(PYWASM, IMAGE, entrypoint))
        assert all(culprit in reason for culprit in culprits), reason


def run_document(containerd: Containerd, tmp_path: Path, spec: dict[str, Any]) -> Result:
    """`ctr run` of a document, on a root of its own."""
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    spec["root"]["path"] = str(rootfs)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(spec))
    options = [*containerd.run_options(PYWASM), "--rm", "--config", str(config)]
    return containerd.ctr(*options, containerd.new_name())


def test_no_arguments(containerd: Containerd, tmp_path: Path) -> None:
    reason = one_line(run_document(containerd, tmp_path, specs.minimal()))
    assert "process.args" in reason


def create_refused(container: Container) -> str:
    """The message of a Create that has to fail."""
    with pytest.raises(grpc.RpcError) as caught:
        container.create()
    message = str(caught.value.details())
    assert "\n" not in message.strip()
    assert "Traceback" not in message
    return message


def test_truncated_document(containerd: Containerd, tmp_path: Path) -> None:
    # containerd parses the document itself before it executes any shim, so this executes ours.
    whole = json.dumps(specs.minimal("/hello.wasm"))
    (tmp_path / "config.json").write_text(whole[:-10])
    argv = ["containerd-shim-pywasm-v1", "-namespace", containerd.namespace, "-id", "cut"]
    argv += ["-address", containerd.address, "-publish-binary", "containerd", "start"]
    done = subprocess.run(
        argv,
        cwd=tmp_path,
        env={**containerd.env, "TTRPC_ADDRESS": f"{containerd.address}.ttrpc"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "config.json: truncated" in one_line(done)


def test_wrong_type(containers: Containers) -> None:
    spec = specs.minimal("/hello.wasm")
    spec["process"]["args"].append(7)
    message = create_refused(containers.new(PYWASM, spec))
    assert "process.args[1]" in message
    assert "expected str, got int" in message


@pytest.mark.parametrize(
    ("field", "value"), [("intelRdt", {"closID": "x"}), ("netDevices", {"eth0": {"name": "x"}})]
)
def test_what_there_is_not_is_no_less_of_a_container(
    containers: Containers, field: str, value: dict[str, Any]
) -> None:
    spec = specs.minimal("/hello.wasm")
    spec["linux"] = {field: value}
    assert f"linux.{field}: not implemented" in create_refused(containers.new(PYWASM, spec))


def test_rootfs_that_does_not_mount(client: api.Client, containers: Containers) -> None:
    container = containers.new(PYWASM, specs.minimal("/hello.wasm"))
    good = client.prepare(container.name, container.image.chain_id)
    bad = mount_pb2.Mount(type="nosuchfs", source="nothing", options=["ro"])
    with pytest.raises(grpc.RpcError) as caught:
        client.create(container.name, [*good, bad])
    assert "nosuchfs" in str(caught.value.details())


def test_mount_source_missing(containerd: Containerd) -> None:
    mount = "type=bind,src=/no/such/source,dst=/data,options=rbind:ro"
    reason = one_line(containerd.run(PYWASM, IMAGE, "/hello.wasm", options=["--mount", mount]))
    assert "/no/such/source" in reason


def test_user_that_is_not_there(containerd: Containerd, tmp_path: Path) -> None:
    spec = specs.minimal("/hello.wasm")
    spec["process"]["user"] = {"uid": "root"}
    # ctr itself refuses this document; the shim is never asked, and nothing may be left either.
    assert run_document(containerd, tmp_path, spec).returncode != 0


@pytest.mark.parametrize("trap", ["unreachable", "memory"])
def test_trap(containerd: Containerd, trap: str) -> None:
    done = containerd.run(PYWASM, IMAGE, "/trap.wasm", trap)
    assert done.returncode == 134
    assert done.stdout == "before\n"
    assert trap in done.stderr.lower()
    innermost, outermost = done.stderr.index("deeper"), done.stderr.index("outer")
    assert innermost < outermost
    assert "Traceback (most recent call last)" not in done.stderr


def test_stack_overflow(containerd: Containerd) -> None:
    done = containerd.run(PYWASM, IMAGE, "/trap.wasm", "stack")
    assert done.returncode == 134
    assert done.stderr.startswith("pywasm: wasm trap: call stack exhausted\n")


@pytest.mark.parametrize("program", ["/status", "/idle.wasm"])
def test_a_user_of_the_image_who_is_nobody(containerd: Containerd, program: str) -> None:
    """containerd takes the ids of a name from the image's own `/etc/passwd`, whatever they are."""
    files = {
        "hello.wasm": images.File(build("hello").read_bytes()),
        "status": images.File(build("status", native=True).read_bytes(), mode=0o755),
        "etc/passwd": images.File(b"none:x:4294967295:0::/:/\nnot:x:-1:-1::/:/\n"),
        "etc/group": images.File(b""),
    }
    for user in ("none", "not"):
        image = images.build(f"localhost/{user}:1", files, user=user)
        containerd.load(image.tar)
        done = containerd.run(PYWASM, image.name, program)
        assert done.returncode != 0
        assert "Uid:" not in done.stdout
        if program == "/hello.wasm":
            assert "process.user.uid: out of range" in done.stderr
