"""FIFOs for a guest's stdio, with a reader that is late, gone, or slow."""

from __future__ import annotations

import os
import select

from tests.integration import specs
from tests.integration.client import Client
from tests.integration.conftest import Container, Containers
from tests.integration.containerd import PYWASM

MEGABYTE = list(range(16384))  # the numbers in the lines that `stdio 1` writes


def new(containers: Containers, *args: str, fifos: tuple[str, ...] = ("stdout",)) -> Container:
    container = containers.new(PYWASM, specs.usual(*args))
    container.fifos(*fifos)
    return container


def read_available(fd: int) -> bytes:
    """Some bytes; waits for them."""
    assert select.select([fd], [], [], 20)[0], "nothing came"
    return os.read(fd, 65536)


def read_to_end(fd: int, chunk: int = 65536) -> bytes:
    """Everything until nobody can write any more."""
    data: list[bytes] = []
    while True:
        assert select.select([fd], [], [], 20)[0], "the end did not come"
        if not (got := os.read(fd, chunk)):
            return b"".join(data)
        data.append(got)


def reader(container: Container, name: str = "stdout") -> int:
    return os.open(container.stdio[name], os.O_RDONLY | os.O_NONBLOCK)


def test_late(client: Client, containers: Containers) -> None:
    container = new(containers, "/idle.wasm")
    container.run()  # blocks on nobody
    fd = reader(container)
    assert read_available(fd) == b"idle\n"
    os.close(fd)


def test_later_than_the_exit(client: Client, containers: Containers) -> None:
    container = new(containers, "/hello.wasm")
    container.run()
    assert client.wait(container.name) == 0
    fd = reader(container)
    assert read_available(fd) == b"hello from pywasm\n"
    os.close(fd)


def test_end_of_output(client: Client, containers: Containers) -> None:
    """After Delete nobody holds the FIFOs, so a reader sees the end."""
    container = new(containers, "/hello.wasm", fifos=("stdout", "stderr"))
    fds = reader(container), reader(container, "stderr")
    container.run()
    assert client.wait(container.name) == 0
    client.delete(container.name)
    assert [read_to_end(fd) for fd in fds] == [b"hello from pywasm\n", b""]
    for fd in fds:
        os.close(fd)


def test_gone_and_back(client: Client, containers: Containers) -> None:
    container = new(containers, "/stdio.wasm", "1")
    first = reader(container)
    container.run()
    data = read_available(first)
    os.close(first)
    # The guest cannot go on, and must not end: no SIGPIPE, no error.
    second = reader(container)
    while len(data) < 64 * len(MEGABYTE):
        data += read_available(second)
    os.close(second)
    assert client.wait(container.name) == 0
    assert [int(line) for line in data.splitlines()] == MEGABYTE


def test_slow(client: Client, containers: Containers) -> None:
    container = new(containers, "/stdio.wasm", "1")
    fd = reader(container)
    container.run()
    waiting = client.wait_later(container.name)
    data = b""
    while len(data) < 64 * len(MEGABYTE):
        assert select.select([fd], [], [], 20)[0]
        data += os.read(fd, 1000)
        assert waiting.done() is False or len(data) > 64 * len(MEGABYTE) - 70_000
    assert waiting.result(20).exit_status == 0
    os.close(fd)
    assert [int(line) for line in data.splitlines()] == MEGABYTE


def test_input_and_its_end(client: Client, containers: Containers) -> None:
    container = new(containers, "/cat.wasm", fifos=("stdin", "stdout"))
    output = reader(container)
    container.create()
    source = os.open(container.stdio["stdin"], os.O_RDWR | os.O_NONBLOCK)
    client.start(container.name)
    for word in (b"one\n", b"two\n"):
        os.write(source, word)
        assert read_available(output) == word
    os.close(source)
    client.close_stdin(container.name)
    assert client.wait(container.name) == 0
    os.close(output)


def test_input_that_nobody_gives(client: Client, containers: Containers) -> None:
    """Without a stdin a guest reads the end at once."""
    container = new(containers, "/cat.wasm")
    container.run()
    assert client.wait(container.name) == 0


def test_no_stdio_at_all(client: Client, containers: Containers) -> None:
    container = new(containers, "/stdio.wasm", "1", "both", fifos=())
    container.run()
    assert client.wait(container.name) == 0
