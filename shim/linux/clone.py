"""New processes and namespaces: `clone3(2)`, `setns(2)`, `unshare(2)` and pidfds (library).

`os.fork` can neither enter new namespaces, nor start inside a cgroup, nor return a pidfd, and doing
those afterwards costs a system call each, a second fork for the PID namespace, and a window in
which the child is not yet where it belongs. `clone3` does it all at once; the price is that we have
to do what `os.fork` does around it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from shim.linux import messages
from shim.linux.files import read_small
from shim.linux.libc import LIBC, NUMBERS, describe, fail
from shim.linux.signals import FAULTS, Handlers, handlers, restore

CLONE_NEWTIME: Final = 0x00000080
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
_NEW: Final = {name: flag for name, flag in globals().items() if name.startswith("CLONE_NEW")}

_CLONE_PIDFD: Final = 0x00001000
_CLONE_PARENT: Final = 0x00008000
_CLONE_CHILD_CLEARTID: Final = 0x00200000
_CLONE_CHILD_SETTID: Final = 0x01000000
_CLONE_CLEAR_SIGHAND: Final = 0x100000000
_CLONE_INTO_CGROUP: Final = 0x200000000

EXIT_EXCEPTION: Final = 70  # EX_SOFTWARE of sysexits.h

# struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
# set_tid, set_tid_size, cgroup
_CLONE_ARGS: Final = struct.Struct("=11Q")

# PyDLL keeps the interpreter lock. A plain CDLL would give it up around the call, and the child
# would then wait for it with the thread state of a parent that does not exist there.
_clone3 = ctypes.PyDLL(None, use_errno=True).syscall
_clone3.argtypes = (ctypes.c_long, ctypes.c_char_p, ctypes.c_size_t)
_clone3.restype = ctypes.c_long
_clone = ctypes.PyDLL(None, use_errno=True).syscall
_clone.argtypes = (ctypes.c_long, *[ctypes.c_ulong] * 5)
_clone.restype = ctypes.c_long

_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _hook in (_before_fork, _after_fork_parent, _after_fork_child):
    _hook.argtypes = ()
    _hook.restype = None

_setns = LIBC.setns
_setns.argtypes = (ctypes.c_int, ctypes.c_int)
_unshare = LIBC.unshare
_unshare.argtypes = (ctypes.c_int,)
_prctl = LIBC.prctl
_prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)

_sigset = ctypes.c_char * 128  # sigset_t of glibc and musl
_sigprocmask = LIBC.sigprocmask
_sigprocmask.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_ALL_SIGNALS: Final = b"\xff" * 128
_NO_SIGNALS: Final = bytes(128)
_PR_GET_TID_ADDRESS: Final = 40


_children: Final[set[int]] = set()


class Child(NamedTuple):
    """A process of ours, not yet waited for; closing the pidfd (close-on-exec) is the caller's."""

    pid: int
    pidfd: int


def adopt(pid: int) -> Child:
    """Take on a process that has become a child of ours when its parent ended. Raises OSError."""
    child = Child(pid, os.pidfd_open(pid))
    _children.add(pid)
    return child


def adopt_sibling(pidfd: int) -> Child:
    """Take on what a child of ours has made by `sibling`; the descriptor is taken over.

    Needs /proc. Raises ChildProcessError for a process that is no child of ours, or already known.
    """
    pid = pid_of(pidfd)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if pid in _children:
        raise ChildProcessError(errno.ECHILD, "a child that is known")
    _children.add(pid)
    return Child(pid, pidfd)


def pid_of(pidfd: int) -> int:
    """Return the pid of a pidfd's process, as /proc numbers it; -1 if that has ended."""
    info = read_small(f"/proc/self/fdinfo/{pidfd}").splitlines()
    return next(int(line.split()[1]) for line in info if line.startswith(b"Pid:"))


def is_awaited(pid: int) -> bool:
    """Whether a child of this process is one that somebody here will `wait` for.

    Others can only be reaped by who looks for them: what came to a subreaper.
    """
    return pid in _children


def waited(pid: int) -> None:
    """Say that a child was waited for otherwise than by `wait`."""
    _children.discard(pid)


def clone(entry: Callable[[], None], flags: int = 0, *, cgroup: int | None = None) -> Child:
    """Run `entry` in a new process, in new namespaces as `flags` (CLONE_NEW*) say.

    The child ignores the signals its parent ignores (SIGPIPE, in Python), has the parent's trap
    handlers and no others, whatever `signal.getsignal` says, and blocks none. It never returns from
    this call: it ends with status 0 after `entry`, as a `SystemExit` says, or with a traceback on
    stderr and `EXIT_EXCEPTION`. Its buffered files are not flushed. `cgroup` is a descriptor of a
    cgroup v2 directory to be born in.

    The calling process must have no other thread. Where there is no clone3, and no cgroup to be
    born in, it is done in parts. Raises OSError (clone(2)).
    """
    pidfd = ctypes.c_int(-1)
    tid_flags, tid_address = _thread_id()
    kernel_flags = flags | tid_flags | _CLONE_PIDFD | _CLONE_CLEAR_SIGHAND
    if cgroup is not None:
        kernel_flags |= _CLONE_INTO_CGROUP
    args = _CLONE_ARGS.pack(
        kernel_flags,
        ctypes.addressof(pidfd),
        tid_address,
        0,
        signal.SIGCHLD,
        *(0, 0, 0, 0, 0),
        0 if cgroup is None else cgroup,
    )
    number, size = NUMBERS["clone3"], len(args)
    mask = _sigset()
    # The kernel removes every handler from the child: the parent's would run code, and wake the
    # loop, of the parent. Of these the engine's trap handlers come back, because an engine installs
    # them once, when it is loaded. Blocked, lest the child runs a handler that the parent noted.
    traps = handlers(FAULTS)
    _sigprocmask(signal.SIG_SETMASK, _ALL_SIGNALS, mask)
    try:
        _before_fork()
        pid = _clone3(number, args, size)
        if pid == 0:
            _run_child(entry, traps, _after_fork_child)
        error = ctypes.get_errno()
        _after_fork_parent()
        if pid < 0 and error == errno.ENOSYS and cgroup is None:
            return _fork(entry, flags, traps)
    finally:
        _sigprocmask(signal.SIG_SETMASK, mask, None)
    if pid < 0:
        fail("clone3", _names(flags) or None, error)
    _children.add(pid)
    return Child(pid, pidfd.value)


def sibling() -> Child | None:
    """Split this process in two, as fork(2), of which this one's parent is the parent of both.

    Returns the new one's pid and pidfd to the old one, and None in the new one, which has the same
    signal handlers. It is born in the PID namespace that this process has entered for its children
    (`setns`). By clone(2), which filters of system calls allow more often than clone3. The calling
    process must have no other thread. Raises OSError: ENOMEM where that namespace has ended.
    """
    pidfd = ctypes.c_int(-1)
    tid_flags, tid_address = _thread_id()
    flags = _CLONE_PARENT | _CLONE_PIDFD | tid_flags | signal.SIGCHLD
    last = (0, tid_address) if os.uname().machine == "aarch64" else (tid_address, 0)
    mask = _sigset()
    _sigprocmask(signal.SIG_SETMASK, _ALL_SIGNALS, mask)
    try:
        _before_fork()
        pid = _clone(NUMBERS["clone"], flags, 0, ctypes.addressof(pidfd), *last)
        if pid == 0:
            _after_fork_child()
            _children.clear()
            return None
        error = ctypes.get_errno()
        _after_fork_parent()
    finally:
        _sigprocmask(signal.SIG_SETMASK, mask, None)
    if pid < 0:
        fail("clone", errno=error)
    return Child(pid, pidfd.value)


def _thread_id() -> tuple[int, int]:
    """Flags, and an address, with which the kernel writes a new process's id where libc has it.

    libc owns recursive mutexes by that name, and fork(3) has it updated, too. No flags where the
    kernel does not tell the address (CONFIG_CHECKPOINT_RESTORE).
    """
    address = ctypes.c_ulong()
    if _prctl(_PR_GET_TID_ADDRESS, ctypes.addressof(address), 0, 0, 0) != 0:
        return 0, 0
    return _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID, address.value


def _fork(entry: Callable[[], None], flags: int, traps: Handlers) -> Child:
    """Do it in parts: where clone3 is hidden from us, as by the seccomp filters of containers.

    The namespaces of a process to come are changed for all children, then changed back; the others
    the child leaves by itself. Signals are blocked.
    """
    before = flags & (CLONE_NEWPID | CLONE_NEWTIME)
    with contextlib.ExitStack() as stack:
        if before:
            for name, flag in (("pid", CLONE_NEWPID), ("time", CLONE_NEWTIME)):
                if before & flag:
                    own = os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
                    stack.callback(os.close, own)
                    stack.callback(setns, own, flag)
            unshare(before)
        read, write = os.pipe()
        stack.callback(os.close, read)
        pid = os.fork()
        if pid == 0:
            _run_child(lambda: _leave(entry, flags & ~before, write), traps, _forget_handlers)
        os.close(write)
        _children.add(pid)
        pidfd = os.pidfd_open(pid)
        failure = os.read(read, 16)
    if failure:
        wait(pidfd)
        os.close(pidfd)
        fail("unshare", _names(flags), int(failure))
    return Child(pid, pidfd)


def _leave(entry: Callable[[], None], flags: int, report: int) -> None:
    try:
        if flags:
            unshare(flags)
    except OSError as e:
        os.write(report, str(e.errno).encode())
        return
    os.close(report)
    entry()


def _forget_handlers() -> None:
    for signo, action in handlers(signal.valid_signals()):
        action.handler = None
        restore([(signo, action)])


def _names(flags: int) -> str:
    return "|".join(name for name, flag in _NEW.items() if flags & flag)


def _run_child(
    entry: Callable[[], None], traps: Handlers, after_fork: Callable[[], None]
) -> NoReturn:
    status = EXIT_EXCEPTION
    try:
        after_fork()
        _children.clear()
        signal.set_wakeup_fd(-1)
        restore(traps)
        _sigprocmask(signal.SIG_SETMASK, _NO_SIGNALS, None)
        entry()
        status = 0
    except SystemExit as exit_:
        status = _exit_status(exit_.code)
    except BaseException:  # this process has nobody above it who could catch anything
        messages.report()
    finally:
        os._exit(status)


def _exit_status(code: object) -> int:
    """What the interpreter makes of the code of a `SystemExit`."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    os.write(2, f"{code}\n".encode(errors="replace"))
    return 1


def setns(fd: int, nstype: int) -> None:
    """Enter the namespace of an nsfs file, or the CLONE_NEW* given of a pidfd's (setns(2))."""
    if _setns(fd, nstype) < 0:
        fail("setns", describe(fd))


def unshare(flags: int) -> None:
    """Move this process to new namespaces; PID and time ones are for its children (unshare(2))."""
    if _unshare(flags) < 0:
        fail("unshare", _names(flags))


def wait(pidfd: int) -> int:
    """Wait for a child to end and reap it: its exit status, or 128 + the signal that killed it.

    Does not block once the pidfd has become readable. Raises ChildProcessError if it is no child of
    ours.
    """
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    if result is None:
        raise ChildProcessError("waitid returned nothing without WNOHANG")
    waited(result.si_pid)
    if result.si_code == os.CLD_EXITED:
        return result.si_status
    return 128 + result.si_status
