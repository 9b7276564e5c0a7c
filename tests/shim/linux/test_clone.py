from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from oci.linux import Seccomp, SeccompSyscalls
from shim.linux import clone as module
from shim.linux import credentials, seccomp
from shim.linux.clone import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    EXIT_EXCEPTION,
    clone,
    setns,
    unshare,
    wait,
)
from shim.linux.libc import LIBC

NAMESPACES = {
    "mnt": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "net": CLONE_NEWNET,
    "cgroup": CLONE_NEWCGROUP,
    "user": CLONE_NEWUSER,
    "time": CLONE_NEWTIME,
}

InChild = Callable[..., None]
StatusOf = Callable[..., int]


def ns(name: str) -> str:
    return os.readlink(f"/proc/self/ns/{name}")


@pytest.mark.parametrize("name", NAMESPACES)
def test_new_namespace_and_no_other(name: str, in_child: InChild) -> None:
    before = {other: ns(other) for other in NAMESPACES}

    def entry() -> None:
        changed = {other for other in NAMESPACES if ns(other) != before[other]}
        assert changed == {name}

    in_child(entry, NAMESPACES[name])


def test_first_process_of_its_pid_namespace(in_child: InChild) -> None:
    def entry() -> None:
        assert os.getpid() == 1
        assert os.getppid() == 0

    in_child(entry, CLONE_NEWPID)


def test_identity_is_the_childs() -> None:
    child = clone(signal.pause)
    try:
        with open(f"/proc/self/fdinfo/{child.pidfd}") as info:
            assert f"Pid:\t{child.pid}\n" in info.readlines()
        assert not os.get_inheritable(child.pidfd)
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        assert wait(child.pidfd) == 128 + signal.SIGKILL
        with pytest.raises(ChildProcessError):
            wait(child.pidfd)
    finally:
        os.close(child.pidfd)


def test_pidfd_becomes_readable_at_the_end() -> None:
    read, write = os.pipe()

    def entry() -> None:
        os.read(read, 1)

    child = clone(entry)
    try:
        poll = select.poll()
        poll.register(child.pidfd, select.POLLIN)
        assert poll.poll(0) == []
        os.write(write, b"x")
        assert poll.poll(5000)
        assert wait(child.pidfd) == 0
    finally:
        for fd in (read, write, child.pidfd):
            os.close(fd)


@pytest.mark.parametrize(
    ("code", "status"), [(None, 0), (0, 0), (3, 3), (True, 1), (256 + 7, 7), (-1, 255), ("why", 1)]
)
def test_system_exit_means_what_it_means_to_the_interpreter(
    code: object, status: int, status_of: StatusOf, capfd: pytest.CaptureFixture[str]
) -> None:
    def entry() -> None:
        raise SystemExit(code)

    assert status_of(entry) == status
    assert capfd.readouterr().err == ("why\n" if code == "why" else "")


@pytest.mark.parametrize("exception", [ValueError("culprit"), KeyboardInterrupt("culprit")])
def test_exception_is_a_traceback_and_never_returns(
    exception: BaseException, status_of: StatusOf, capfd: pytest.CaptureFixture[str]
) -> None:
    pid = os.getpid()

    def entry() -> None:
        raise exception

    try:
        assert status_of(entry) == EXIT_EXCEPTION
    finally:
        if os.getpid() != pid:  # or this test would go on twice
            os._exit(0)
    err = capfd.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith(f"{type(exception).__name__}: culprit\n")


def test_chain_of_forks_with_ctypes_and_gc(in_child: InChild) -> None:
    """Each process forks the next, one way and the other, and works: collector, libc, imports."""

    def descend(depth: int) -> None:
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        assert gc.collect() >= 1
        assert LIBC.getpid() == os.getpid()
        subprocess.run(["true"], check=True)
        if depth == 0:
            return
        if depth % 2:
            in_child(lambda: descend(depth - 1), CLONE_NEWPID | CLONE_NEWNS)
            return
        pid = os.fork()
        if pid == 0:
            try:
                descend(depth - 1)
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

    in_child(lambda: descend(5))


def test_many_children_leave_nothing(in_child: InChild) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(50):
        in_child(lambda: None)
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_libc_knows_the_threads_id(in_child: InChild) -> None:
    class Mutex(ctypes.Structure):
        _fields_ = (("lock", ctypes.c_int), ("count", ctypes.c_uint), ("owner", ctypes.c_int))

    def owner() -> int:
        memory = ctypes.create_string_buffer(64)
        attributes = ctypes.create_string_buffer(64)
        recursive = 1
        LIBC.pthread_mutexattr_init(attributes)
        LIBC.pthread_mutexattr_settype(attributes, recursive)
        LIBC.pthread_mutex_init(memory, attributes)
        LIBC.pthread_mutex_lock(memory)
        return int(Mutex.from_buffer(memory).owner)

    if owner() != os.getpid():
        pytest.skip("this libc keeps the owner elsewhere")

    def entry() -> None:
        assert owner() == os.getpid() == 1
        in_child(lambda: in_child(entry_of_a_chain))

    def entry_of_a_chain() -> None:
        assert owner() == os.getpid() > 1

    in_child(entry, CLONE_NEWPID)


def test_parents_handlers_and_wakeup_descriptor_are_not_the_childs(status_of: StatusOf) -> None:
    """A signal for the child runs no handler of the parent's, and does not wake its loop."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    runs: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda *_: runs.append(os.getpid()))
    wakeup = signal.set_wakeup_fd(theirs.fileno())
    try:
        assert status_of(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 128 + signal.SIGTERM
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert runs == [os.getpid()]
        assert ours.recv(2) == bytes([signal.SIGTERM])
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        ours.close()
        theirs.close()


def test_signal_masks(in_child: InChild) -> None:
    def entry() -> None:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
        with open("/proc/self/status") as status:
            fields = dict(line.rstrip().split(":\t") for line in status if line.startswith("Sig"))
        assert int(fields["SigIgn"], 16) & 1 << signal.SIGPIPE - 1

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        in_child(entry)
        with pytest.raises(OSError):
            clone(entry, 1 << 40)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_traps_of_an_engine_loaded_before(
    in_child: InChild, compiled: Callable[[str, str], bytes]
) -> None:
    wasmer = pytest.importorskip("wasmer")
    artifact = compiled("wasmer", '(module (func (export "f") unreachable))')

    def load() -> None:
        store = wasmer.Store(wasmer.engine.JIT(None))
        module = wasmer.Module.deserialize(store, artifact)

        def trap() -> None:
            with pytest.raises(RuntimeError, match="unreachable"):
                wasmer.Instance(module).exports.f()

        trap()
        assert len(os.listdir("/proc/self/task")) == 1
        in_child(trap)
        in_child(lambda: in_child(trap, CLONE_NEWPID))

    in_child(load)


async def test_from_inside_a_loop(in_child: InChild) -> None:
    async def sleep() -> int:
        await asyncio.sleep(0)
        return os.getpid()

    def entry() -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        assert asyncio.run(sleep()) == os.getpid()

    in_child(entry)
    await asyncio.sleep(0)


def test_failure_names_the_namespaces_and_leaves_one_process() -> None:
    pid = os.getpid()
    clone_thread_without_vm = 0x00010000
    try:
        with pytest.raises(OSError) as e:
            clone(lambda: None, clone_thread_without_vm | CLONE_NEWUTS)
    finally:
        if os.getpid() != pid:
            os._exit(1)
    assert (e.value.errno, e.value.filename) == (errno.EINVAL, "CLONE_NEWUTS")
    with pytest.raises(OSError) as e:
        clone(lambda: None, cgroup=0)
    assert e.value.errno == errno.EBADF


# Without clone3


@pytest.fixture
def without_clone3(in_child: InChild) -> Callable[[Callable[[], None]], None]:
    """Run a function in a child to whom clone3 is unknown, as in most containers."""

    def check(entry: Callable[[], None]) -> None:
        rule = SeccompSyscalls(names=("clone3",), action="SCMP_ACT_ERRNO", errno_ret=errno.ENOSYS)
        profile = Seccomp(default_action="SCMP_ACT_ALLOW", syscalls=(rule,))

        def hidden() -> None:
            seccomp.install(seccomp.compile_filter(profile))
            entry()

        in_child(hidden)

    return check


WithoutClone3 = Callable[[Callable[[], None]], None]


@pytest.mark.parametrize("name", NAMESPACES)
def test_parts_have_the_same_namespaces(
    name: str, without_clone3: WithoutClone3, in_child: InChild
) -> None:
    def parent() -> None:
        before = {other: ns(other) for other in NAMESPACES}

        def child() -> None:
            assert {other for other in NAMESPACES if ns(other) != before[other]} == {name}

        in_child(child, NAMESPACES[name])
        assert {other: ns(other) for other in NAMESPACES} == before
        for other in ("pid", "time"):
            assert ns(f"{other}_for_children") == before[other]
        in_child(lambda: None)

    without_clone3(parent)


def test_parts_are_all_done(
    without_clone3: WithoutClone3, in_child: InChild, status_of: StatusOf
) -> None:
    def parent() -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)
        fds = os.listdir("/proc/self/fd")

        def child() -> None:
            assert os.getpid() == 1
            with open("/proc/self/status") as status:
                fields = dict(line.rstrip().split(":\t") for line in status if line[:3] == "Sig")
            assert int(fields["SigCgt"], 16) & 1 << signal.SIGTERM - 1 == 0
            assert int(fields["SigIgn"], 16) & 1 << signal.SIGPIPE - 1
            assert int(fields["SigBlk"], 16) == 0

        in_child(child, CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWTIME)

        def exit_3() -> None:
            raise SystemExit(3)

        assert status_of(exit_3) == 3
        assert os.listdir("/proc/self/fd") == fds

    without_clone3(parent)


def test_parts_that_fail(without_clone3: WithoutClone3) -> None:
    def parent() -> None:
        fds = os.listdir("/proc/self/fd")
        os.setresuid(1000, 1000, 1000)
        credentials.set_dumpable(True)
        with pytest.raises(PermissionError) as e:
            clone(lambda: None, CLONE_NEWUTS)
        assert e.value.filename == "CLONE_NEWUTS"
        with pytest.raises(PermissionError) as e:
            clone(lambda: None, CLONE_NEWPID)
        assert os.listdir("/proc/self/fd") == fds
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    without_clone3(parent)


def test_unshare_and_setns_by_pidfd(in_child: InChild) -> None:
    child = clone(signal.pause, CLONE_NEWUTS | CLONE_NEWIPC)
    uts = os.readlink(f"/proc/{child.pid}/ns/uts")
    ipc = os.readlink(f"/proc/{child.pid}/ns/ipc")

    def entry() -> None:
        setns(child.pidfd, CLONE_NEWUTS | CLONE_NEWIPC)
        assert (ns("uts"), ns("ipc")) == (uts, ipc)
        unshare(CLONE_NEWUTS)
        assert ns("uts") != uts
        fd = os.open(f"/proc/{child.pid}/ns/uts", os.O_RDONLY)
        setns(fd, CLONE_NEWUTS)
        assert ns("uts") == uts
        with pytest.raises(OSError) as e:
            setns(fd, CLONE_NEWNET)
        assert (e.value.errno, e.value.filename) == (errno.EINVAL, uts)

    try:
        in_child(entry)
    finally:
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        wait(child.pidfd)
        os.close(child.pidfd)


def test_errors_name_the_culprit() -> None:
    with pytest.raises(OSError) as e:
        setns(-1, 0)
    assert (e.value.errno, e.value.filename) == (errno.EBADF, "fd -1")
    with pytest.raises(OSError) as e:
        unshare(1 << 12 | CLONE_NEWNET)
    assert (e.value.errno, e.value.filename) == (errno.EINVAL, "CLONE_NEWNET")


def test_import_is_possible_without_a_site(tmp_path: object) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import shim.linux.clone"
    root = os.path.dirname(os.path.dirname(os.path.dirname(module.__file__)))
    subprocess.run([sys.executable, "-ISE", "-c", code, root], check=True)
