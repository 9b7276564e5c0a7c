"""Terminals and log drivers through `ctr`, which sits at a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.build import build
from tests.integration import images
from tests.integration.conftest import program
from tests.integration.containerd import PYWASM, TIMEOUT, Containerd, eventually

IMAGE = "localhost/terminal:1"
GUESTS = ("tty", "hello")


@pytest.fixture(scope="module", autouse=True)
def _image(containerd: Containerd) -> None:
    files = {f"{name}.wasm": images.File(build(name).read_bytes()) for name in GUESTS}
    for name in GUESTS:
        files[name] = images.File(build(name, native=True).read_bytes(), mode=0o755)
    containerd.load(images.build(IMAGE, files).tar)


class Person:
    """Somebody with a terminal, in which one `ctr` command runs."""

    def __init__(
        self, containerd: Containerd, *args: str, size: tuple[int, int] = (80, 25)
    ) -> None:
        self.master, slave = os.openpty()
        self.size(*size)
        self.seen = bytearray()
        self.ctr = subprocess.Popen(
            containerd.ctr_command(*args),
            env=containerd.env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(slave)

    def size(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("=4H", height, width, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def see(self, words: bytes) -> bytes:
        """Wait for `words`; return what came since the last time, without carriage returns."""
        start = 0
        while (end := self.seen.find(words, start)) < 0:
            start = max(0, len(self.seen) - len(words))
            assert self._more(), self.seen[-1000:]
        end += len(words)
        seen, self.seen = bytes(self.seen[:end]), self.seen[end:]
        return seen

    def see_all(self) -> bytes:
        """Wait for ctr's end; return the rest."""
        while self._more():
            pass
        rest, self.seen = bytes(self.seen), bytearray()
        return rest

    def _more(self) -> bool:
        assert select.select([self.master], [], [], TIMEOUT)[0], self.seen[-1000:]
        try:
            self.seen += os.read(self.master, 1 << 16).replace(b"\r", b"")
        except OSError:  # EIO: nobody has the slave any more
            return False
        return True

    def leave(self) -> None:
        """As when a window is closed in spite of all warnings."""
        self.ctr.kill()
        self.ctr.wait()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1


@pytest.fixture
def people(containerd: Containerd) -> Iterator[People]:
    made = People(containerd)
    yield made
    made.leave()


class People:
    """Those of one test, and their containers."""

    def __init__(self, containerd: Containerd) -> None:
        self.containerd = containerd
        self._all: list[Person] = []
        self._names: list[str] = []

    def run(
        self, runtime: str, guest: str, *args: str, options: tuple[str, ...] = ("--rm",)
    ) -> tuple[str, Person]:
        name = self.containerd.new_name()
        self._names.append(name)
        command = (IMAGE, name, program(runtime, guest), *args)
        return name, self.do(*self.containerd.run_options(runtime), "-t", *options, *command)

    def do(self, *args: str) -> Person:
        self._all.append(Person(self.containerd, *args))
        return self._all[-1]

    def leave(self) -> None:
        for person in self._all:
            person.leave()
        for name in self._names:
            self.containerd.remove(name)


def terminal_size(containerd: Containerd, name: str) -> tuple[int, int]:
    """Width and height as the container's first process sees them."""
    tasks = [line.split() for line in containerd.checked("task", "list").splitlines()]
    pid = next(fields[1] for fields in tasks if fields[0] == name)
    fd = os.open(f"/proc/{pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
    height, width, _, _ = struct.unpack("=4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    os.close(fd)
    return width, height


def test_conversation(people: People, runtime: str) -> None:
    _, person = people.run(runtime, "tty")
    person.see(b"tty 1 1 1\n")
    person.type(b"one\r")
    person.see(b"one\ngot 'one'\n")
    person.type(b"\4")
    assert person.see_all() == b"end\n"
    assert person.ctr.wait(TIMEOUT) == 7


def test_interrupt_key(people: People) -> None:
    _, person = people.run(PYWASM, "tty")
    person.see(b"tty 1 1 1\n")
    person.type(b"\3")
    person.see_all()
    assert person.ctr.wait(TIMEOUT) == 128 + signal.SIGINT


def test_size(people: People, runtime: str) -> None:
    name, person = people.run(runtime, "tty")
    person.see(b"tty 1 1 1\n")
    eventually(lambda: terminal_size(people.containerd, name) == (80, 25))
    person.size(132, 43)
    eventually(lambda: terminal_size(people.containerd, name) == (132, 43))


def test_detach_and_attach(people: People, runtime: str) -> None:
    name, person = people.run(runtime, "tty", options=())
    person.see(b"tty 1 1 1\n")
    person.leave()
    other = people.do("task", "attach", name)
    other.type(b"back\r")
    other.see(b"got 'back'\n")
    other.type(b"\4")
    assert other.see_all() == b"end\n"
    assert other.ctr.wait(TIMEOUT) == 7


def test_exec(people: People, runtime: str) -> None:
    name, first = people.run(runtime, "tty")
    first.see(b"tty 1 1 1\n")
    second = people.do("task", "exec", "-t", "--exec-id", "e", name, program(runtime, "tty"))
    second.see(b"tty 1 1 1\n")
    second.type(b"second\r")
    second.see(b"second\ngot 'second'\n")
    second.type(b"\4")
    # ctr itself may complain of a resize that comes after the end, to which runc's shim says no.
    assert second.see_all().startswith(b"end\n")
    assert second.ctr.wait(TIMEOUT) == 7
    first.type(b"first\r\4")
    assert first.see_all().endswith(b"got 'first'\nend\n")


def test_flood(people: People, runtime: str) -> None:
    _, person = people.run(runtime, "tty")
    person.see(b"tty 1 1 1\n")
    person.type(b"flood 200000\r")
    person.see(b"flood 200000\n")
    lines = person.see(b"\n199999\n").split(b"\n")
    assert [int(line) for line in lines[:-1]] == list(range(200_000))
    person.type(b"\4")
    assert person.see_all() == b"end\n"
    assert person.ctr.wait(TIMEOUT) == 7


def test_an_end_that_nobody_reads(people: People, runtime: str) -> None:
    """A ctr that does not read its terminal ends all the same, and so does the container."""
    name, person = people.run(runtime, "tty", options=())
    person.see(b"tty 1 1 1\n")
    person.type(b"flood 200000\r")
    person.see(b"\n1000\n")
    person.leave()
    people.containerd.checked("task", "kill", "-s", "KILL", name)
    eventually(lambda: "STOPPED" in people.containerd.checked("task", "list"))
    people.containerd.checked("task", "delete", "--force", name)


def test_log_to_a_file(containerd: Containerd, runtime: str, tmp_path: Path) -> None:
    log = tmp_path / "directory" / "log"
    run_with_log(containerd, runtime, f"file://{log}")
    assert log.read_text() == "hello from pywasm\n"


def test_log_to_a_program(containerd: Containerd, runtime: str, tmp_path: Path) -> None:
    logger = tmp_path / "logger"
    logger.write_text(
        "#!/bin/sh\n"
        f'echo "$CONTAINER_NAMESPACE $CONTAINER_ID $*" >{tmp_path}/who\n'
        "exec 5>&-\n"
        f"cat <&3 >{tmp_path}/stdout & cat <&4 >{tmp_path}/stderr; wait\n"
    )
    logger.chmod(0o755)
    name = run_with_log(containerd, runtime, f"binary://{logger}?key=value")
    assert (tmp_path / "who").read_text() == f"{containerd.namespace} {name} key value\n"
    assert (tmp_path / "stdout").read_text() == "hello from pywasm\n"
    assert (tmp_path / "stderr").read_text() == ""


def test_log_to_a_program_that_is_missing(containerd: Containerd, tmp_path: Path) -> None:
    options = [*containerd.run_options(PYWASM), "--rm", "--log-uri", f"binary://{tmp_path}/none"]
    done = containerd.ctr(*options, IMAGE, containerd.new_name(), "/hello.wasm")
    assert done.returncode != 0
    assert re.search(f"{tmp_path}/none: No such file", done.stderr)


def run_with_log(containerd: Containerd, runtime: str, uri: str) -> str:
    name = containerd.new_name()
    options = [*containerd.run_options(runtime), "--rm", "--log-uri", uri]
    done = containerd.ctr(*options, IMAGE, name, program(runtime, "hello"))
    assert done.returncode == 0, done.stderr
    return name
