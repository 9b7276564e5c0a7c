"""Guests that serve and ask, under the engines, with real peers."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from shim.engines.base import Grants, ModuleError, Preopen
from tests.guests.build import build

from .conftest import Runner, artifact

TIMEOUT = 20


class Running:
    """A guest that runs beside the test; its stdout and stderr are a pipe."""

    def __init__(self, run: Runner, wasm: bytes, *args: str, **grants: Any) -> None:
        code = artifact(run.engine, wasm)
        self._output, theirs = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            self._become(run, code, theirs, args, **grants)
        os.close(theirs)
        self._rest = b""

    def _become(
        self,
        run: Runner,
        code: bytes,
        output: int,
        args: Sequence[str],
        directory: Path | None = None,
        listeners: Sequence[socket.socket] = (),
        network: bool = True,
    ) -> NoReturn:
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            preopens = []
            if directory is not None:
                preopens.append(Preopen("/", os.open(directory, os.O_PATH | os.O_DIRECTORY)))
            module = run.engine.load(code)
            module.check()
            module.run(
                Grants(
                    [b"guest", *map(os.fsencode, args)],
                    [],
                    preopens,
                    listeners=[listener.detach() for listener in listeners],
                    network=network,
                )
            )
        except BaseException as error:
            os.write(2, repr(error).encode())
        os._exit(99)

    def line(self) -> str:
        """Return its next line, or what there is when it has ended."""
        while b"\n" not in self._rest:
            assert select.select([self._output], [], [], TIMEOUT)[0], self._rest
            more = os.read(self._output, 4096)
            if not more:
                break
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def wait(self) -> int:
        """Return its exit status, or minus the signal."""
        assert select.select([self._pidfd], [], [], TIMEOUT)[0]
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def __enter__(self) -> Running:
        self._pidfd = os.pidfd_open(self._pid)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._pidfd)
        os.close(self._output)


def guest(name: str) -> bytes:
    return build(name).read_bytes()


@contextlib.contextmanager
def listeners(count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT) as answer:
        return bytes(answer.read())


def test_serving_on_given_listeners(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with listeners(2) as given:
        ports = [listener.getsockname()[1] for listener in given]
        running = Running(
            run, guest("http_listen"), "3", directory=tmp_path, listeners=given, network=False
        )
        with running:
            assert running.line() == "listening on 2"
            assert get(ports[1], "/file") == b"content"  # the preopen behind the listeners
            assert running.line() == "/file found"
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(ports[0], "/none")
            assert running.line() == "/none not found"
            with socket.create_connection(("127.0.0.1", ports[0]), TIMEOUT):
                pass  # it hangs up without a word
            assert running.wait() == 0


def test_no_listeners(run: Runner) -> None:
    with Running(run, guest("http_listen")) as running:
        assert running.wait() == 2


def test_many_connections_at_once(run: Runner) -> None:
    with listeners(1) as given, contextlib.ExitStack() as stack:
        address = given[0].getsockname()
        running = stack.enter_context(Running(run, guest("poll_server"), listeners=given))
        assert running.line() == "ready"
        clients = []
        for number in range(1, 6):
            clients.append(stack.enter_context(socket.create_connection(address, TIMEOUT)))
            assert running.line() == f"{number} connected"
        for number, client in reversed(list(enumerate(clients))):
            client.sendall(b"hello %d" % number)
        for number, client in enumerate(clients):
            assert client.recv(100) == b"hello %d" % number
        clients.pop().close()
        assert running.line() == "4 connected"
        clients[1].sendall(b"still there")
        assert clients[1].recv(100) == b"still there"
        # One that resets its connection is an error of this connection, and of no other.
        clients[2].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        clients.pop(2).close()
        assert running.line() == "3 connected"
        clients[0].sendall(b"end\n")
        assert running.wait() == 0


def test_a_server_written_for_wasmedge(run: Runner) -> None:
    with Running(run, guest("http_wasmedge"), "0", "2") as running:
        place, _, port = running.line().rpartition(":")
        assert place == "listening on 0.0.0.0"
        for path in ("/", "/again"):
            assert get(int(port), path) == b"from WasmEdge\n"
            family, _, rest = running.line().partition(" port ")
            assert family == "family 1"
            assert rest.endswith(f": GET {path} HTTP/1.1")
        assert running.wait() == 0


def test_a_client_written_for_wasmedge(run: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        with Running(run, guest("http_wasmedge"), "localhost", port, "/path") as running:
            server.settimeout(TIMEOUT)
            connection, _ = server.accept()
            with connection:
                assert connection.recv(4096).startswith(b"GET /path HTTP/1.0\r\nHost: localhost")
                connection.sendall(b"an answer\n")
            assert running.line() == "an answer"
            assert running.wait() == 0


def test_datagrams(run: Runner) -> None:
    with (
        Running(run, guest("udp_echo"), "2") as running,
        socket.socket(type=socket.SOCK_DGRAM) as peer,
    ):
        port = int(running.line().removeprefix("port "))
        peer.settimeout(TIMEOUT)
        peer.bind(("127.0.0.1", 0))
        for data in (b"one", b"second"):
            peer.sendto(data, ("127.0.0.1", port))
            assert peer.recvfrom(100) == (data, ("127.0.0.1", port))
            assert running.line() == f"{len(data)} bytes, port {peer.getsockname()[1]}"
        assert running.wait() == 0


def test_without_a_network(run: Runner) -> None:
    with Running(run, guest("http_wasmedge"), "0", "1", network=False) as running:
        assert running.line() == "open: error 76"
        assert running.wait() == 1


def test_a_name_with_two_signatures(run: Runner) -> None:
    """Each is there, but a module can have only one of them."""
    one = '(import "wasi_snapshot_preview1" "sock_accept" (func (param i32 i32) (result i32)))'
    two = '(import "wasi_snapshot_preview1" "sock_accept" (func (param i32 i32 i32) (result i32)))'
    other = '(import "wasi_snapshot_preview1" "sock_accept" (func (param i32) (result i32)))'
    start = '(func (export "_start"))'
    with pytest.raises(ModuleError, match=r"sock_accept.*declared twice"):
        run.check(f"(module {one} {two} {start})".encode())
    with pytest.raises(ModuleError, match="sock_accept"):
        run.check(f"(module {other} {start})".encode())
