"""What a shim is told besides ttrpc: URIs of streams, options of the runtime, its command line."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from oci.runtime import SpecError
from proto.runc_options_pb2 import Options as RuncOptions
from proto.runtime_options_pb2 import Options as RuntimeOptions
from shim.daemon import options
from shim.daemon.info import runtime_info
from shim.daemon.invocation import Invocation, UsageError
from shim.daemon.streams.console import Console
from shim.daemon.streams.stdio import Stdio

U32 = st.integers(0, 2**32 - 1)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for names without a path; no descriptor may be left open in the end."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    before = sorted(os.listdir("/proc/self/fd"))
    yield tmp_path
    assert sorted(os.listdir("/proc/self/fd")) == before


# Nothing of this names a file outside of the directory: it would be made.
PIECES = st.sampled_from(
    (
        *("fifo", "fifo://", "file://", "binary://", "binary-v2://", "://", "[", "]", "%00", "%"),
        *("\0", "?", "#", "&", "=", ";", "..", "a", "\u2100", "\n", "@", ":", "x" * 300),
    )
)


@settings(max_examples=120)
@given(st.lists(PIECES, min_size=1, max_size=5).map("".join), st.sampled_from([0, 1, 2]))
def streams(target: str, which: int) -> None:
    async def scenario() -> None:
        names = ["", "", ""]
        names[which] = target
        for terminal in (False, True):
            stdio = Stdio(*names, terminal=terminal)
            try:
                for fd in stdio.open():
                    os.close(fd)
            except OSError:
                continue
            finally:
                stdio.close()

    asyncio.run(scenario())


def test_any_name_of_a_stream(elsewhere: Path) -> None:
    streams()


@pytest.mark.parametrize(
    "target",
    ["\0", "a\0b", "fifo://%00", "file:///a%00", "binary:///a%00", "binary://["],
)
def test_names_that_no_system_call_takes(elsewhere: Path, target: str) -> None:
    """Found by fuzzing: ValueError came out, and what had been opened before stayed open."""

    async def scenario() -> None:
        for names in ([target, "", ""], ["", target, ""], ["", "", target]):
            stdio = Stdio(*names)
            with pytest.raises(OSError, match=r"NUL|URL|No such file"):
                stdio.open()

    asyncio.run(scenario())


def test_arguments_that_no_system_call_takes(elsewhere: Path) -> None:
    async def scenario() -> None:
        stdio = Stdio("", "binary:///bin/true?b=%00", "")
        for fd in stdio.open():
            os.close(fd)
        with pytest.raises(OSError, match="/bin/true") as caught:
            await stdio.ready()
        assert caught.value.errno == errno.EINVAL
        stdio.guest_ended()
        await stdio.drain()
        stdio.close()

    asyncio.run(scenario())


@settings(max_examples=50)
@given(U32, U32)
def test_any_size_of_a_console(width: int, height: int) -> None:
    console = Console()
    try:
        console.resize(width, height)
        assert os.get_terminal_size(console._master) == (min(width, 65535), min(height, 65535))
    finally:
        console.close()


TOML = st.lists(
    st.sampled_from(
        (
            *("SystemdCgroup", "BinaryName", "IoUid", "Engine", "Root", "x", "\n", "\0", "é"),
            *(" = ", "=", "true", "1", "-1", "4294967296", "1e400", '"wasmer"'),
            *("[", "]", "{", "}", '"', "'", ".", ","),
        )
    ),
    max_size=12,
).map(lambda parts: "".join(parts).encode())
NAMES = st.sampled_from([kind.DESCRIPTOR.full_name for kind in (RuncOptions, RuntimeOptions)])


@settings(max_examples=150)
@given(
    NAMES | st.text(max_size=5),
    st.binary(max_size=30)
    | (TOML | st.binary(max_size=10)).map(
        lambda body: RuntimeOptions(config_body=body).SerializeToString()
    )
    | st.text(max_size=5).map(lambda path: RuntimeOptions(config_path=path).SerializeToString()),
)
def test_any_options(name: str, value: bytes) -> None:
    with contextlib.suppress(SpecError):
        options.read(AnyMessage(type_url=name, value=value))


def test_options_that_are_nested_too_deeply() -> None:
    value = RuntimeOptions(config_body=b"x = " + b"[" * 100_000).SerializeToString()
    with pytest.raises(SpecError):
        options.read(AnyMessage(type_url=RuntimeOptions.DESCRIPTOR.full_name, value=value))


@settings(max_examples=100)
@given(st.binary(max_size=20))
def test_any_options_of_info(stdin: bytes) -> None:
    with contextlib.suppress(OSError):
        runtime_info(stdin)


WORDS = st.sampled_from(
    (
        *("-id", "--id=x", "-namespace", "n", "-debug", "-debug=0", "-info", "-bundle", "/b"),
        *("start", "delete", "-", "--", "=", "-x", "..", "a/b", "", "-address=", "\udcff"),
    )
)


@settings(max_examples=120)
@given(st.lists(WORDS, max_size=7), st.binary(max_size=30))
def test_any_command_line(arguments: list[str], stdin: bytes) -> None:
    words = [os.fsencode(word) for word in arguments]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fields = (b"/cwd", b"", b"3", b"", b"", b"%d" % len(words), *words, stdin)
        theirs.sendall(b"\0".join(fields))
        theirs.shutdown(socket.SHUT_WR)
        try:
            invocation = Invocation.receive(ours)
        except UsageError:
            return
    assert invocation.info or (invocation.action in ("start", "delete") and invocation.id)
    assert "/" not in invocation.id or invocation.info
