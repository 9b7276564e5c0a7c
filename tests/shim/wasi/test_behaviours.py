"""What all dialects do alike: one table of behaviours, a driver for each dialect."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from .drivers import DRIVERS, Driver, Failed, Preopen, no_descriptors_left

Call: TypeAlias = Callable[[Driver, Any], Any]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What is granted is `granted`; what is beside it is nobody's business."""
    root = tmp_path / "granted"
    (root / "d" / "e").mkdir(parents=True)
    (root / "file").write_text("0123456789")
    (root / "link").symlink_to("file")
    (root / "out").symlink_to("..")
    (root / "dangling").symlink_to("nothing")
    (root / "loop").symlink_to("loop")
    (tmp_path / "outside").write_text("secret")
    return root


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close in the end what a test has left open."""
    yield from no_descriptors_left()


@pytest.fixture(params=sorted(DRIVERS))
def make(request: pytest.FixtureRequest) -> Callable[..., Driver]:
    """Make a program in a dialect."""
    found: Callable[..., Driver] = DRIVERS[request.param]
    return found


def outcome(call: Call, driver: Driver, directory: Any) -> Any:
    """Return what a call returns, or the word that it fails with."""
    try:
        return call(driver, directory)
    except Failed as failed:
        return failed.args[0]


def _opened(path: str, *opening: str, **how: bool) -> Call:
    def call(driver: Driver, directory: Any) -> None:
        driver.close(driver.open(directory, path, *opening, **how))

    return call


def _on(path: str, act: Callable[[Driver, Any], Any], *opening: str, **how: bool) -> Call:
    def call(driver: Driver, directory: Any) -> Any:
        handle = driver.open(directory, path, *opening, **how)
        try:
            return act(driver, handle)
        finally:
            driver.close(handle)

    return call


BEYOND = (1 << 64) - 1
TABLE: list[tuple[str, Call, Any]] = [
    ("open", _opened("file"), None),
    ("open what is not there", _opened("nothing"), "no-entry"),
    ("open nothing", _opened(""), "no-entry"),
    ("open a directory to write", _opened("d", write=True), "is-directory"),
    ("open a file as a directory", _opened("file", "directory"), "not-directory"),
    ("open below a file", _opened("file/x"), "not-directory"),
    ("open above", _opened(".."), "not-permitted"),
    ("open what is above", _opened("../outside"), "not-permitted"),
    ("open an absolute path", _opened("/"), "not-permitted"),
    ("open through a symlink out", _opened("out/outside"), "not-permitted"),
    ("open a symlink", _opened("link"), "loop"),
    ("follow a symlink", _opened("link", follow=True), None),
    ("follow a circle", _opened("loop", follow=True), "loop"),
    ("a name too long", _opened("x" * 256), "name-too-long"),
    ("a NUL in a name", _opened("fi\0le"), "invalid"),
    ("create", _opened("new", "create", write=True), None),
    ("create what is there", _opened("file", "create", write=True), None),
    ("create only", _opened("file", "create", "exclusive", write=True), "exist"),
    ("create a directory by opening", _opened("new", "create", "directory"), "invalid"),
    ("truncate", _on("file", lambda w, f: w.read(f, 9, 0), "truncate", write=True), b""),
    ("read", _on("file", lambda w, f: w.read(f, 3, 4)), b"456"),
    ("read at the end", _on("file", lambda w, f: w.read(f, 3, 10)), b""),
    ("read beyond all ends", _on("file", lambda w, f: w.read(f, 3, BEYOND)), "invalid"),
    (
        "read what is to be written",
        _on("file", lambda w, f: w.read(f, 3, 0), read=False, write=True),
        "bad-descriptor",
    ),
    ("write what is to be read", _on("file", lambda w, f: w.write(f, b"x", 0)), "bad-descriptor"),
    (
        "write",
        _on("file", lambda w, f: (w.write(f, b"x", 1), w.read(f, 3, 0)), write=True),
        (1, b"0x2"),
    ),
    (
        "set a size",
        _on("file", lambda w, f: (w.set_size(f, 2), w.read(f, 9, 0)), write=True),
        (None, b"01"),
    ),
    ("set a size of what is to be read", _on("file", lambda w, f: w.set_size(f, 2)), "invalid"),
    (
        "set too large a size",
        _on("file", lambda w, f: w.set_size(f, BEYOND), write=True),
        "invalid",
    ),
    ("advise", _on("file", lambda w, f: w.advise(f)), None),
    ("sync", _on("file", lambda w, f: w.sync(f)), None),
    ("sync a directory", _on("d", lambda w, f: w.sync(f), "directory"), None),
    ("stat a file", lambda w, d: w.stat(d, "file")[:2], ("regular-file", 10)),
    ("stat a directory", lambda w, d: w.stat(d, "d")[0], "directory"),
    ("stat a symlink", lambda w, d: w.stat(d, "out")[0], "symbolic-link"),
    ("stat a symlink out", lambda w, d: w.stat(d, "out", follow=True), "not-permitted"),
    ("stat what is not there", lambda w, d: w.stat(d, "nothing"), "no-entry"),
    (
        "set times",
        _on("file", lambda w, f: w.set_times(f, 5, 1_700_000_000_123_456_789)),
        None,
    ),
    (
        "set times by path",
        lambda w, d: (w.set_times_at(d, "file", 7), w.stat(d, "file")[2]),
        (None, 7),
    ),
    ("set times above", lambda w, d: w.set_times_at(d, "../outside", 7), "not-permitted"),
    ("list", lambda w, d: w.names(d), {"d", "file", "link", "out", "dangling", "loop"}),
    ("list twice", lambda w, d: w.names(d) == w.names(d), True),
    ("list a file", _on("file", lambda w, f: w.names(f)), "not-directory"),
    (
        "create a directory",
        lambda w, d: (w.create_directory(d, "new"), w.stat(d, "new")[0]),
        (None, "directory"),
    ),
    ("create one with a slash", lambda w, d: w.create_directory(d, "new/"), None),
    ("create one over a file", lambda w, d: w.create_directory(d, "file"), "exist"),
    ("create one in nothing", lambda w, d: w.create_directory(d, "nothing/new"), "no-entry"),
    ("create one above", lambda w, d: w.create_directory(d, "../new"), "not-permitted"),
    ("create the one above", lambda w, d: w.create_directory(d, ".."), "not-permitted"),
    (
        "create one through a symlink out",
        lambda w, d: w.create_directory(d, "out/new"),
        "not-permitted",
    ),
    ("remove a directory", lambda w, d: w.remove_directory(d, "d/e"), None),
    ("remove one with something in it", lambda w, d: w.remove_directory(d, "d"), "not-empty"),
    ("remove a file as a directory", lambda w, d: w.remove_directory(d, "file"), "not-directory"),
    ("remove the one above", lambda w, d: w.remove_directory(d, ".."), "not-permitted"),
    (
        "unlink",
        lambda w, d: (w.unlink(d, "file"), w.names(d)),
        (None, {"d", "link", "out", "dangling", "loop"}),
    ),
    ("unlink a symlink", lambda w, d: (w.unlink(d, "link"), w.stat(d, "file")[1]), (None, 10)),
    ("unlink a directory", lambda w, d: w.unlink(d, "d"), "is-directory"),
    ("unlink above", lambda w, d: w.unlink(d, "../outside"), "not-permitted"),
    ("rename", lambda w, d: (w.rename(d, "file", "d/moved"), w.stat(d, "d/moved")[1]), (None, 10)),
    ("rename what is not there", lambda w, d: w.rename(d, "nothing", "new"), "no-entry"),
    ("rename to above", lambda w, d: w.rename(d, "file", "../new"), "not-permitted"),
    ("rename from above", lambda w, d: w.rename(d, "../outside", "new"), "not-permitted"),
    ("link", lambda w, d: (w.link(d, "file", "new"), w.stat(d, "new")[1]), (None, 10)),
    ("link over a file", lambda w, d: w.link(d, "file", "link"), "exist"),
    ("link a directory", lambda w, d: w.link(d, "d", "new"), "not-permitted"),
    (
        "link what a symlink points to",
        lambda w, d: w.link(d, "link", "new", follow=True),
        "invalid",
    ),
    ("link to above", lambda w, d: w.link(d, "file", "../new"), "not-permitted"),
    ("link as the one above", lambda w, d: w.link(d, "file", ".."), "not-permitted"),
    ("symlink", lambda w, d: (w.symlink(d, "d/e", "new"), w.read_link(d, "new")), (None, "d/e")),
    ("symlink over a file", lambda w, d: w.symlink(d, "x", "file"), "exist"),
    ("symlink to an absolute path", lambda w, d: w.symlink(d, "/etc", "new"), "not-permitted"),
    ("read a link that is none", lambda w, d: w.read_link(d, "file"), "invalid"),
]


@pytest.mark.parametrize(
    ("call", "expected"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_paths(make: Callable[..., Driver], tree: Path, call: Call, expected: Any) -> None:
    driver = make([Preopen("dir", str(tree))])
    assert outcome(call, driver, driver.preopens()["dir"]) == expected
    assert (tree.parent / "outside").read_text() == "secret"
    assert sorted(os.listdir(tree.parent)) == ["granted", "outside"]


# The same tree, granted read-only: what would change it, and what would not.
READONLY: list[tuple[str, Call, Any]] = [
    ("read", _on("file", lambda w, f: w.read(f, 3, 0)), b"012"),
    ("open to write", _opened("file", write=True), "read-only"),
    ("open to truncate", _opened("file", "truncate", write=True), "read-only"),
    ("create", _opened("new", "create", write=True), "read-only"),
    ("create only what is there", _opened("file", "create", "exclusive", write=True), "exist"),
    ("set times", _on("file", lambda w, f: w.set_times(f, 5, 7)), "read-only"),
    ("set times by path", lambda w, d: w.set_times_at(d, "file", 7), "read-only"),
    ("set a size", _on("file", lambda w, f: w.set_size(f, 2)), "read-only"),
    ("create a directory", lambda w, d: w.create_directory(d, "new"), "read-only"),
    ("create one that is there", lambda w, d: w.create_directory(d, "d"), "exist"),
    ("remove a directory", lambda w, d: w.remove_directory(d, "d/e"), "read-only"),
    ("unlink", lambda w, d: w.unlink(d, "file"), "read-only"),
    ("rename", lambda w, d: w.rename(d, "file", "new"), "read-only"),
    ("link", lambda w, d: w.link(d, "file", "new"), "read-only"),
    ("symlink", lambda w, d: w.symlink(d, "x", "new"), "read-only"),
    (
        "in a directory below",
        _on("d", lambda w, f: w.create_directory(f, "x"), "directory"),
        "read-only",
    ),
]


@pytest.mark.parametrize(
    ("call", "expected"), [row[1:] for row in READONLY], ids=[row[0] for row in READONLY]
)
def test_read_only(make: Callable[..., Driver], tree: Path, call: Call, expected: Any) -> None:
    driver = make([Preopen("dir", str(tree), readonly=True)])
    assert outcome(call, driver, driver.preopens()["dir"]) == expected


def test_a_directory_that_was_opened(make: Callable[..., Driver], tree: Path) -> None:
    driver = make([Preopen("dir", str(tree))])
    below = driver.open(driver.preopens()["dir"], "d", "directory")
    assert outcome(_opened("../file"), driver, below) == "not-permitted"
    driver.create_directory(below, "x")
    assert driver.names(below) == {"e", "x"}


def test_times(make: Callable[..., Driver], tree: Path) -> None:
    driver = make([Preopen("dir", str(tree))])
    directory = driver.preopens()["dir"]
    driver.set_times(driver.open(directory, "file"), 5, 1_700_000_000_123_456_789)
    found = (tree / "file").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (5, 1_700_000_000_123_456_789)
    assert driver.stat(directory, "file")[2] == 1_700_000_000_123_456_789


def test_what_a_preopen_is_not_confined_to(make: Callable[..., Driver], tree: Path) -> None:
    """As in any container: the process's root is where `..` ends."""
    driver = make([Preopen("/", "/", confined=False), Preopen("/dir", str(tree), confined=False)])
    directory = driver.preopens()["/dir"]
    assert driver.read(driver.open(directory, "../outside"), 9, 0) == b"secret"
    assert driver.read(driver.open(directory, "out/outside"), 9, 0) == b"secret"
    below = driver.open(directory, "d", "directory")
    assert outcome(_opened("../file"), driver, below) == "not-permitted"


def test_a_working_directory(make: Callable[..., Driver], tree: Path) -> None:
    """It lies over `/`: relative paths start there, absolute ones as a libc makes them do too."""
    driver = make([Preopen("/", str(tree))], cwd=str(tree / "d"))
    (tree / "d" / "mine").write_text("mine")
    root = driver.preopens()["/"]
    assert driver.read(driver.open(root, "mine"), 9, 0) == b"mine"
    assert driver.read(driver.open(root, "file"), 3, 0) == b"012"
    driver.close(driver.open(root, "new", "create", write=True))
    assert sorted(os.listdir(tree / "d")) == ["e", "mine", "new"]


def test_arguments_and_environment(make: Callable[..., Driver]) -> None:
    driver = make([])
    assert driver.preopens() == {}
    assert driver.arguments() == ["program", "argument"]
    assert driver.environment() == {"NAME": "value", "EMPTY": ""}


def test_clocks_and_randomness(make: Callable[..., Driver]) -> None:
    driver = make([])
    before = driver.now()
    driver.sleep(2_000_000)
    assert driver.now() - before >= 2_000_000
    assert len({driver.random(16) for _ in range(8)}) == 8
    assert driver.random(0) == b""


def test_standard_streams(make: Callable[..., Driver]) -> None:
    (stdin, typing), (hearing, stdout) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(stdin, 0)
            os.dup2(stdout, 1)
            for fd in (stdin, typing, hearing, stdout):
                os.close(fd)
            driver = make([])
            while data := driver.hear(4):
                driver.say(data.upper())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(stdin)
    os.close(stdout)
    os.write(typing, b"something said")
    os.close(typing)
    with open(hearing, "rb") as output:
        assert output.read() == b"SOMETHING SAID"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_connections(make: Callable[..., Driver]) -> None:
    driver = make([])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = driver.connect(listener.getsockname()[1])
        with listener.accept()[0] as peer:
            driver.send(connection, b"ping")
            assert peer.recv(9) == b"ping"
            peer.sendall(b"pong")
            assert driver.receive(connection, 9) == b"pong"
        assert driver.receive(connection, 9) == b""


def test_nobody_listens(make: Callable[..., Driver]) -> None:
    driver = make([])
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1]
        assert outcome(lambda w, _: w.connect(port), driver, None) == "connection-refused"


def test_no_network(make: Callable[..., Driver]) -> None:
    driver = make([], network=False)
    assert outcome(lambda w, _: w.connect(80), driver, None) in ("not-permitted", "access-denied")
