"""The system calls that a compiler may make. Runs in: compiler.

It reads hostile input, and what it needs is memory, threads, and the descriptors that it has. So
whoever finds a hole in it finds the kernel's front nearly closed: no file is opened, no socket, no
process made, no other program executed.
"""

from __future__ import annotations

import errno
from typing import Final

from oci.linux import Seccomp, SeccompArg, SeccompSyscalls
from shim.linux import seccomp

_ALLOWED: Final = (
    # memory
    *("brk", "madvise", "mmap", "mprotect", "mremap", "munmap", "membarrier"),
    # descriptors that it has
    *("close", "dup", "fcntl", "fstat", "newfstatat", "ftruncate", "lseek"),
    *("read", "readv", "pread64", "write", "writev", "pwrite64"),
    *("poll", "ppoll", "pselect6", "select"),
    # threads; `clone` is below
    *("exit", "exit_group", "futex", "futex_waitv", "get_robust_list", "set_robust_list", "rseq"),
    *("set_tid_address", "gettid", "getpid", "getppid", "sched_getaffinity", "sched_yield"),
    *("sched_getparam", "sched_getscheduler", "tgkill", "restart_syscall"),
    # signals, and time
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack"),
    *("clock_getres", "clock_gettime", "clock_nanosleep", "gettimeofday", "nanosleep", "time"),
    # what it is, and where
    *("getegid", "geteuid", "getgid", "getuid", "getrandom", "getrusage", "sysinfo", "uname"),
)
_CLONE_THREAD: Final = 0x10000
_CLONE_NEW: Final = 0x7E020000  # every namespace that clone(2) can make
_PR_SET_NAME: Final = 15
_MASKED: Final = "SCMP_CMP_MASKED_EQ"

_PROFILE: Final = Seccomp(
    default_action="SCMP_ACT_ERRNO",
    default_errno_ret=errno.EPERM,
    syscalls=(
        SeccompSyscalls(names=_ALLOWED, action="SCMP_ACT_ALLOW"),
        SeccompSyscalls(
            names=("clone",),
            action="SCMP_ACT_ALLOW",
            args=(
                SeccompArg(
                    index=0,
                    value=_CLONE_THREAD | _CLONE_NEW,
                    value_two=_CLONE_THREAD,
                    op=_MASKED,
                ),
            ),
        ),
        # Its flags are out of a filter's sight: libc then does with `clone`.
        SeccompSyscalls(names=("clone3",), action="SCMP_ACT_ERRNO", errno_ret=errno.ENOSYS),
        SeccompSyscalls(
            names=("prctl",),
            action="SCMP_ACT_ALLOW",
            args=(SeccompArg(index=0, value=_PR_SET_NAME, op="SCMP_CMP_EQ"),),
        ),
        # The size of its stack; of itself, and not to change anything.
        SeccompSyscalls(
            names=("prlimit64",),
            action="SCMP_ACT_ALLOW",
            args=(
                SeccompArg(index=0, value=0, op="SCMP_CMP_EQ"),
                SeccompArg(index=2, value=0, op="SCMP_CMP_EQ"),
            ),
        ),
    ),
)


def confine() -> None:
    """Let this process make no others from now on; 1.5 ms, of which the shim sees nothing.

    Nothing happens where there is no libseccomp. Needs no_new_privs. Raises OSError.
    """
    try:
        program = seccomp.compile_filter(_PROFILE)
    except FileNotFoundError:
        return
    seccomp.install(program)
