"""A container's life as a user sees it, through `ctr`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from shim.engines import engines
from shim.engines.flaws import known
from tests.integration import specs
from tests.integration.client import Client
from tests.integration.conftest import IMAGE, program
from tests.integration.containerd import PYWASM, RUNC, Containerd, eventually
from tests.integration.images import Image


def test_hello(containerd: Containerd, runtime: str) -> None:
    done = containerd.run(runtime, IMAGE, program(runtime, "hello"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello from pywasm\n", "")


def test_entrypoint_of_the_image(containerd: Containerd) -> None:
    done = containerd.run(PYWASM, IMAGE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello from pywasm\n", "")


def test_arguments_and_environment(containerd: Containerd, runtime: str) -> None:
    command = (program(runtime, "args_env"), "one", "two words", "")
    done = containerd.run(runtime, IMAGE, *command, options=["--env", "ASKED=for=this"])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("arg")] == [
        f"arg {number}: {argument}" for number, argument in enumerate(command)
    ]
    assert {"env: FROM_IMAGE=yes", "env: ASKED=for=this"} <= set(lines)


@pytest.mark.parametrize("status", [0, 1, 3, 42, 125])
def test_exit_status(containerd: Containerd, runtime: str, status: int) -> None:
    done = containerd.run(runtime, IMAGE, program(runtime, "exit3"), str(status))
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_a_module_that_an_engine_gets_wrong(containerd: Containerd) -> None:
    assert containerd.run(PYWASM, IMAGE, "/simd.wat").returncode == 239
    for engine in engines():
        options = ["--annotation", f"dev.pywasm.engine={engine.name}"]
        done = containerd.run(PYWASM, IMAGE, "/simd.wat", options=options)
        if known(engine):
            assert done.returncode == 1
            unsafe = f"/simd.wat: {engine.name} {engine.version} is not safe for a module that uses"
            assert unsafe in done.stderr
        else:
            assert done.returncode == 239


def test_stdin_to_its_end(containerd: Containerd, runtime: str) -> None:
    text = "".join(f"line {number}\n" for number in range(20_000))
    done = containerd.run(runtime, IMAGE, program(runtime, "cat"), input=text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == text


@pytest.mark.parametrize(
    ("where", "out", "err"), [("stdout", 2, 0), ("stderr", 0, 2), ("both", 2, 2)]
)
def test_stdout_and_stderr_are_apart(
    containerd: Containerd, runtime: str, where: str, out: int, err: int
) -> None:
    done = containerd.run(runtime, IMAGE, program(runtime, "stdio"), "2", where)
    assert done.returncode == 0
    for text, megabytes in ((done.stdout, out), (done.stderr, err)):
        assert [int(line) for line in text.splitlines()] == list(range(megabytes * 16384))


def test_environment_is_the_containers_alone(containerd: Containerd) -> None:
    done = containerd.run(PYWASM, IMAGE, "/args_env.wasm")
    assert "PYWASM" not in done.stdout
    assert containerd.directory not in done.stdout


def test_files_of_a_bind_mount(containerd: Containerd, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    mount = f"type=bind,src={tmp_path},dst=/data,options=rbind:rw"
    done = containerd.run(PYWASM, IMAGE, "/files.wasm", "/data", options=["--mount", mount])
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "FAIL" not in done.stdout
    assert "ok create\n" in done.stdout


def test_files_of_the_rootfs(containerd: Containerd) -> None:
    """In the working directory, which is made where the image has none."""
    done = containerd.run(PYWASM, IMAGE, "/files.wasm", "/work", options=["--cwd", "/work"])
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "ok create\n" in done.stdout


def test_read_only_rootfs(containerd: Containerd) -> None:
    done = containerd.run(PYWASM, IMAGE, "/files.wasm", "/", options=["--read-only"])
    assert done.returncode != 0
    assert "FAIL create: " in done.stdout


# A native PID 1 without a handler ignores SIGTERM, so that is asked of ours only.
@pytest.mark.parametrize("guest", ["spin", "idle"])
@pytest.mark.parametrize(
    ("runtime", "name", "number"), [(PYWASM, "TERM", 15), (PYWASM, "KILL", 9), (RUNC, "KILL", 9)]
)
def test_detached_then_killed(
    containerd: Containerd, runtime: str, guest: str, name: str, number: int
) -> None:
    container = containerd.run_detached(runtime, IMAGE, program(runtime, guest))
    try:
        pid, status = _task(containerd, container)
        assert status == "RUNNING"
        assert os.path.exists(f"/proc/{pid}")
        assert f" {pid} " in containerd.checked("task", "ps", container).replace("\n", " ") + " "

        containerd.checked("task", "kill", "-s", name, container)
        eventually(lambda: _task(containerd, container)[1] == "STOPPED")
        deleted = containerd.ctr("task", "delete", container)
        assert deleted.returncode == 0
        assert f"exit code {128 + number}" in deleted.stderr
        assert container not in containerd.checked("task", "list")
    finally:
        containerd.remove(container)


def _task(containerd: Containerd, name: str) -> tuple[int, str]:
    for line in containerd.checked("task", "list").splitlines():
        fields = line.split()
        if fields[0] == name:
            return int(fields[1]), fields[2]
    raise AssertionError(f"no task {name}")


def test_term_ends_a_spinning_guest_in_the_foreground(containerd: Containerd) -> None:
    name = containerd.new_name()
    log = f"{containerd.directory}/{name}.out"
    options = [*containerd.run_options(PYWASM), "--rm"]
    containerd.spawn(containerd.ctr_command(*options, IMAGE, name, "/spin.wasm"), log)
    eventually(lambda: "spinning" in Path(log).read_text())
    containerd.checked("task", "kill", "-s", "TERM", name)
    eventually(lambda: name not in containerd.checked("containers", "list", "-q").split())


def test_minimal_document(
    containerd: Containerd, client: Client, image: Image, tmp_path: Path
) -> None:
    """A config.json of only `root` and `process`; the root is a directory, not a snapshot."""
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    (mount,) = client.prepare("by-hand", image.chain_id)
    command = ["mount", "-t", mount.type, mount.source, "-o", ",".join(mount.options), str(rootfs)]
    subprocess.run(command, check=True)
    try:
        spec = specs.minimal("/hello.wasm")
        spec["root"]["path"] = str(rootfs)
        config = tmp_path / "config.json"
        config.write_text(json.dumps(spec))
        options = [*containerd.run_options(PYWASM), "--rm", "--config", str(config)]
        done = containerd.ctr(*options, containerd.new_name())
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello from pywasm\n", "")
        assert containerd.leftovers() == []  # also: what we mounted is still ours to unmount
    finally:
        subprocess.run(["umount", str(rootfs)], check=True)
        client.remove_snapshot("by-hand")


def test_forty_in_a_row_then_eight_at_a_time(containerd: Containerd) -> None:
    """Enough to meet what happens once in a while: a start beside an end, a shim just leaving."""
    for _ in range(40):
        done = containerd.run(PYWASM, IMAGE, "/hello.wasm")
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello from pywasm\n", "")
    names = [containerd.new_name() for _ in range(24)]
    options = [*containerd.run_options(PYWASM), "--rm"]
    logs = {name: Path(containerd.directory, f"{name}.out") for name in names}
    for start in range(0, len(names), 8):
        batch = names[start : start + 8]
        for name in batch:
            command = containerd.ctr_command(*options, IMAGE, name, "/hello.wasm")
            containerd.spawn(command, str(logs[name]))
        eventually(lambda: not containerd.processes())
        assert [logs[name].read_text() for name in batch] == ["hello from pywasm\n"] * len(batch)
