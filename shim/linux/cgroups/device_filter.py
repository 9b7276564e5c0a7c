"""The device rules of a cgroup v2: a BPF program that the kernel asks at every access (library).

It is an attachment of the cgroup's directory (BPF_PROG_TYPE_CGROUP_DEVICE). Programs of the parents
are asked, too, and each of them can refuse. Sources: bpf(2), the kernel's
Documentation/bpf/standardization/instruction-set.rst, include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import resource
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from shim.linux.cgroups.device_rules import MKNOD, READ, WRITE, Rule
from shim.linux.cgroups.files import Directory, refusal
from shim.linux.libc import system_call

_SYS_BPF: Final = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_PROG_LOAD: Final = 5
_PROG_ATTACH: Final = 8
_PROG_DETACH: Final = 9
_PROG_GET_FD_BY_ID: Final = 13
_PROG_QUERY: Final = 16
_TYPE_CGROUP_DEVICE: Final = 15
_ATTACH_CGROUP_DEVICE: Final = 6
_ALLOW_MULTI: Final = 2
_MAX_PROGRAMS: Final = 64  # of one cgroup
_LOAD_TRIES: Final = 30

_TYPES: Final = {"b": 1, "c": 2}
_ACCESS: Final = {MKNOD: 1, READ: 2, WRITE: 4}

# struct bpf_insn: code, registers (destination in the low half), offset, immediate value
_INSTRUCTION: Final = struct.Struct("=BBhi")
_LOAD_WORD: Final = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_MOVE: Final = 0xB4  # BPF_ALU | BPF_MOV | BPF_K; 32 bits wide, as all that follow
_MOVE_REGISTER: Final = 0xBC  # BPF_ALU | BPF_MOV | BPF_X
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_SHIFT_RIGHT: Final = 0x74  # BPF_ALU | BPF_RSH | BPF_K
_JUMP_EQUAL: Final = 0x16  # BPF_JMP32 | BPF_JEQ | BPF_K
_JUMP_UNEQUAL: Final = 0x56  # BPF_JMP32 | BPF_JNE | BPF_K
_EXIT: Final = 0x95  # BPF_JMP | BPF_EXIT
_RESULT, _CONTEXT, _TYPE, _WANTED, _MAJOR, _MINOR, _SCRATCH = 0, 1, 2, 3, 4, 5, 6

# The beginnings of union bpf_attr. The kernel takes what is missing for zero; but from 6.17 to 7.1
# its answer to a query is as long as it can be, whatever the size it was told.
_LOAD: Final = struct.Struct("=IIQQIIQ")  # type, count, instructions, licence, log level, size, log
_ATTACH: Final = struct.Struct("=III I")  # target, program, type, flags
_QUERY: Final = struct.Struct("=IIIIQI 100x")  # target, type, query flags, flags, ids, count

_bpf = system_call(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)


@functools.lru_cache(8)
def program(rules: tuple[Rule, ...]) -> bytes:
    """Translate rules, of which the last that speaks of an access decides, else it is refused.

    The program goes through them backwards and keeps the accesses that are not decided yet. Most
    containers have the same rules, and the zygote can translate those for all of them.
    """
    code = [
        _instruction(_LOAD_WORD, _TYPE, source=_CONTEXT),  # struct bpf_cgroup_dev_ctx
        _instruction(_MOVE_REGISTER, _WANTED, source=_TYPE),
        _instruction(_AND, _TYPE, value=0xFFFF),
        _instruction(_SHIFT_RIGHT, _WANTED, value=16),
        _instruction(_LOAD_WORD, _MAJOR, source=_CONTEXT, offset=4),
        _instruction(_LOAD_WORD, _MINOR, source=_CONTEXT, offset=8),
    ]
    for rule in reversed(rules):
        access = sum(_ACCESS[letter] for letter in rule.access)
        if rule.allow:
            then = [
                _instruction(_AND, _WANTED, value=~access),
                _instruction(_JUMP_UNEQUAL, _WANTED, offset=2),
                *_answer(1),
            ]
        else:
            then = [
                _instruction(_MOVE_REGISTER, _SCRATCH, source=_WANTED),
                _instruction(_AND, _SCRATCH, value=access),
                _instruction(_JUMP_EQUAL, _SCRATCH, offset=2),
                *_answer(0),
            ]
        tests = [
            (register, value)
            for register, value in (
                (_TYPE, _TYPES.get(rule.type)),
                (_MAJOR, rule.major),
                (_MINOR, rule.minor),
            )
            if value is not None
        ]
        for index, (register, value) in enumerate(tests):
            rest = len(tests) - index - 1 + len(then)
            code.append(_instruction(_JUMP_UNEQUAL, register, offset=rest, value=value))
        code += then
        if rule.type == "a" and len(rule.access) == len(_ACCESS):
            break  # nothing that came before counts
    return b"".join(code + _answer(0))


def attach_device_filter(directory: Directory, rules: Iterable[Rule]) -> None:
    """Let the processes of a v2 cgroup use the devices that `rules` allow, and no other.

    In place of what was attached to it before. Raises OSError: EPERM without CAP_BPF and
    CAP_NET_ADMIN (or CAP_SYS_ADMIN).
    """
    try:
        cgroup = directory.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            _replace(cgroup, program(tuple(rules)))
        finally:
            os.close(cgroup)
    except OSError as e:
        raise refusal(e.errno, "devices", e.strerror, directory.path) from None


def _replace(cgroup: int, code: bytes) -> None:
    before = _attached(cgroup)
    filter = _load(code)
    try:
        # First the new one: in between, both are asked.
        _call(_PROG_ATTACH, _ATTACH.pack(cgroup, filter, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI))
        for number in before:
            _detach(cgroup, number)
    finally:
        os.close(filter)  # the cgroup keeps it


def _load(code: bytes) -> int:
    instructions, licence = ctypes.create_string_buffer(code), ctypes.c_char_p(b"Apache-2.0")
    attributes = _LOAD.pack(
        _TYPE_CGROUP_DEVICE,
        len(code) // _INSTRUCTION.size,
        ctypes.addressof(instructions),
        ctypes.cast(licence, ctypes.c_void_p).value,
        *(0, 0, 0),
    )
    for _ in range(_LOAD_TRIES):
        try:
            return _call(_PROG_LOAD, attributes)
        except BlockingIOError:
            continue  # a signal came while the program was verified
        except PermissionError:
            # Before Linux 5.11 programs count as locked memory.
            soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
            if soft == resource.RLIM_INFINITY:
                raise
            raised = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            with suppress(ValueError):
                resource.setrlimit(resource.RLIMIT_MEMLOCK, raised)
            try:
                return _call(_PROG_LOAD, attributes)
            finally:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    raise OSError(errno.EAGAIN, "bpf: the verifier is interrupted again and again")


def _attached(cgroup: int) -> list[int]:
    """The numbers of the programs that are attached to this very cgroup."""
    numbers = (ctypes.c_uint32 * _MAX_PROGRAMS)()
    query = ctypes.create_string_buffer(
        _QUERY.pack(cgroup, _ATTACH_CGROUP_DEVICE, 0, 0, ctypes.addressof(numbers), _MAX_PROGRAMS)
    )
    if _bpf(_SYS_BPF, _PROG_QUERY, query, _QUERY.size) < 0:
        raise _error()
    count: int = _QUERY.unpack(query.raw[: _QUERY.size])[-1]
    return list(numbers[:count])


def _detach(cgroup: int, number: int) -> None:
    try:
        old = _call(_PROG_GET_FD_BY_ID, struct.pack("=I", number))
    except PermissionError:
        return  # somebody guards it (SELinux); it can only refuse more
    except FileNotFoundError:
        return
    try:
        _call(_PROG_DETACH, _ATTACH.pack(cgroup, old, _ATTACH_CGROUP_DEVICE, 0))
    finally:
        os.close(old)


def _call(command: int, attributes: bytes) -> int:
    result = _bpf(_SYS_BPF, command, attributes, len(attributes))
    if result < 0:
        raise _error()
    return int(result)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"bpf: {os.strerror(number)}")


def _instruction(
    code: int, register: int, *, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    # The value is 32 bits, of whichever sign.
    signed = (value + 2**31) % 2**32 - 2**31
    return _INSTRUCTION.pack(code, register | source << 4, offset, signed)


def _answer(result: int) -> list[bytes]:
    return [_instruction(_MOVE, _RESULT, value=result), _instruction(_EXIT, 0)]
