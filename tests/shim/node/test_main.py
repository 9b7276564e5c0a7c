"""The command line of `pywasm`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.node import containerd, doctor, processes
from shim.node.main import main
from shim.node.registration import Node, installation, installed_shim
from tests.integration.containerd import eventually
from tests.shim.node import corpus


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(corpus.KUBEADM)
    return path


def test_print_changes_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "--print", "--config", str(config), "--option", "Engine=wasmtime"]) == 0
    printed = capsys.readouterr().out
    assert 'Engine = "wasmtime"' in printed
    assert "SystemdCgroup" not in printed
    assert config.read_text() == corpus.KUBEADM


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--option", "SystemdCgroup"], "expected NAME=VALUE"),
        (["--option", "SystemdCgroup=7"], "SystemdCgroup"),
        (["--handler", "Not A Name"], "RuntimeClass"),
        (["--containerd", "/nowhere/containerd"], "no such program"),
        (["--bin-dir", "/srv/nowhere"], "not on containerd's PATH"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["install", "--config", str(config), *arguments]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("pywasm: ")
    assert message in complaint
    assert complaint.count("\n") == 1
    assert config.read_text() == corpus.KUBEADM


def test_waiting_ends_when_it_is_told_to() -> None:
    with subprocess.Popen([f"{sys.prefix}/bin/pywasm", "pod", "wait"]) as waiting:
        try:
            call = Path(f"/proc/{waiting.pid}/syscall")
            eventually(lambda: call.read_text().startswith(("128 ", "137 ")))  # rt_sigtimedwait
            waiting.send_signal(signal.SIGTERM)
            assert waiting.wait(30) == 0
        finally:
            waiting.kill()


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """For a zygote of the test's own."""
    path = tmp_path / "run"
    path.mkdir(0o700)
    monkeypatch.setenv("PYWASM_RUN", str(path))
    monkeypatch.setenv("PYWASM_CONFIG", str(tmp_path / "settings.toml"))
    monkeypatch.setenv("PYWASM_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(doctor, "KUBELETS", (str(tmp_path),))
    yield path
    for lock in path.glob("zygote-*.lock"):
        pid = int(lock.read_text())
        assert pid in processes.of(installation(), processes.ZYGOTE)
        os.kill(pid, signal.SIGTERM)


def test_doctor(
    config: Path, tmp_path: Path, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{os.path.dirname(installed_shim())}:{os.environ['PATH']}:/usr/sbin"
    monkeypatch.setattr(containerd, "search_path", lambda _pid: path)
    node = Node(str(config))
    said: list[str] = []
    assert not doctor.report(node, "pywasm", said.append)
    (failed,) = [line for line in said if line.startswith("FAIL")]
    missing = f'{config}: no runtime "pywasm", so no pods of Kubernetes: run `pywasm install`'
    assert failed == f"FAIL  {missing}"
    monkeypatch.setattr(doctor, "KUBELETS", (str(tmp_path / "none"),))
    said.clear()
    assert doctor.report(node, "pywasm", said.append)  # ctr needs no registration
    assert f"warn  {missing}" in said

    monkeypatch.setattr("shim.node.files.link", lambda *_: False)
    assert main(["install", "--config", str(config), "--bin-dir", "/usr/sbin"]) == 0
    said.clear()
    assert doctor.report(node, "pywasm", said.append)
    assert not [line for line in said if line.startswith("FAIL")]
    text = "\n".join(said)
    for part in ("kernel", "cgroup", "engine wasmtime", "runc", "the zygote answers", "registered"):
        assert part in text

    (tmp_path / "settings.toml").write_text("engine = 'none'\n")
    monkeypatch.setattr(containerd, "search_path", lambda _pid: "/nowhere")
    said.clear()
    assert not doctor.report(node, "pywasm", said.append)
    failed_lines = "\n".join(line for line in said if line.startswith("FAIL"))
    assert "settings.toml: " in failed_lines
    assert "no containerd-shim-pywasm-v1 on containerd's PATH (/nowhere)" in failed_lines
    assert "warn  no runc" in "\n".join(said)


def test_doctor_finds_directories_that_the_shim_refuses(
    config: Path, tmp_path: Path, run_directory: Path
) -> None:
    def report() -> str:
        said: list[str] = []
        doctor.report(Node(str(config)), "pywasm", said.append)
        return "\n".join(said)

    state = tmp_path / "state"
    assert f"ok    compiled modules in {state}/artifacts" in report()
    state.chmod(0o755)
    assert f"FAIL  {state}: others may enter the directory" in report()
    state.chmod(0o700)
    os.chown(state / "artifacts", 7, 0)
    assert f"FAIL  {state}/artifacts: others may write to the directory" in report()
    os.chown(state / "artifacts", 0, 0)
    (run_directory / "s").chmod(0o777)
    assert f"FAIL  {run_directory}/s: expected a directory that only its owner" in report()
    (run_directory / "s").chmod(0o700)
    run_directory.chmod(0o755)
    assert f"FAIL  {run_directory}: others may enter it" in report()
    run_directory.chmod(0o700)
