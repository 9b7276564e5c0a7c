from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from oci.decoding import SpecError
from oci.runtime import Rlimit
from shim.linux import limits
from shim.linux.credentials import RLIMITS
from shim.linux.procfs import open_proc

Alive = Callable[..., AbstractContextManager[int]]

# As /proc/PID/limits calls them (proc_pid_limits(5)).
SHOWN = {
    "RLIMIT_AS": "Max address space",
    "RLIMIT_CORE": "Max core file size",
    "RLIMIT_CPU": "Max cpu time",
    "RLIMIT_DATA": "Max data size",
    "RLIMIT_FSIZE": "Max file size",
    "RLIMIT_LOCKS": "Max file locks",
    "RLIMIT_MEMLOCK": "Max locked memory",
    "RLIMIT_MSGQUEUE": "Max msgqueue size",
    "RLIMIT_NICE": "Max nice priority",
    "RLIMIT_NOFILE": "Max open files",
    "RLIMIT_NPROC": "Max processes",
    "RLIMIT_RSS": "Max resident set",
    "RLIMIT_RTPRIO": "Max realtime priority",
    "RLIMIT_RTTIME": "Max realtime timeout",
    "RLIMIT_SIGPENDING": "Max pending signals",
    "RLIMIT_STACK": "Max stack size",
}


def shown(pid: int) -> dict[str, list[str]]:
    with open(f"/proc/{pid}/limits") as file:
        lines = file.read().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[:2] for line in lines}


def test_every_limit_as_the_kernel_shows_it(alive: Alive) -> None:
    assert set(SHOWN) == set(RLIMITS)
    before = shown(os.getpid())
    hard = {name: before[title][1] for name, title in SHOWN.items()}
    # No higher than ours, and enough to live on.
    wanted = {
        name: (2**29 - 1, 2**30) if value == "unlimited" else (int(value) // 2, int(value))
        for name, value in hard.items()
    }
    wanted["RLIMIT_AS"] = (2**40, 2**64 - 1)
    given = [Rlimit(type=name, soft=soft, hard=top) for name, (soft, top) in wanted.items()]

    def entry() -> None:
        limits.check_rlimits(given)
        limits.set_rlimits(given)

    with alive(entry) as pid:
        found = shown(pid)
    for name, (soft, top) in wanted.items():
        expected = [str(soft), "unlimited" if top == 2**64 - 1 else str(top)]
        assert found[SHOWN[name]] == expected, name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([Rlimit(type="RLIMIT_FOO")], "process.rlimits[0].type: unknown limit 'RLIMIT_FOO'"),
        ([Rlimit(type="NOFILE")], "process.rlimits[0].type: unknown limit 'NOFILE'"),
        (
            [Rlimit(type="RLIMIT_CORE"), Rlimit(type="RLIMIT_CORE")],
            "process.rlimits[1].type: RLIMIT_CORE is there twice",
        ),
        (
            [Rlimit(type="RLIMIT_CORE", soft=2, hard=1)],
            "process.rlimits[0]: RLIMIT_CORE: soft 2 and hard 1 are no limits",
        ),
    ],
)
def test_limits_that_are_none(given: list[Rlimit], message: str) -> None:
    with pytest.raises(SpecError) as e:
        limits.check_rlimits(given)
    assert str(e.value) == message


def test_oom_score(alive: Alive) -> None:
    def entry() -> None:
        proc = open_proc()
        os.chroot("/proc/self/fdinfo")  # nothing of the host is in sight any more
        limits.set_oom_score_adj(345, proc)

    with alive(entry) as pid, open(f"/proc/{pid}/oom_score_adj") as file:
        assert file.read() == "345\n"


def test_oom_score_errors(in_child: Callable[..., None]) -> None:
    proc = open_proc()

    def entry() -> None:
        limits.set_oom_score_adj(10, proc)
        os.setresuid(1000, 1000, 1000)
        with pytest.raises(PermissionError) as e:
            limits.set_oom_score_adj(-5, proc)
        assert e.value.filename == "process.oomScoreAdj"

    try:
        with pytest.raises(SpecError, match=r"process.oomScoreAdj: 1001 is not in -1000..1000"):
            limits.set_oom_score_adj(1001, proc)
        in_child(entry)
    finally:
        os.close(proc)
