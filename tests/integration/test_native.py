"""Native images under our runtime, as `ctr` runs them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.guests.build import build
from tests.integration import images
from tests.integration.containerd import PYWASM, TIMEOUT, Containerd, eventually
from tests.integration.test_terminal import Person

IMAGE = "localhost/native:1"
GUESTS = ("hello", "args_env", "cat", "exit3", "idle", "tty")


@pytest.fixture(scope="module", autouse=True)
def _image(containerd: Containerd) -> None:
    files = {n: images.File(build(n, native=True).read_bytes(), mode=0o755) for n in GUESTS}
    files["hello.wasm"] = images.File(build("hello").read_bytes())
    files["script"] = images.File(b"#!/args_env from\n", mode=0o755)
    containerd.load(images.build(IMAGE, files, env=["PATH=/"]).tar)


@pytest.fixture
def idle(containerd: Containerd) -> Iterator[str]:
    name = containerd.run_detached(PYWASM, IMAGE, "/idle")
    yield name
    containerd.remove(name)


def test_run(containerd: Containerd) -> None:
    done = containerd.run(PYWASM, IMAGE, "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello from pywasm\n", "")
    assert containerd.run(PYWASM, IMAGE, "/exit3", "42").returncode == 42
    done = containerd.run(PYWASM, IMAGE, "/cat", input="through\n")
    assert (done.returncode, done.stdout) == (0, "through\n")
    assert containerd.run(PYWASM, IMAGE, "/hello.wasm").stdout == "hello from pywasm\n"


def test_script(containerd: Containerd) -> None:
    done = containerd.run(PYWASM, IMAGE, "/script", "me")
    assert done.returncode == 0
    assert "from" in done.stdout
    assert "me" in done.stdout


def test_what_cannot_be_executed(containerd: Containerd) -> None:
    forced = ("--annotation", "dev.pywasm.handler=native")
    done = containerd.run(PYWASM, IMAGE, "/none", options=forced)
    assert done.returncode != 0
    assert "OCI runtime create failed" in done.stderr
    assert "/none" in done.stderr


def test_exec(containerd: Containerd, idle: str) -> None:
    options = ["task", "exec", "--exec-id", "e", idle]
    assert containerd.ctr(*options, "/hello").stdout == "hello from pywasm\n"
    assert containerd.ctr(*options, "exit3", "42").returncode == 42
    done = containerd.ctr(*options, "/cat", input="through\n")
    assert (done.returncode, done.stdout) == (0, "through\n")
    done = containerd.ctr(*options, "/none")
    assert done.returncode != 0
    assert "OCI runtime exec failed" in done.stderr


def test_exec_at_a_terminal(containerd: Containerd, idle: str) -> None:
    person = Person(containerd, "task", "exec", "-t", "--exec-id", "e", idle, "/tty", "size")
    try:
        _talk(person)
    finally:
        person.leave()


def test_a_terminal(containerd: Containerd) -> None:
    name = containerd.new_name()
    options = [*containerd.run_options(PYWASM), "-t", "--rm"]
    person = Person(containerd, *options, IMAGE, name, "/tty", "size")
    try:
        _talk(person)
    finally:
        person.leave()
        containerd.remove(name)


def _talk(person: Person) -> None:
    person.see(b"tty 1 1 1\n")
    person.see(b"size 80 25\n")
    person.type(b"one\r")
    person.see(b"one\ngot 'one'\n")
    person.type(b"\4")
    assert person.see_all().endswith(b"end\n")
    assert person.ctr.wait(TIMEOUT) == 7


def test_control(containerd: Containerd, idle: str) -> None:
    containerd.checked("task", "pause", idle)
    assert "PAUSED" in containerd.checked("task", "list")
    containerd.checked("task", "resume", idle)
    assert "memory" in containerd.checked("task", "metrics", idle)
    assert len(containerd.checked("task", "ps", idle).splitlines()) == 2
    containerd.checked("task", "kill", "--all", "--signal", "KILL", idle)
    eventually(lambda: "STOPPED" in containerd.checked("task", "list"))


def test_the_shim_is_killed(containerd: Containerd, idle: str) -> None:
    (shim,) = [pid for pid, cmd in containerd.processes().items() if _is_shim(pid)]
    os.kill(shim, signal.SIGKILL)
    eventually(lambda: idle not in containerd.checked("task", "list"))


def _is_shim(pid: int) -> bool:
    with open(f"/proc/{pid}/comm") as file:
        return file.read() == "pywasm-shim\n"
