"""Registering with real containerds, which say what they make of it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.node import containerd, crio, files, registration
from shim.node.containerd_config import ConfigurationError, Runtime
from shim.node.registration import Node
from tests.integration.versions import bin_dirs, version_of
from tests.shim.node import corpus

VERSION_2 = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes'


@pytest.fixture(scope="module", params=bin_dirs(), ids=version_of)
def binary(request: pytest.FixtureRequest) -> str:
    found = shutil.which("containerd", path=request.param or None)
    assert found, "run scripts/setup --containerd"
    return found


@pytest.fixture
def node(tmp_path: Path, binary: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    monkeypatch.setattr(containerd, "search_path", lambda _pid: f"/bin:{bin_dir}")
    # No zygote of another test is to end.
    monkeypatch.setattr(registration, "installation", lambda: str(tmp_path))
    yield Node(str(tmp_path / "config.toml"), str(bin_dir), binary)
    left = [path.name for path in tmp_path.rglob("*") if path.name.endswith(f".{os.getpid()}")]
    assert left == []


def silent(_line: str) -> None:
    pass


def types(node: Node) -> dict[str, str]:
    found = containerd.runtimes(node.containerd, node.config)
    return {name: table["runtime_type"] for name, table in found.items()}


def config_default(node: Node) -> str:
    command = [node.containerd, "config", "default"]
    text = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return text.replace("/etc/containerd/conf.d", f"{os.path.dirname(node.config)}/conf.d")


@pytest.mark.parametrize("name", ["missing", "debian", "kubeadm", "gpu", "default"])
def test_every_runtime_is_seen_and_then_ours_no_more(node: Node, name: str) -> None:
    config = Path(node.config)
    text = config_default(node) if name == "default" else corpus.OF_VERSION_2[name]
    if text is not None:
        config.write_bytes(text.encode())
    before = types(node)  # a missing one has the default
    assert before.get("runc") == "io.containerd.runc.v2"
    registration.register(node, Runtime(), silent)
    assert types(node) == before | {"pywasm": "io.containerd.pywasm.v1"}
    link = os.path.join(node.bin_dir, registration.SHIM)
    assert os.readlink(link) == registration.installed_shim()

    said: list[str] = []
    registration.register(node, Runtime(), said.append)
    assert said == [
        f"{node.config}: pywasm is registered already",
        f"no containerd runs with {node.config}",
    ]

    registration.unregister(node, silent)
    assert types(node) == before
    assert not os.path.lexists(link)
    if text:
        assert config.read_bytes().decode() == text + ("" if text.endswith("\n") else "\n")
    registration.unregister(node, silent)


def test_annotations_and_options_arrive(node: Node) -> None:
    Path(node.config).write_text(corpus.KUBEADM)
    registration.register(node, Runtime(options={"Engine": "wasmtime"}), silent)
    table = containerd.runtimes(node.containerd, node.config)["pywasm"]
    assert table["pod_annotations"] == ["dev.pywasm.*", "dev.pywasm.*/*"]
    assert table["container_annotations"] == ["dev.pywasm.*", "dev.pywasm.*/*"]
    assert table["options"] == {"Engine": "wasmtime"}
    # And none without need, whatever an earlier version of us has written.
    registration.register(node, Runtime(), silent)
    assert not containerd.runtimes(node.containerd, node.config)["pywasm"].get("options")


def test_with_an_import_that_has_a_table_of_the_plugin(node: Node) -> None:
    drop_in = Path(node.config).parent / "conf.d/99-gpu.toml"
    drop_in.parent.mkdir()
    drop_in.write_text(
        f"version = 2\n{VERSION_2}.runc]\nruntime_type = 'io.containerd.runc.v2'\n"
        f"{VERSION_2}.gpu]\nruntime_type = 'io.containerd.runc.v2'\n"
    )
    # containerd 1.6 takes a relative pattern from its working directory.
    imports = f'imports = ["{drop_in.parent}/*.toml"]\n'
    Path(node.config).write_text(corpus.GPU.replace("version = 2\n", "version = 2\n" + imports))
    before = types(node)
    assert before.keys() >= {"runc", "gpu"}
    registration.register(node, Runtime(), silent)
    assert types(node) == before | {"pywasm": "io.containerd.pywasm.v1"}
    registration.unregister(node, silent)
    assert types(node) == before


def test_a_file_of_version_3(node: Node) -> None:
    if containerd.newest_version(node.containerd) < 3:
        pytest.skip("containerd 1.x does not know version 3")
    config = Path(node.config)
    for imports in ("", 'imports = ["conf.d/*.toml"]\n'):
        config.write_text(corpus.VERSION_3.replace("version = 3\n", "version = 3\n" + imports))
        (config.parent / "conf.d").mkdir(exist_ok=True)
        text, before = config.read_text(), types(node)
        registration.register(node, Runtime(), silent)
        assert (config.read_text() == text) is bool(imports)
        assert types(node) == before | {"pywasm": "io.containerd.pywasm.v1"}
        table = containerd.runtimes(node.containerd, node.config)["pywasm"]
        assert not table.get("options")
        registration.unregister(node, silent)
        assert config.read_text() == text
        assert types(node) == before


def test_pods_by_the_runtime_itself(node: Node) -> None:
    if containerd.newest_version(node.containerd) < 3:
        pytest.skip("containerd 1.x has no sandboxers")
    for text in (corpus.KUBEADM, corpus.VERSION_3):
        Path(node.config).write_text(text)
        registration.register(node, Runtime(sandboxer="shim"), silent)
        found = containerd.runtimes(node.containerd, node.config)
        assert (found["pywasm"]["sandboxer"], found["runc"]["sandboxer"]) == ("shim", "podsandbox")


def test_mode_owner_and_links_stay(node: Node, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "containerd.toml"
    real.parent.mkdir()
    real.write_text(corpus.KUBEADM)
    real.chmod(0o640)
    os.chown(real, 7, 8)
    os.symlink("elsewhere/containerd.toml", node.config)
    registration.register(node, Runtime(), silent)
    assert os.readlink(node.config) == "elsewhere/containerd.toml"
    status = real.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 7, 8)
    assert Path(f"{real}{files.BACKUP}").read_text() == corpus.KUBEADM


def access(path: str | Path) -> tuple[int, int, int]:
    status = os.lstat(path)
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def test_nobody_else_may_read_what_was_secret(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, elsewhere = Path(node.config), tmp_path / "elsewhere"
    config.write_text(corpus.KUBEADM)
    config.chmod(0o600)
    os.chown(config, 7, 8)
    os.setxattr(config, "user.label", b"secret")
    backup = Path(f"{config}{files.BACKUP}")
    elsewhere.write_text("")
    backup.symlink_to(elsewhere)
    at_first = []
    fchown = os.fchown

    def seen(fd: int, uid: int, gid: int) -> None:
        at_first.append(stat.S_IMODE(os.fstat(fd).st_mode))
        fchown(fd, uid, gid)

    monkeypatch.setattr(os, "fchown", seen)
    umask = os.umask(0)
    try:
        registration.register(node, Runtime(), silent)
    finally:
        os.umask(umask)
    assert set(at_first) == {0o600}
    for path in (config, backup):
        assert access(path) == (0o600, 7, 8)
        assert os.getxattr(path, "user.label") == b"secret"
    assert backup.read_text() == corpus.KUBEADM
    assert elsewhere.read_text() == ""


def test_a_new_file_is_as_secret_as_the_one_that_imports_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    if containerd.newest_version(node.containerd) < 3:
        pytest.skip("containerd 1.x takes no drop-in")
    config = Path(node.config)
    config.write_text(
        corpus.VERSION_3.replace("version = 3\n", 'version = 3\nimports = ["conf.d/*.toml"]\n')
    )
    config.chmod(0o640)
    os.chown(config, 7, 8)
    (config.parent / "conf.d").mkdir()
    registration.register(node, Runtime(), silent)
    (new,) = (config.parent / "conf.d").iterdir()
    assert access(new) == (0o640, 7, 8)

    # And if it is removed, and comes back because that was refused.
    new.chmod(0o600)
    monkeypatch.setattr(containerd, "restart", refusing)
    with pytest.raises(ConfigurationError, match="no restart"):
        registration.unregister(node._replace(unit="containerd"), silent)
    assert access(new) == (0o600, 7, 8)


def refusing(_unit: str) -> None:
    raise ConfigurationError("no restart")


def test_what_containerd_refuses_is_undone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Path(node.config)
    config.write_text('version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nregistry = 7\n')
    text = config.read_text()
    with pytest.raises(ConfigurationError, match="containerd refuses it"):
        registration.register(node, Runtime(), silent)
    assert config.read_text() == text

    # A runtime would go: what we add for containerd 1.x is kept from it.
    config.write_text(corpus.DEBIAN)
    real = containerd.runtimes

    def forgetful(binary: str, path: str) -> dict[str, object]:
        found = real(binary, path)
        return {name: found[name] for name in found if name != "runc" or "pywasm" not in found}

    monkeypatch.setattr(containerd, "runtimes", forgetful)
    with pytest.raises(ConfigurationError, match="would lose its runtime runc"):
        registration.register(node, Runtime(), silent)
    assert config.read_text() == corpus.DEBIAN


def test_a_restart_that_fails_is_undone(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(node.config).write_text(corpus.DEBIAN)
    log, systemctl = tmp_path / "log", tmp_path / "systemctl"
    systemctl.write_text(
        f'#!/bin/sh\necho "$@" >>{log}\ngrep -q pywasm {node.config} || exit 0\n'
        "echo 'Job for containerd.service failed.' >&2\nexit 1\n"
    )
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigurationError, match=r"restart containerd: Job for .* failed"):
        registration.register(node._replace(unit="containerd"), Runtime(), silent)
    assert Path(node.config).read_text() == corpus.DEBIAN
    assert log.read_text() == "restart containerd\n" * 2


def test_what_the_shim_would_refuse_is_refused(node: Node) -> None:
    with pytest.raises(ConfigurationError, match="Engin"):
        registration.register(node, Runtime(options={"Engin": "wasmer"}), silent)
    Path(node.bin_dir, registration.SHIM).write_text("another shim")
    with pytest.raises(FileExistsError, match="no link of pywasm's"):
        registration.register(node, Runtime(), silent)
    with pytest.raises(ConfigurationError, match="not on containerd's PATH"):
        registration.register(node._replace(bin_dir="/srv/bin"), Runtime(), silent)
    assert not os.path.exists(node.config)


def test_cri_o(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    path = tmp_path / "crio.conf.d" / "50-pywasm.conf"
    monkeypatch.setattr(crio, "DROP_IN", str(path))
    said: list[str] = []
    registration.register_crio(node, "pywasm", said.append)
    stale = f"{path}: no CRI-O has been started since it was written"
    assert said[-1] == stale
    with pytest.raises(ConfigurationError, match=stale):
        registration.register_crio(node, "pywasm", silent, verify=True)
    link = f"{node.bin_dir}/containerd-shim-pywasm-v2"
    assert msgspec.toml.decode(path.read_text()) == {
        "crio": {
            "runtime": {
                "runtimes": {
                    "pywasm": {
                        "runtime_type": "vm",
                        "runtime_path": link,
                        "runtime_root": "/run/pywasm-crio",
                    }
                }
            }
        }
    }
    assert os.path.realpath(link) == os.path.realpath(registration.installed_shim())
    program = tmp_path / "crio"
    shutil.copy(shutil.which("sleep") or "", program)

    def restart(_unit: str) -> None:
        child = subprocess.Popen([program, "60"])
        running.append(child)
        # The kernel closes what tells of an exec before it gives the process its new name.
        while Path(f"/proc/{child.pid}/comm").read_text() != "crio\n":
            time.sleep(0.001)

    running: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(containerd, "restart", restart)
    at = node._replace(unit="crio")
    try:
        os.utime(path, times=(time.time() - 1,) * 2)
        registration.register_crio(at, "pywasm", silent, verify=True)
        registration.register_crio(at, "pywasm", silent, verify=True)
        assert len(running) == 1
        os.utime(path, times=(time.time() + 60,) * 2)
        with pytest.raises(ConfigurationError, match=stale):
            registration.register_crio(at, "pywasm", silent, verify=True)
        assert len(running) == 2
    finally:
        for process in running:
            process.kill()
            process.wait()
    registration.unregister_crio(node, silent)
    assert not path.exists()
    assert not os.path.lexists(link)
