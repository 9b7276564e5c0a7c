"""Commands in running containers, as exec probes and `kubectl exec` run them.

In a container with a wasm module the command is a module, or a native program of the same image.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.cri.conftest import IMAGE, Kind
from tests.cri.kubelet import STDERR, STDOUT, Container, Kubelet
from tests.cri.node import Node
from tests.integration.containerd import eventually


@pytest.fixture
def container(kubelet: Kubelet, kind: Kind) -> Container:
    """One that runs."""
    running = kubelet.run_pod(kind.handler).run(IMAGE, kind.program("idle"), env={"MINE": "yes"})
    running.until_says("idle")
    return running


def test_exit_status(container: Container, kind: Kind) -> None:
    for code in (0, 3, 255):
        assert container.exec_sync(kind.program("exit3"), str(code)) == (code, "", "")


def test_output(container: Container, kind: Kind) -> None:
    status, out, err = container.exec_sync(kind.program("args_env"), "a", "b c")
    assert (status, err) == (0, "")
    assert out.splitlines()[1:3] == ["arg 1: a", "arg 2: b c"]
    assert "env: MINE=yes\n" in out
    status, out, err = container.exec_sync(kind.program("stdio"), "1", "both")
    assert (status, len(out), out) == (0, 1 << 20, err)


def test_timeout(container: Container, node: Node, kind: Kind) -> None:
    before = set(node.processes())
    try:
        answer = container.exec_sync(kind.program("spin"), timeout=1)[0]
    except grpc.RpcError as error:
        answer = error.code()
    assert answer in (grpc.StatusCode.DEADLINE_EXCEEDED, -1)  # which is CRI-O's
    eventually(lambda: set(node.processes()) <= before)  # what took too long does not go on
    assert container.exec_sync(kind.program("exit3"), "0", timeout=20)[0] == 0


def test_what_is_not_there(container: Container) -> None:
    with pytest.raises(grpc.RpcError, match="nowhere"):
        container.exec_sync("/nowhere")


def test_many_at_once(container: Container, kind: Kind) -> None:
    with ThreadPoolExecutor(10) as pool:
        codes = pool.map(lambda n: container.exec_sync(kind.program("exit3"), str(n))[0], range(20))
        assert list(codes) == list(range(20))


def test_a_native_command_in_a_wasm_container(kubelet: Kubelet) -> None:
    container = kubelet.run_pod("pywasm").run(IMAGE, "/idle.wasm")
    assert container.exec_sync("/exit3", "5")[0] == 5


def test_streams(container: Container, kind: Kind) -> None:
    with container.exec(kind.program("tty")) as stream:
        stream.until(b"tty 0 0 0\n")
        stream.send(b"one\n")
        stream.until(b"got 'one'\n")
        stream.send(b"flood 1000\n")
        assert stream.until(b"\n999\n").count(b"\n") == 1002
    with container.exec(kind.program("stdio"), "1", "both", stdin=False) as stream:
        assert stream.finish() == 0
        assert len(stream.seen[STDOUT]) == len(stream.seen[STDERR]) == 1 << 20
    with container.exec(kind.program("exit3"), "5", stdin=False) as stream:
        assert stream.finish() == 5


def test_terminal(container: Container, kind: Kind) -> None:
    with container.exec(kind.program("tty"), "size", tty=True) as stream:
        stream.until(b"tty 1 1 1\r\n")
        if not kind.suffix:
            stream.resize(101, 31)
            stream.until(b"size 101 31\r\n")
        stream.send(b"one\n")
        stream.until(b"one\r\ngot 'one'\r\n")  # the terminal's echo first
        stream.send(b"\x04")
        stream.until(b"end\r\n")
        assert stream.finish() == 7


def test_hanging_up(container: Container, node: Node, kind: Kind) -> None:
    """Who hangs up takes the command's input with it, and so does its end."""
    before = set(node.processes())
    with container.exec(kind.program("tty")) as stream:
        stream.until(b"tty 0 0 0\n")
    eventually(lambda: set(node.processes()) <= before)
