"""Registering the runtime where systemd runs containerd."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.node import containerd, registration
from shim.node.containerd_config import ConfigurationError, Runtime
from shim.node.registration import Node

UNIT = "pywasm-test-containerd"
CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
  address = "{directory}/c.sock"
"""
SERVICE = """\
[Service]
Type=notify
Delegate=yes
KillMode=process
ExecStartPre=/bin/sh -c '! grep -s refused {directory}/config.toml'
ExecStart=/usr/bin/containerd --config {directory}/config.toml
"""


def systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], stdout=subprocess.PIPE, check=True, text=True)
    return done.stdout.strip()


def main_pid() -> str:
    return systemctl("show", "--property=MainPID", "--value", UNIT)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    unit = Path(f"/run/systemd/system/{UNIT}.service")
    unit.write_text(SERVICE.format(directory=tmp_path))
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(directory=tmp_path))
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(containerd, "search_path", lambda _pid: f"/usr/bin:{tmp_path}/bin")
    monkeypatch.setattr(registration, "installation", lambda: str(tmp_path))
    systemctl("daemon-reload")
    systemctl("start", UNIT)
    try:
        yield Node(str(config), str(tmp_path / "bin"), unit=UNIT)
    finally:
        systemctl("stop", UNIT)
        unit.unlink()
        systemctl("daemon-reload")


def test_it_is_restarted_only_if_something_has_changed(node: Node) -> None:
    before, text = main_pid(), Path(node.config).read_text()
    said: list[str] = []
    registration.register(node, Runtime(), said.append)
    registered = main_pid()
    assert said[-2] == f"{UNIT}: restarted"
    assert said[-1] == f'the containerd that runs (pid {registered}) knows runtime "pywasm"'
    assert registered != before
    registration.register(node, Runtime(), said.append)
    assert main_pid() == registered
    registration.unregister(node, said.append)
    assert Path(node.config).read_text() == text
    assert main_pid() != registered
    assert systemctl("is-active", UNIT) == "active"


def test_it_serves_on_where_it_does_not_start_with_the_new_one(node: Node) -> None:
    text = Path(node.config).read_text()
    with pytest.raises(ConfigurationError, match=f"systemctl restart {UNIT}: Job for {UNIT}"):
        registration.register(node, Runtime(annotations=("refused",)), lambda _: None)
    assert Path(node.config).read_text() == text
    assert systemctl("is-active", UNIT) == "active"
