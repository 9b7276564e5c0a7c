"""What the installer's pod does to its node, which here is a process with mounts of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.linux.clone import unshare
from shim.linux.mounts import pivot_root, umount
from shim.node import pod, processes
from shim.node.containerd_config import ConfigurationError

CLONE_NEWNS = 0x00020000
MNT_DETACH = 2

# Answers one request, and prints what it was.
API_SERVER = """
import http.server, json, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_PATCH(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(json.dumps([self.path, dict(self.headers), json.loads(body)]), flush=True)
        self.send_response(int(sys.argv[2]))
        self.end_headers()
    def log_message(self, *args):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{sys.argv[1]}/ca.crt", f"{sys.argv[1]}/key")
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.handle_request()
"""


def silent(_line: str) -> None:
    pass


@contextlib.contextmanager
def node_at(root: Path) -> Iterator[int]:
    """A process whose mount namespace has `root` as its root, as a node's init has; its pid."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            unshare(CLONE_NEWNS)
            for command in (["--make-rprivate", "/"], ["--rbind", str(root), str(root)]):
                subprocess.run(["mount", *command], check=True)
            (root / "proc").mkdir(exist_ok=True)
            subprocess.run(["mount", "--rbind", "/proc", f"{root}/proc"], check=True)
            os.chdir(root)
            pivot_root(".", ".")
            umount(".", MNT_DETACH)  # the old root, which lies on top of the new one
            os.write(writer, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"!"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_copy_is_whole_or_is_not(tmp_path: Path) -> None:
    source, root = tmp_path / "opt/1.0", tmp_path / "node"
    (source / "bin").mkdir(parents=True)
    (source / "bin/tool").write_text("tool")
    os.symlink("bin/tool", source / "link")
    assert pod.copy(str(source), str(root))
    copied = root / str(source).lstrip("/")
    assert (copied / "bin/tool").read_text() == "tool"
    assert os.readlink(copied / "link") == "bin/tool"
    assert not pod.copy(str(source), str(root))

    shutil.rmtree(copied)
    os.mkfifo(source / "cannot be copied")
    with pytest.raises(OSError, match="named pipe"):
        pod.copy(str(source), str(root))
    assert list(copied.parent.iterdir()) == []


def test_a_command_runs_in_the_nodes_files(tmp_path: Path) -> None:
    static = tmp_path / "ldconfig"  # linked statically, where there is glibc
    shutil.copy(shutil.which("ldconfig", path="/sbin:/usr/sbin") or "", static)
    with node_at(tmp_path) as pid:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/ld.so.conf").touch()
        pod.run(pid, ["/ldconfig"])
        assert (tmp_path / "etc/ld.so.cache").exists()
        with pytest.raises(
            ConfigurationError, match=r"/ldconfig --no-such-option on .* failed with"
        ):
            pod.run(pid, ["/ldconfig", "--no-such-option"])
        with pytest.raises(ConfigurationError, match="failed with 127"):
            pod.run(pid, ["/missing"])


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service account's files; its authority is the server's own certificate."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", f"{tmp_path}/key", "-out", f"{tmp_path}/ca.crt"),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setattr(pod, "ACCOUNT", str(tmp_path))
    monkeypatch.setenv("NODE_NAME", "worker-1")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    return tmp_path


@contextlib.contextmanager
def api_server(
    account: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", API_SERVER, str(account), str(status)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.stdout.readline().strip())
            yield server
        finally:
            server.kill()


@pytest.mark.parametrize("value", ["true", None])
def test_the_node_is_labelled(
    account: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    with api_server(account, 200, monkeypatch) as server:
        pod.label(value)
        assert server.stdout is not None
        path, headers, body = json.loads(server.stdout.readline())
    assert path == "/api/v1/nodes/worker-1"
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"] == "application/strategic-merge-patch+json"
    assert body == {"metadata": {"labels": {pod.LABEL: value}}}


def test_a_label_that_is_refused_is_told(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        api_server(account, 403, monkeypatch),
        pytest.raises(ConfigurationError, match="worker-1: 403 Forbidden"),
    ):
        pod.label("true")
    with pytest.raises(ConfigurationError, match=r"worker-1: .*refused"):
        pod.label("true")


def test_only_who_has_the_node_may_install() -> None:
    done = subprocess.run(
        [
            "unshare",
            "--pid",
            "--fork",
            "--mount-proc",
            f"{sys.prefix}/bin/pywasm",
            "pod",
            "install",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "privileged pod with hostPID" in done.stderr


@pytest.mark.skipif(
    not os.environ.get("PYWASM_BUNDLE"), reason="PYWASM_BUNDLE names no scripts/bundle"
)
def test_a_bundle_on_a_node_that_has_nothing(tmp_path: Path) -> None:
    bundle = os.environ["PYWASM_BUNDLE"]
    for name in ("dev", "tmp", "sys", "etc/containerd", "usr/local/bin"):
        (tmp_path / name).mkdir(parents=True)
    config = tmp_path / "etc/containerd/config.toml"
    config.write_text("version = 2\n")
    link = tmp_path / "usr/local/bin/containerd-shim-pywasm-v1"
    program = (
        f"import sys; sys.path.insert(0, {bundle!r}); from shim.node import pod; "
        "getattr(pod, sys.argv[1])([], print, int(sys.argv[2]))"
    )
    with node_at(tmp_path) as pid:

        def run(action: str) -> str:
            command = [f"{bundle}/.venv/bin/python", "-I", "-c", program, action, str(pid)]
            env = {"PATH": os.environ["PATH"]}
            return subprocess.run(
                command, stdout=subprocess.PIPE, check=True, text=True, env=env
            ).stdout

        assert f"{bundle}: copied to the node" in run("install")
        assert "containerd.runtimes.pywasm]" in config.read_text()
        assert os.readlink(link) == f"{bundle}/.venv/bin/containerd-shim-pywasm-v1"
        assert "registered already" in run("install")
        # The shim works there, with no library of the node's.
        pod.run(pid, [f"{bundle}/bin/containerd-shim-pywasm-v1", "-v"])
        old = tmp_path / os.path.dirname(bundle).lstrip("/") / "0.0.1-00000000"
        old.mkdir()
        assert f"{os.path.dirname(bundle)}/{old.name}: removed" in run("install")
        run("uninstall")
        assert config.read_text() == "version = 2\n"
        assert not os.path.lexists(link)
        assert list(old.parent.iterdir()) == []
    assert processes.of(bundle, processes.ZYGOTE) == []
