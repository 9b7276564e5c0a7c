"""seccomp: a profile of the runtime-spec compiled to a filter, and the filter installed (library).

libseccomp does the compiling: it knows the numbers of system calls on each architecture, and which
of them are multiplexed. What it makes depends on nothing but the profile and itself, and takes a
hundred times longer than to install it, so the two are apart: whoever starts the second container
with the same profile has kept the filter of the first, by its `key`.

The binding is ours, a dozen functions: the one on the package index had its last release in 2021,
and searches for the library by running a compiler whenever it is imported.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

import msgspec

from oci.decoding import SpecError
from oci.linux import Seccomp, SeccompArg, SeccompSyscalls
from shim.linux.libc import NUMBERS, fail, system_call

# Kept open from here on: the zygote's children share it.
try:
    _library: ctypes.CDLL | None = ctypes.CDLL("libseccomp.so.2")
except OSError:
    _library = None

_ERRNO: Final = 0x00050000
ACTIONS: Final = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
"""What a rule can do. SCMP_ACT_NOTIFY needs somebody to be notified, who is not there."""
_WITH_NUMBER: Final = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_PERMISSIVE: Final = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
OPERATORS: Final = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_ARGUMENTS: Final = 6
_U64: Final = 2**64

_TSYNC: Final = 1
FLAGS: Final = {
    "SECCOMP_FILTER_FLAG_TSYNC": _TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
"""All of them since Linux 4.17."""
_NOTIFYING: Final = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
_SET_MODE_FILTER: Final = 1

_ATTR_OPTIMIZE: Final = 8
_BINARY_TREE: Final = 2
_MANY: Final = 32  # system calls from which a tree beats a chain; and without any it is a bug
_UNKNOWN: Final = -1  # __NR_SCMP_ERROR

_X86_64: Final = 0xC000003E  # what the kernel calls the architecture of x32 calls, too
_X32: Final = 0x4000003E
_X32_BIT: Final = 0x40000000
_ARCHITECTURES: Final = (
    *("AARCH64", "ARM", "LOONGARCH64", "M68K", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64"),
    *("MIPSEL64N32", "PARISC", "PARISC64", "PPC", "PPC64", "PPC64LE", "RISCV64", "S390", "S390X"),
    *("SH", "SHEB", "X32", "X86", "X86_64"),
)
_ALL_ONES: Final = 0xFFFFFFFF  # the number of a call that a tracer has cancelled

_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS, at an offset into struct seccomp_data
_NUMBER, _ARCHITECTURE = 0, 4
_JUMP, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_GREATER_EQUAL = 0x05, 0x15, 0x25, 0x35
_RETURN: Final = 0x06


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("value_two", ctypes.c_uint64),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _function(name: str, restype: Any, *argtypes: Any) -> Any:
    function = getattr(_library, name)
    function.restype, function.argtypes = restype, argtypes
    return function


if _library is not None:
    _init = _function("seccomp_init", ctypes.c_void_p, ctypes.c_uint32)
    _release = _function("seccomp_release", None, ctypes.c_void_p)
    _api_get = _function("seccomp_api_get", ctypes.c_uint)
    _version = _function("seccomp_version", ctypes.POINTER(ctypes.c_uint * 3))
    _arch_native = _function("seccomp_arch_native", ctypes.c_uint32)
    _arch_named = _function("seccomp_arch_resolve_name", ctypes.c_uint32, ctypes.c_char_p)
    _arch_add = _function("seccomp_arch_add", ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32)
    _attr_set = _function(
        "seccomp_attr_set", ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32
    )
    _call_named = _function("seccomp_syscall_resolve_name", ctypes.c_int, ctypes.c_char_p)
    _call_named_on = _function(
        "seccomp_syscall_resolve_name_arch", ctypes.c_int, ctypes.c_uint32, ctypes.c_char_p
    )
    _rule_add = _function(
        "seccomp_rule_add_array",
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    )
    _export = _function("seccomp_export_bpf", ctypes.c_int, ctypes.c_void_p, ctypes.c_int)

_seccomp = system_call(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)


def library_version() -> tuple[int, ...]:
    """Of libseccomp; empty where there is none, and no filter can be made."""
    return tuple(_version().contents) if _library is not None else ()


def architectures() -> list[str]:
    """The architectures that a profile may name. Needs libseccomp."""
    return [f"SCMP_ARCH_{name}" for name in _ARCHITECTURES if _arch_named(name.lower().encode())]


def key(profile: Seccomp) -> str:
    """Name the filter that `compile_filter` makes of a profile, here and now, for a cache."""
    made_by = f"1 {os.uname().machine} {_api_get()} {library_version()}".encode()
    return hashlib.sha256(made_by + msgspec.json.encode(profile)).hexdigest()


def compile_filter(profile: Seccomp) -> bytes:
    """Return the profile as BPF instructions (struct sock_filter), for `install`.

    Calls that libseccomp has no name for are passed over. As under runc, what is newer than every
    call of the profile fails with ENOSYS, and not with the default action, unless that lets it
    pass: a libc that knows a newer call then uses the older one. Raises SpecError naming the field;
    OSError ENOENT where there is no libseccomp.
    """
    if _library is None:
        raise OSError(errno.ENOENT, "libseccomp.so.2 is not installed", "linux.seccomp")
    if profile.listener_path or profile.listener_metadata:
        raise SpecError("linux.seccomp.listenerPath: notification is not supported")
    flag_bits(profile)
    where = "linux.seccomp"
    default = _action(
        profile.default_action, profile.default_errno_ret, f"{where}.default", capital=True
    )
    architectures = _architectures(profile.architectures)
    context = _init(default)
    if not context:
        raise OSError(errno.EINVAL, f"seccomp_init({default:#x})", where)
    try:
        for name, token in architectures.items():
            _check(_arch_add(context, token), f"{where}.architectures: {name}", -errno.EEXIST)
        if sum(len(calls.names) for calls in profile.syscalls) > _MANY:
            _attr_set(context, _ATTR_OPTIMIZE, _BINARY_TREE)  # or without, before libseccomp 2.5
        for index, calls in enumerate(profile.syscalls):
            _add(context, calls, default, f"{where}.syscalls[{index}]")
        program = _exported(context)
    finally:
        _release(context)
    if profile.default_action in _PERMISSIVE:
        return program
    return _newer_calls_are_unknown(profile, {_arch_native(), *architectures.values()}) + program


def install(program: bytes, flags: int = 0) -> None:
    """Put this process, all of its threads and what they start under a compiled filter, for good.

    `flags` as `flag_bits` returns them. Needs no_new_privs or CAP_SYS_ADMIN. Raises OSError: EACCES
    without either, EINVAL for what is no filter.
    """
    filter_ = _Program(len(program) // _INSTRUCTION.size, program)
    address = ctypes.addressof(filter_)
    result = _seccomp(NUMBERS["seccomp"], _SET_MODE_FILTER, flags | _TSYNC, address)
    if result < 0:
        fail("seccomp", "linux.seccomp")
    if result > 0:
        raise OSError(errno.EBUSY, f"seccomp: thread {result} has a filter of its own")


def flag_bits(profile: Seccomp) -> int:
    """SECCOMP_FILTER_FLAG_* of the profile. Raises SpecError for one that is not known."""
    bits = 0
    for name in profile.flags:
        if name == _NOTIFYING:
            raise SpecError(f"linux.seccomp.flags: {name}: notification is not supported")
        bits |= _known(FLAGS, name, "linux.seccomp.flags", "flag")
    return bits


def _architectures(names: Iterable[str]) -> dict[str, int]:
    found = {}
    for name in names:
        prefix, _, short = name.partition("SCMP_ARCH_")
        token = 0 if prefix else _arch_named(short.lower().encode())
        if not token:
            raise SpecError(f"linux.seccomp.architectures: unknown architecture {name!r}")
        found[name] = token
    return found


def _action(name: str, number: int | None, where: str, *, capital: bool = False) -> int:
    if name == "SCMP_ACT_NOTIFY":
        raise SpecError(f"{where}{'Action' if capital else '.action'}: {name} is not supported")
    action = _known(ACTIONS, name, where + ("Action" if capital else ".action"), "action")
    if name in _WITH_NUMBER:
        return action | (errno.EPERM if number is None else number & 0xFFFF)
    if number is not None:
        what = "ErrnoRet" if capital else ".errnoRet"
        raise SpecError(f"{where}{what}: {name} returns no error number")
    return action


def _add(context: int, calls: SeccompSyscalls, default: int, where: str) -> None:
    action = _action(calls.action, calls.errno_ret, where)
    if not calls.names:
        raise SpecError(f"{where}.names: expected at least one name")
    conditions = [_condition(arg, f"{where}.args[{n}]") for n, arg in enumerate(calls.args)]
    if action == default:
        return  # libseccomp refuses a rule that would change nothing
    indices = [arg.index for arg in calls.args]
    # Two conditions on the same argument are alternatives to each other, which libseccomp has no
    # form for other than a rule each: what the profiles of Docker and containerd rely on.
    apart = len(set(indices)) < len(indices)
    rules = [[condition] for condition in conditions] if apart else [conditions]
    for name in calls.names:
        number = _call_named(name.encode())
        if number == _UNKNOWN:
            continue
        for rule in rules:
            array = (_Compare * len(rule))(*rule)
            result = _rule_add(context, action, number, len(rule), array)
            _check(result, f"{where}: {name}", -errno.EEXIST)


def _condition(arg: SeccompArg, where: str) -> _Compare:
    if arg.index >= _ARGUMENTS:
        raise SpecError(f"{where}.index: {arg.index}: a system call has {_ARGUMENTS} arguments")
    if arg.value >= _U64 or arg.value_two >= _U64:
        raise SpecError(f"{where}.value: out of range")
    operator = _known(OPERATORS, arg.op, f"{where}.op", "operator")
    return _Compare(arg.index, operator, arg.value, arg.value_two)


def _known(names: dict[str, int], name: str, where: str, kind: str) -> int:
    try:
        return names[name]
    except KeyError:
        raise SpecError(f"{where}: unknown {kind} {name!r}") from None


def _check(result: int, culprit: str, *expected: int) -> None:
    if result < 0 and result not in expected:
        _refuse(-result, culprit)


def _refuse(number: int, culprit: str) -> NoReturn:
    raise OSError(number, f"libseccomp: {os.strerror(number)}", culprit)


def _exported(context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(_export(context, fd), "linux.seccomp")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _newer_calls_are_unknown(profile: Seccomp, architectures: Iterable[int]) -> bytes:
    """Instructions to go before a filter's, which they fall through to."""
    names = {name.encode() for calls in profile.syscalls for name in calls.names}
    ranges: dict[int, list[tuple[int, int]]] = {}
    for token in sorted(architectures):
        last = max((_call_named_on(token, name) for name in names), default=_UNKNOWN)
        if last >= 0:
            audit = _X86_64 if token == _X32 else token
            end = _X32_BIT if token == _X86_64 else _ALL_ONES
            ranges.setdefault(audit, []).append((last, end))
    code: list[tuple[int, int, int, int]] = []
    for audit, unknown in reversed(ranges.items()):
        block = [(_LOAD, 0, 0, _NUMBER), *(step for span in unknown for step in _deny(*span))]
        # Each block ends at the filter, past the blocks that are there already.
        block.append((_JUMP, 0, 0, len(code)))
        code = [(_JUMP_EQUAL, 0, len(block), audit), *block, *code]
    return _packed([(_LOAD, 0, 0, _ARCHITECTURE), *code] if code else [])


def _deny(last: int, end: int) -> Sequence[tuple[int, int, int, int]]:
    return (
        (_JUMP_GREATER, 0, 2, last),
        (_JUMP_GREATER_EQUAL, 1, 0, end),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    )


def _packed(code: Iterable[tuple[int, int, int, int]]) -> bytes:
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)
