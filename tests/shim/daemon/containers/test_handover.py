"""A pid and a terminal, left by programs in a runtime's place."""

import array
import os
import socket
from pathlib import Path

import pytest

from shim.daemon.containers.handover import Handover
from shim.daemon.containers.process import ProcessError


def send(path: str, *fds: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([b"/dev/ptmx"], rights)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    bundle = tmp_path / ("long" * 40)  # a socket's address could not name it
    bundle.mkdir()
    return bundle


def test_a_terminal(bundle: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    master, slave = os.openpty()
    with Handover(str(bundle), terminal=True) as handover:
        send(handover.console_socket, master)
        received = handover.master()
        os.write(received, b"x\n")
        assert os.read(slave, 10) == b"x\n"
        assert not os.get_inheritable(received)
    for fd in (master, slave, received):
        os.close(fd)
    assert os.listdir(bundle) == []
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("connected", [False, True])
def test_a_terminal_that_does_not_come(bundle: Path, connected: bool) -> None:
    with Handover(str(bundle), terminal=True) as handover:
        if connected:
            send(handover.console_socket)
        with pytest.raises(ProcessError, match="has not handed over the terminal"):
            handover.master()
    assert os.listdir(bundle) == []


def test_a_pid_file_stays_or_goes(bundle: Path) -> None:
    for name, left in (("init.pid", ["init.pid"]), ("", [])):
        with Handover(str(bundle), terminal=False, pid_file=name) as handover:
            assert handover.console_socket == ""
            assert handover.master() == -1
            Path(handover.pid_file).write_text(str(os.getpid()))
            child = handover.process()
            assert child.pid == os.getpid()
            os.close(child.pidfd)
        assert os.listdir(bundle) == left
        for file in left:
            (bundle / file).unlink()


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Handover(str(tmp_path / "none"), terminal=True)
    assert len(os.listdir("/proc/self/fd")) == before
