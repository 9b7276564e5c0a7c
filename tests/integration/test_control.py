"""Exec, pause, update and metrics as `ctr` does them, under us and under runc alike."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.client import Client, Events
from tests.integration.conftest import IMAGE, program
from tests.integration.containerd import PYWASM, Containerd, eventually


@pytest.fixture
def running(containerd: Containerd, runtime: str) -> Iterator[str]:
    name = containerd.run_detached(runtime, IMAGE, program(runtime, "spin"))
    yield name
    containerd.remove(name)


def pid_of(containerd: Containerd, name: str) -> int:
    lines = containerd.checked("task", "list").splitlines()[1:]
    return next(int(line.split()[1]) for line in lines if line.split()[0] == name)


def test_exec(containerd: Containerd, runtime: str, running: str) -> None:
    options = ["task", "exec", "--exec-id", "e", running]
    done = containerd.ctr(*options, program(runtime, "hello"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello from pywasm\n", "")
    done = containerd.ctr(*options, program(runtime, "exit3"), "42")
    assert done.returncode == 42
    done = containerd.ctr(*options, program(runtime, "cat"), input="through\n")
    assert (done.returncode, done.stdout) == (0, "through\n")


def test_exec_of_what_is_not_there(containerd: Containerd, runtime: str, running: str) -> None:
    done = containerd.ctr("task", "exec", "--exec-id", "e", running, "/bin/sh")
    assert done.returncode != 0
    assert "/bin/sh" in done.stderr
    # The id is free again.
    options = ["task", "exec", "--exec-id", "e", running]
    assert containerd.ctr(*options, program(runtime, "hello")).returncode == 0


def test_a_native_exec_in_a_wasm_container(containerd: Containerd) -> None:
    name = containerd.run_detached(PYWASM, IMAGE, "/idle.wasm")
    try:
        done = containerd.ctr("task", "exec", "--exec-id", "e", name, "/hello")
        assert (done.returncode, done.stdout) == (0, "hello from pywasm\n")
    finally:
        containerd.remove(name)


def cpu_time(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_pause_and_resume(containerd: Containerd, running: str) -> None:
    pid = pid_of(containerd, running)
    containerd.checked("task", "pause", running)
    assert "PAUSED" in containerd.checked("task", "list")
    before = cpu_time(pid)
    time.sleep(0.1)
    assert cpu_time(pid) == before
    containerd.checked("task", "resume", running)
    eventually(lambda: cpu_time(pid) > before)


def test_metrics(containerd: Containerd, running: str) -> None:
    told = containerd.checked("task", "metrics", running)
    numbers = dict(line.split()[:2] for line in told.splitlines() if len(line.split()) == 2)
    assert int(numbers["pids.current"]) >= 1
    assert any(
        name.startswith("memory.") and int(n) > 0 for name, n in numbers.items() if n.isdigit()
    )


def test_events_of_an_exec(
    containerd: Containerd, client: Client, events: Events, running: str, runtime: str
) -> None:
    options = ["task", "exec", "--exec-id", "e", running]
    assert containerd.ctr(*options, program(runtime, "exit3")).returncode == 3

    def ended() -> bool:
        return any(t == "/tasks/exit" and e.id == "e" for t, e in events.of(running))

    eventually(ended)
    of_it = [(t, e) for t, e in events.of(running) if "exec" in t or t == "/tasks/exit"]
    assert [topic for topic, _ in of_it] == [
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
    ]
    assert (of_it[-1][1].id, of_it[-1][1].exit_status) == ("e", 3)
    assert of_it[-1][1].pid == of_it[1][1].pid


def test_the_end_of_the_container_ends_its_execs(
    containerd: Containerd, runtime: str, running: str
) -> None:
    command = containerd.ctr_command(
        "task", "exec", "--exec-id", "e", running, program(runtime, "spin")
    )
    child = os.posix_spawnp(command[0], command, containerd.env)
    try:
        first = pid_of(containerd, running)

        def spins() -> bool:
            listed = containerd.checked("task", "ps", running).splitlines()[1:]
            others = [pid for pid in (int(line.split()[0]) for line in listed) if pid != first]
            # It is there before it runs: what it does until then takes much less than this.
            with suppress(FileNotFoundError):  # what becomes the exec is another process at first
                return any(cpu_time(pid) > 30 for pid in others)
            return False

        eventually(spins)
        containerd.checked("task", "kill", "--signal", "KILL", running)
    finally:
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGKILL
