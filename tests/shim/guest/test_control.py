import array
import os
import socket

import msgspec
import pytest

from shim.guest import control, program


@pytest.mark.parametrize(
    "message",
    [
        control.Prepare([control.Mount("overlay", "overlay", "", ["lowerdir=/a:/b", "ro"])]),
        control.Compile("wasmer", b"\0" * 32, "_start"),
        control.Compile("wasmer", b"\0" * 32, "_start", memory_pages=16),
        control.Compiled(4096, "00ff"),
        control.Refused("not wasm"),
        control.Sealed(),
        control.Ready("wasmer", "preferred"),
        control.Failed("no", True),
        control.Start(),
    ],
)
def test_a_message_arrives_as_it_was(message: control.Message) -> None:
    ours, theirs = control.pair()
    with ours, theirs:
        control.send(theirs, message)
        assert control.receive(ours) == (message, [])


def test_descriptors_travel_along_and_are_not_inherited() -> None:
    ours, theirs = control.pair()
    with ours, theirs:
        reader, writer = os.pipe()
        control.send(ours, control.Compiled(1, ""), [reader, writer])
        _, fds = control.receive(theirs)
        os.write(fds[1], b"x")
        assert os.read(reader, 1) == b"x"
        assert not any(os.get_inheritable(fd) for fd in fds)
        for fd in (reader, writer, *fds):
            os.close(fd)


def test_hundreds_of_layers_fit_into_one_packet() -> None:
    ours, theirs = control.pair()
    layer = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/123456/fs"
    message = control.Prepare(
        [control.Mount("overlay", "overlay", "", ["lowerdir=" + ":".join([layer] * 500)])]
    )
    with ours, theirs:
        control.send(ours, message)
        assert control.receive(theirs)[0] == message


def test_the_other_sides_end_is_an_end() -> None:
    ours, theirs = control.pair()
    theirs.close()
    with ours, pytest.raises(EOFError):
        control.receive(ours)


def test_an_empty_channel_does_not_block_the_shim() -> None:
    ours, theirs = control.pair()
    with ours, theirs, pytest.raises(BlockingIOError):
        control.receive(ours)


def test_last_words_are_behind_the_reset_that_an_unread_message_causes() -> None:
    # What the shim relies on: a guest may fail, and end, with a Prepare still in its queue.
    ours, theirs = control.pair()
    with ours:
        control.send(ours, control.Start())
        control.send(theirs, control.Failed("no", True))
        theirs.close()
        with pytest.raises(ConnectionResetError):
            control.receive(ours)
        assert control.receive(ours)[0] == control.Failed("no", True)
        with pytest.raises(EOFError):
            control.receive(ours)


@pytest.mark.parametrize("size", [(1 << 18) + 1, 1 << 19])
def test_a_message_that_would_be_cut_off_is_not_sent(size: int) -> None:
    """Found by fuzzing: it was taken for the end of the channel."""
    ours, theirs = control.pair()
    with ours, theirs:
        with pytest.raises(OSError, match="bytes for the guest"):
            control.send(ours, control.Refused("x" * size))
        control.send(ours, control.Refused("x" * ((1 << 18) - 100)))
        assert isinstance(control.receive(theirs)[0], control.Refused)


def raw(data: bytes, descriptors: int) -> tuple[socket.socket, socket.socket]:
    """Send what need not be a message, with descriptors of /dev/null."""
    ours, theirs = control.pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    null = os.open(os.devnull, os.O_RDONLY)
    theirs.sendmsg(
        [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * descriptors))]
    )
    os.close(null)
    return ours, theirs


START = msgspec.msgpack.encode(control.Start())


@pytest.mark.parametrize(
    ("data", "descriptors", "error"),
    [
        (b"\xff\xff", 3, "no message: "),
        (b"\xc1", 1, "no message: "),
        (b"\x81\xa4type\xa6Nobody", 1, "no message: Invalid value 'Nobody'"),
        (b"\x82\xa4type\xa7Refused\xa6reason\xa2\xff\xfe", 1, "no message: "),  # no UTF-8
        (b"\x82\xa4type\xa5Start\xa1x" + b"\x91" * 100_000, 1, "no message: "),  # nested
        (msgspec.msgpack.encode(control.Keep(b"short")), 1, "no message: Expected `bytes` of leng"),
        (bytes((1 << 18) + 1), 3, "more than 262144 bytes"),
        (START, 5, "more than 4 descriptors"),
        (START, 100, "more than 4 descriptors"),
    ],
)
def test_what_is_no_message_is_an_error_and_leaves_no_descriptor(
    data: bytes, descriptors: int, error: str
) -> None:
    ours, theirs = raw(data, descriptors)
    with ours, theirs:
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(control.MessageError, match=error):
            control.receive(ours)
        assert sorted(os.listdir("/proc/self/fd")) == before


def test_an_empty_packet_is_an_end_and_leaves_no_descriptor() -> None:
    ours, theirs = raw(b"", 2)
    with ours, theirs:
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(EOFError):
            control.receive(ours)
        assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_mistake_of_ours_is_told_as_one() -> None:
    ours, theirs = control.pair()
    with ours, theirs:
        with pytest.raises(ZeroDivisionError), program.telling(theirs):
            print(1 // len([]))
        message, _ = control.receive(ours)
        assert isinstance(message, control.Failed)
        assert not message.invalid
        assert "internal error" in message.reason
        assert "ZeroDivisionError" in message.reason
