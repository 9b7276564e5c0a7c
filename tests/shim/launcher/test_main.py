"""The launcher with its real zygote, in a run directory of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proto.runtime_info_pb2 import RuntimeInfo
from shim.zygote.main import WARMER
from tests.shim.launching import ROOT, launch, refusals, zygotes


def run(
    run_dir: Path, *arguments: str, python: str = sys.executable, build: str = "test"
) -> subprocess.CompletedProcess[bytes]:
    return launch(arguments, {"PYWASM_RUN": str(run_dir)}, python=python, build=build)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    for pid in zygotes(tmp_path / "run"):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_imports_nothing_but_built_in_modules() -> None:
    program = (
        f"import sys; sys.path.insert(0, {ROOT!r}); import shim.launcher.main; print(*sys.modules)"
    )
    python = os.path.realpath(sys.executable)
    bare = subprocess.check_output([python, "-ISEc", "import sys; print(*sys.modules)"])
    ours = subprocess.check_output([python, "-ISEc", program])
    assert set(ours.split()) - set(bare.split()) == {
        b"shim",
        b"shim.launcher",
        b"shim.launcher.main",
    }


def test_version_needs_no_zygote(run_dir: Path) -> None:
    done = run(run_dir, "-v")
    assert b"containerd-shim-pywasm-v1" in done.stdout
    assert not run_dir.exists()


def test_info_is_an_encoded_message(run_dir: Path) -> None:
    done = run(run_dir, "-info")
    assert RuntimeInfo.FromString(done.stdout).name == "io.containerd.pywasm.v1"
    assert done.returncode == 0


def test_features_are_asked_for_as_an_oci_runtime_is(run_dir: Path) -> None:
    """By CRI-O, which takes stdout and stderr together."""
    done = run(run_dir, "features")
    info = RuntimeInfo.FromString(run(run_dir, "-info").stdout)
    assert json.loads(done.stdout + done.stderr) == json.loads(info.features.value)
    assert done.returncode == 0


def test_one_zygote_serves_all_also_those_that_come_at_once(run_dir: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: run(run_dir, "-info"), range(8)))
    assert [one.returncode for one in done] == [0] * 8
    (pid,) = zygotes(run_dir)
    assert run(run_dir, "-info").returncode == 0
    assert zygotes(run_dir) == [pid]
    assert len(list(run_dir.glob("*.sock"))) == 1


def test_none_of_many_at_once_is_refused_while_the_zygote_is_busy(run_dir: Path) -> None:
    run(run_dir, "-info")
    (pid,) = zygotes(run_dir)
    (path,) = run_dir.glob("*.sock")
    assert refusals(str(path), pid, 400) == 0
    assert run(run_dir, "-info").returncode == 0


def test_a_dead_zygote_is_replaced(run_dir: Path) -> None:
    run(run_dir, "-info")
    (first,) = zygotes(run_dir)
    os.kill(first, signal.SIGKILL)
    while os.path.exists(f"/proc/{first}"):
        time.sleep(0.01)
    done = run(run_dir, "-info")
    assert RuntimeInfo.FromString(done.stdout).name == "io.containerd.pywasm.v1"
    assert zygotes(run_dir) != [first]


def test_another_build_has_another_zygote(run_dir: Path) -> None:
    run(run_dir, "-info")
    run(run_dir, "-info", build="newer")
    assert len(set(zygotes(run_dir))) == 2


def test_a_zygote_removes_the_sockets_of_others_that_were_killed(run_dir: Path) -> None:
    run(run_dir, "-info", build="killed")
    (killed,) = zygotes(run_dir)
    (dead,) = run_dir.glob("*.sock")
    run(run_dir, "-info", build="alive")
    os.kill(killed, signal.SIGKILL)
    assert ended(killed)
    assert len(list(run_dir.glob("*.sock"))) == 2
    run(run_dir, "-info", build="newest")
    assert not dead.exists()
    assert len(list(run_dir.glob("*.sock"))) == 2
    assert run(run_dir, "-info", build="killed").returncode == 0


def test_without_a_zygote_the_request_is_served_all_the_same(tmp_path: Path, run_dir: Path) -> None:
    # An interpreter that fails as a zygote, and works when it is asked to serve once.
    stubborn = tmp_path / "python"
    stubborn.write_text(f'#!/bin/sh\n[ "$4" = --once ] && exec {sys.executable} "$@"\nexit 1\n')
    stubborn.chmod(0o755)
    done = run(run_dir, "-info", python=str(stubborn))
    assert RuntimeInfo.FromString(done.stdout).name == "io.containerd.pywasm.v1"


def test_an_error_is_one_line_on_stderr(run_dir: Path) -> None:
    done = run(run_dir, "-namespace", "n", "-id", "x", "stop")
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1
    assert b"'stop'" in done.stderr


def test_refuses_a_run_directory_that_others_may_enter(run_dir: Path) -> None:
    run_dir.mkdir()
    run_dir.chmod(0o777)
    run(run_dir, "-info")
    assert not list(run_dir.glob("zygote-*.sock"))


def test_the_zygote_has_one_thread_and_no_pipe_of_containerds(run_dir: Path) -> None:
    run(run_dir, "-info")
    (pid,) = zygotes(run_dir)
    assert len(os.listdir(f"/proc/{pid}/task")) == 1
    assert os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/fd/2") == str(run_dir / "zygote.log")


def test_children_leave_no_zombies(run_dir: Path) -> None:
    run(run_dir, "-info")
    (pid,) = zygotes(run_dir)
    for _ in range(50):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if len(children) == 1:
            break
        time.sleep(0.02)
    (warmer,) = children
    assert Path(f"/proc/{warmer}/comm").read_text().strip() == WARMER


def test_the_warmer_ends_with_its_zygote(run_dir: Path) -> None:
    run(run_dir, "-info")
    (pid,) = zygotes(run_dir)
    # The child that answered may be there still.
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (warmer,) = (c for c in children if Path(f"/proc/{c}/comm").read_text().strip() == WARMER)
    os.kill(pid, signal.SIGKILL)
    assert ended(int(warmer))


def short_lived(tmp_path: Path, constants: str) -> str:
    """An interpreter for a zygote with other constants."""
    python = tmp_path / "python"
    changed = f"import shim.zygote.main as z; {constants}; z.main()"
    program = f"import sys; sys.path.insert(0, {ROOT!r}); {changed}"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -c "{program}" "$4"\n')
    python.chmod(0o755)
    return str(python)


def ended(pid: int) -> bool:
    """Wait for a process's end, a while."""
    for _ in range(200):
        if not os.path.exists(f"/proc/{pid}"):
            return True
        time.sleep(0.02)
    return False


def test_a_zygote_of_an_older_build_ends_when_nobody_asks_it(tmp_path: Path, run_dir: Path) -> None:
    python = short_lived(tmp_path, "z.IDLE = 0.1")
    run(run_dir, "-info", python=python, build="older")
    (older,) = zygotes(run_dir)
    time.sleep(0.3)
    assert os.path.exists(f"/proc/{older}")
    run(run_dir, "-info", python=python, build="newer")
    (newer,) = set(zygotes(run_dir)) - {older}
    assert ended(older)
    time.sleep(0.3)
    assert os.path.exists(f"/proc/{newer}")
    assert len(list(run_dir.glob("*.sock"))) == 1


def test_a_zygote_whose_socket_was_removed_ends(tmp_path: Path, run_dir: Path) -> None:
    python = short_lived(tmp_path, "z.IDLE = 0.1")
    run(run_dir, "-info", python=python)
    (first,) = zygotes(run_dir)
    (path,) = run_dir.glob("*.sock")
    path.unlink()
    run(run_dir, "-info", python=python)
    assert ended(first)
    assert path.exists()


def test_a_zygote_makes_place_for_a_new_one_in_time(tmp_path: Path, run_dir: Path) -> None:
    python = short_lived(tmp_path, "z.FORKS = 2")
    seen = []
    for _ in range(6):
        done = run(run_dir, "-info", python=python)
        assert RuntimeInfo.FromString(done.stdout).name == "io.containerd.pywasm.v1"
        seen += zygotes(run_dir)
    assert len(set(seen)) == 3
    assert all(ended(pid) for pid in set(seen) - set(zygotes(run_dir)))


def test_the_log_is_bounded_and_stays_the_same_file(run_dir: Path) -> None:
    """Who has it open, as a shim has, writes to the one that is read."""
    log, old = run_dir / "zygote.log", run_dir / "zygote.log.1"
    run(run_dir, "-info")
    for said in (b"a" * (3 << 20), b"b" * (1 << 20) + b"c"):
        with log.open("ab") as writer:
            writer.write(said)
            run(run_dir, "-info")  # the zygote looks before it waits for the next one
            run(run_dir, "-info")
            assert log.stat().st_size < 1 << 20
            assert old.read_bytes() == said[-(1 << 20) :]
            writer.write(b"later")
            writer.flush()
            assert log.read_bytes().endswith(b"later")
    assert old.stat().st_mode & 0o777 == 0o600


def test_a_log_that_is_too_long_is_moved_by_who_starts_a_zygote(run_dir: Path) -> None:
    run_dir.mkdir(mode=0o700)
    (run_dir / "zygote.log").write_bytes(b"x" * (2 << 20))
    run(run_dir, "-info", python="/bin/false")  # which never comes to look itself
    assert (run_dir / "zygote.log").stat().st_size == 0
    assert (run_dir / "zygote.log.1").stat().st_size == 1 << 20
