"""What a running process's seccomp filters answer to each system call: library.

The filters are taken out of the kernel (ptrace(2), PTRACE_SECCOMP_GET_FILTER) and run here, so that
two programs that say the same in other words are equal.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

Program = list[tuple[int, int, int, int]]
"""Instructions of classic BPF: code, jt, jf, k."""

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_WALL = 0x40000000
_CALLS = {"x86_64": {"ioprio_get": 252}, "aarch64": {"ioprio_get": 31}}
# AUDIT_ARCH_*, and what is or-ed to a number (the x32 variant).
_ARCHES = {
    "x86_64": {"x86_64": (0xC000003E, 0), "x86": (0x40000003, 0), "x32": (0xC000003E, 0x40000000)},
    "aarch64": {"aarch64": (0xC00000B7, 0), "arm": (0x40000028, 0)},
}
_LAST = 480  # a system call that no kernel has yet is looked at, too
_ARGUMENTS = {"": (0,) * 6, "clone of a user namespace": (0x10000000, *(0,) * 5)}
_ACTIONS = {
    0x80000000: "kill process",
    0x00000000: "kill thread",
    0x00030000: "trap",
    0x00050000: "errno",
    0x7FC00000: "notify",
    0x7FF00000: "trace",
    0x7FFC0000: "log",
    0x7FFF0000: "allow",
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def system_call(name: str, *arguments: int) -> int:
    """Make a system call that Python has no function for. Raises OSError."""
    result = int(_libc.syscall(_CALLS[platform.machine()][name], *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def verdicts(pid: int) -> dict[str, str]:
    """Return, for each architecture of this machine, which calls get which answer.

    Empty for a process without filters.
    """
    programs = filters(pid)
    if not programs:
        return {}
    found = {}
    for arch, (audit, variant) in _ARCHES[platform.machine()].items():
        for what, arguments in _ARGUMENTS.items():
            answers = [
                _answer(programs, _data(number | variant, audit, arguments))
                for number in range(_LAST)
            ]
            found[f"{arch} {what}".strip()] = _summary(answers)
    return found


def filters(pid: int) -> list[Program]:
    """Return the filters of a process, the newest first."""
    programs: list[Program] = []
    with _stopped(pid):
        while True:
            index = len(programs)
            length = _libc.ptrace(_GET_FILTER, pid, index, None)
            if length < 0:
                if ctypes.get_errno() in (errno.ENOENT, errno.EINVAL):
                    return programs
                raise OSError(ctypes.get_errno(), "PTRACE_SECCOMP_GET_FILTER")
            code = ctypes.create_string_buffer(length * 8)
            if _libc.ptrace(_GET_FILTER, pid, index, ctypes.addressof(code)) < 0:
                raise OSError(ctypes.get_errno(), "PTRACE_SECCOMP_GET_FILTER")
            programs.append(list(struct.iter_unpack("=HBBI", code.raw)))


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    _ptrace(_SEIZE, pid)
    try:
        _ptrace(_INTERRUPT, pid)
        os.waitpid(pid, _WALL)
        yield
    finally:
        _ptrace(_DETACH, pid)


def _ptrace(request: int, pid: int) -> None:
    if _libc.ptrace(request, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")


def _data(number: int, audit: int, arguments: tuple[int, ...]) -> tuple[int, ...]:
    """`struct seccomp_data` as words of 32 bits."""
    return struct.unpack("=16I", struct.pack("=IIQ6Q", number, audit, 0, *arguments))


def _answer(programs: list[Program], data: tuple[int, ...]) -> int:
    """The strictest answer of all; as numbers, the kernel compares them with a sign."""
    return min((run(p, data) for p in programs), key=lambda a: (a & 0xFFFF0000 ^ 0x80000000, a))


def run(program: Program, data: tuple[int, ...]) -> int:
    """Execute a filter on the words of `struct seccomp_data`. Raises ValueError: unknown code."""
    a = x = at = 0
    memory = [0] * 16
    while True:
        code, jt, jf, k = program[at]
        at += 1
        kind = code & 7
        if code == 0x20:  # ld [k]
            a = data[k // 4]
        elif code == 0x60:  # ld M[k]
            a = memory[k]
        elif code == 0x02:  # st M[k]
            memory[k] = a
        elif code == 0x54:  # and #k
            a &= k
        elif code == 0x06:  # ret #k
            return k
        elif code == 0x05:  # ja
            at += k
        elif kind == 5:
            operand = x if code & 8 else k
            test = code & 0xF0
            holds = {0x10: a == operand, 0x20: a > operand, 0x30: a >= operand, 0x40: a & operand}
            at += jt if holds[test] else jf
        elif code == 0x07:  # tax
            x = a
        elif code == 0x87:  # txa
            a = x
        else:
            raise ValueError(f"instruction {code:#x}")


def _summary(answers: list[int]) -> str:
    """`allow 0-3 7, errno 1 4-6 8`: the calls of each answer, in ranges."""
    ranges: dict[str, list[list[int]]] = {}
    for number, answer in enumerate(answers):
        name = _ACTIONS.get(answer & 0xFFFF0000, hex(answer))
        if answer & 0xFFFF:
            name += f"({answer & 0xFFFF})"
        found = ranges.setdefault(name, [])
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(
        " ".join((name, *(f"{a}-{b}" if a < b else f"{a}" for a, b in found)))
        for name, found in sorted(ranges.items())
    )
