from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import lab


@pytest.fixture
def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    path = tmp_path / "containerd-shim-other-v2"
    path.touch(0o755)
    return path


def test_a_shim_by_its_path(shim: Path) -> None:
    path, kind = lab.other(str(shim))
    assert path == str(shim)
    assert kind == lab.Kind("other-v2", "io.containerd.other.v2", ".wasm")
    assert os.environ["PATH"].startswith(f"{shim.parent}{os.pathsep}")


def test_a_shim_on_path(shim: Path) -> None:
    os.environ["PATH"] += f"{os.pathsep}{shim.parent}"
    assert lab.other(shim.name)[0] == str(shim)


@pytest.mark.parametrize("name", ["containerd-shim-other-v3", "other", "runc", "/bin/true"])
def test_what_is_no_shim(shim: Path, name: str) -> None:
    with pytest.raises(SystemExit, match="there is no shim"):
        lab.other(name)
