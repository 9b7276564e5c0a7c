import os

import pytest

from shim.guest import control, program


@pytest.mark.parametrize(
    "message",
    [
        control.Prepare([control.Mount("overlay", "overlay", "", ["lowerdir=/a:/b", "ro"])]),
        control.Compile("wasmer", b"\0" * 32),
        control.Compile("wasmer", b"\0" * 32, memory_pages=16),
        control.Compiled(4096, "00ff"),
        control.Refused("not wasm"),
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
            control.send(ours, control.Execute(bytes(size)))
        control.send(ours, control.Execute(bytes((1 << 18) - 100)))
        assert isinstance(control.receive(theirs)[0], control.Execute)


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
