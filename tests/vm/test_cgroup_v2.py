"""Containers on a machine that has nothing but cgroup v2, ours and others beside them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import IMAGE, program
from tests.integration.containerd import PYWASM, RUNC, Containerd, eventually

CRUN = ["--runc-binary", "crun"]


def task(containerd: Containerd, name: str) -> tuple[int, str]:
    """Pid and status, as containerd has them."""
    for line in containerd.checked("task", "list").splitlines():
        fields = line.split()
        if fields[0] == name:
            return int(fields[1]), fields[2]
    raise AssertionError(f"no task {name}")


def cgroup(pid: int | str) -> str:
    """Path of a process's cgroup."""
    with open(f"/proc/{pid}/cgroup") as file:
        (line,) = file  # as there is one hierarchy
    return line.rstrip("\n").removeprefix("0::")


@pytest.fixture
def tracing(tmp_path: Path) -> Iterator[Path]:
    """The kernel's trace of processes that are moved from one cgroup to another."""
    tracefs = tmp_path / "tracing"
    tracefs.mkdir()
    subprocess.run(["mount", "-t", "tracefs", "tracefs", tracefs], check=True)
    try:
        instance = tracefs / "instances" / "pywasm-test"
        instance.mkdir()
        try:
            (instance / "events/cgroup/cgroup_attach_task/enable").write_text("1")
            yield instance / "trace"
        finally:
            (instance / "events/cgroup/cgroup_attach_task/enable").write_text("0")
            instance.rmdir()
    finally:
        subprocess.run(["umount", tracefs], check=True)


@pytest.fixture
def detached(containerd: Containerd) -> Iterator[Callable[..., str]]:
    """Run a guest of the image that does not end by itself."""
    names = []

    def run(runtime: str, guest: str = "idle", options: list[str] | None = None) -> str:
        program_of = program(runtime, guest)
        name = containerd.run_detached(runtime, IMAGE, program_of, options=options or ())
        names.append(name)
        return name

    yield run
    for name in names:
        containerd.remove(name)


Detached = Callable[..., str]


@pytest.mark.parametrize(
    ("runtime", "options"),
    [(PYWASM, []), (RUNC, []), (RUNC, CRUN)],
    ids=["pywasm", "runc", "crun"],
)
@pytest.mark.parametrize(("guest", "status"), [("hello", 0), ("exit3", 3)])
def test_to_its_end(
    containerd: Containerd, runtime: str, options: list[str], guest: str, status: int
) -> None:
    done = containerd.run(runtime, IMAGE, program(runtime, guest), options=options)
    out = "hello from pywasm\n" if guest == "hello" else ""
    assert (done.returncode, done.stdout, done.stderr) == (status, out, "")


def test_born_in_its_cgroup(containerd: Containerd, detached: Detached, tracing: Path) -> None:
    """`CLONE_INTO_CGROUP`: nobody is ever moved there. runc, which does move, shows the trace."""
    ours, other = detached(PYWASM), detached(RUNC)
    for name in (ours, other):
        pid, status = task(containerd, name)
        assert status == "RUNNING"
        path = f"/{containerd.namespace}/{name}"
        assert cgroup(pid) == path
        assert str(pid) in Path(f"/sys/fs/cgroup{path}/cgroup.procs").read_text().split()
    moves = [line for line in tracing.read_text().splitlines() if containerd.namespace in line]
    assert [line for line in moves if f"/{other} " in line]
    assert not [line for line in moves if f"/{ours} " in line]


def test_cgroup_is_controlled(containerd: Containerd, detached: Detached) -> None:
    """The controllers reach the container's cgroup, and count what the guest uses."""
    name = detached(PYWASM, "spin")
    group = Path(f"/sys/fs/cgroup/{containerd.namespace}/{name}")
    controllers = (group / "cgroup.controllers").read_text().split()
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(controllers)
    assert int((group / "memory.current").read_text()) > 0
    assert int((group / "pids.current").read_text()) >= 1

    def used() -> int:
        return int((group / "cpu.stat").read_text().split()[1])

    before = used()
    eventually(lambda: used() > before)


def test_shim_is_not_in_the_guests_cgroup(containerd: Containerd, detached: Detached) -> None:
    name = detached(PYWASM)
    pid, _ = task(containerd, name)
    group = Path(f"/sys/fs/cgroup/{containerd.namespace}/{name}/cgroup.procs")
    assert group.read_text().split() == [str(pid)]
    others = [other for other in containerd.processes() if other != pid]
    assert others
    for other in others:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ctr's, on its way out
            assert re.fullmatch(r"/system.slice/pywasm-\w+\.scope", cgroup(other))


@pytest.mark.parametrize(("signal", "number"), [("TERM", 15), ("KILL", 9)])
def test_killed_and_deleted(
    containerd: Containerd, detached: Detached, signal: str, number: int
) -> None:
    name = detached(PYWASM, "spin")
    containerd.checked("task", "kill", "-s", signal, name)
    eventually(lambda: task(containerd, name)[1] == "STOPPED")
    deleted = containerd.ctr("task", "delete", name)
    assert f"exit code {128 + number}" in deleted.stderr
    assert not os.path.exists(f"/sys/fs/cgroup/{containerd.namespace}/{name}")


def test_beside_runc_and_crun(containerd: Containerd, detached: Detached) -> None:
    """Three at once; as each one ends, the others go on."""
    names = [detached(PYWASM), detached(RUNC), detached(RUNC, options=CRUN)]
    pids = {name: task(containerd, name)[0] for name in names}
    assert {cgroup(pid) for pid in pids.values()} == {
        f"/{containerd.namespace}/{name}" for name in names
    }
    while names:
        ended = names.pop(0)
        containerd.checked("task", "kill", "-s", "KILL", ended)
        eventually(lambda ended=ended: task(containerd, ended)[1] == "STOPPED")  # type: ignore[misc]
        for name in names:
            assert task(containerd, name) == (pids[name], "RUNNING")


def test_runc_under_systemd(containerd: Containerd, detached: Detached) -> None:
    """The reference for our own systemd driver: a transient scope in the slice asked for."""
    name = containerd.new_name()
    path = f"system.slice:pywasm-test:{name}"
    options = ["--runc-systemd-cgroup", "--cgroup", path]
    started = detached(RUNC, options=options)
    pid, _ = task(containerd, started)
    scope = f"pywasm-test-{name}.scope"
    assert cgroup(pid) == f"/system.slice/{scope}"
    shown = ["systemctl", "show", "--property", "ActiveState", "--value", scope]
    assert subprocess.run(shown, stdout=subprocess.PIPE, check=True).stdout == b"active\n"
    containerd.remove(started)
    eventually(
        lambda: subprocess.run(shown, stdout=subprocess.PIPE, check=True).stdout == b"inactive\n"
    )
