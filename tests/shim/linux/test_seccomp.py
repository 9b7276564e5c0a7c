from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from oci.decoding import SpecError
from oci.linux import Seccomp, SeccompArg, SeccompSyscalls
from oci.runtime import Process, User
from shim import engines
from shim.engines.base import Grants
from shim.linux import seccomp
from shim.linux.clone import clone, wait
from shim.linux.credentials import become, no_new_privs, set_pdeathsig
from shim.linux.libc import LIBC, NUMBERS
from tests.guests.build import build
from tests.installed import ENGINES
from tests.integration.containerd import Containerd

InChild = Callable[..., None]
Alive = Callable[..., AbstractContextManager[int]]

X86_64 = os.uname().machine == "x86_64"
GETPPID = 110 if X86_64 else 173
SETPRIORITY = 141 if X86_64 else 140
UNSHARE = 272 if X86_64 else 97
KEXEC_LOAD = 246 if X86_64 else 104
FUTURE = 1000  # no kernel has it


@pytest.fixture(scope="session")
def default_profile(tmp_path_factory: pytest.TempPathFactory) -> Seccomp:
    """What containerd itself puts into the config of a container with `--seccomp`."""
    rootfs = tmp_path_factory.mktemp("rootfs")
    with Containerd() as containerd:
        containerd.ctr("containers", "create", "--seccomp", "--rootfs", str(rootfs), "profile")
        told = containerd.ctr("containers", "info", "profile").stdout
    found = json.loads(told)["Spec"]["linux"]["seccomp"]
    return msgspec.json.decode(json.dumps(found), type=Seccomp)


def call(number: int, *arguments: int) -> int:
    """A system call as native code makes it: 0, or its errno."""
    ctypes.set_errno(0)
    LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return ctypes.get_errno()


def confined(profile: Seccomp) -> None:
    program = seccomp.compile_filter(profile)
    no_new_privs()
    seccomp.install(program, seccomp.flag_bits(profile))


def profile(*rules: SeccompSyscalls, default: str = "SCMP_ACT_ALLOW", **fields: object) -> Seccomp:
    return Seccomp(default_action=default, syscalls=rules, **fields)  # type: ignore[arg-type]


def deny(
    *names: str, args: tuple[SeccompArg, ...] = (), number: int | None = None
) -> SeccompSyscalls:
    return SeccompSyscalls(names=names, action="SCMP_ACT_ERRNO", errno_ret=number, args=args)


# What a filter does

# So that a child can end orderly.
ALLOWED = (
    *("exit_group", "exit", "write", "read", "close", "futex"),
    *("mmap", "munmap", "mprotect", "brk", "rt_sigaction"),
)


def test_denied_calls_fail_and_others_do_not(in_child: InChild) -> None:
    def entry() -> None:
        confined(profile(deny("getppid"), deny("unshare", number=errno.EXDEV)))
        assert call(GETPPID) == errno.EPERM
        assert call(UNSHARE, 0) == errno.EXDEV
        assert os.getpid()

    in_child(entry)


def test_as_the_kernel_shows_it(alive: Alive) -> None:
    with (
        alive(lambda: confined(profile(deny("getppid")))) as pid,
        open(f"/proc/{pid}/status") as file,
    ):
        found = dict(line.rstrip("\n").split(":\t") for line in file)
    assert (found["Seccomp"], found["Seccomp_filters"], found["NoNewPrivs"]) == ("2", "1", "1")


VALUES = {0, 1, 5, 6, 7, 2**31 - 1}


@pytest.mark.parametrize(
    ("op", "value", "two", "denied"),
    [
        ("SCMP_CMP_EQ", 5, 0, {5}),
        ("SCMP_CMP_NE", 5, 0, VALUES - {5}),
        ("SCMP_CMP_LT", 6, 0, {0, 1, 5}),
        ("SCMP_CMP_LE", 6, 0, {0, 1, 5, 6}),
        ("SCMP_CMP_GT", 6, 0, {7, 2**31 - 1}),
        ("SCMP_CMP_GE", 6, 0, {6, 7, 2**31 - 1}),
        ("SCMP_CMP_MASKED_EQ", 0x4, 0x4, {5, 6, 7, 2**31 - 1}),
    ],
)
def test_conditions(op: str, value: int, two: int, denied: set[int], in_child: InChild) -> None:
    condition = SeccompArg(index=1, op=op, value=value, value_two=two)

    def entry() -> None:
        confined(profile(deny("setpriority", args=(condition,), number=errno.EXDEV)))
        assert {n for n in VALUES if call(SETPRIORITY, 3, n, 0) == errno.EXDEV} == denied

    in_child(entry)


def test_conditions_on_two_arguments_must_both_hold(in_child: InChild) -> None:
    both = tuple(SeccompArg(index=n, op="SCMP_CMP_EQ", value=5) for n in (0, 1))

    def entry() -> None:
        confined(profile(deny("setpriority", args=both, number=errno.EXDEV)))
        assert call(SETPRIORITY, 5, 5, 0) == errno.EXDEV
        assert call(SETPRIORITY, 5, 6, 0) == errno.EINVAL
        assert call(SETPRIORITY, 6, 5, 0) == errno.EINVAL

    in_child(entry)


def test_conditions_on_one_argument_are_alternatives(in_child: InChild) -> None:
    either = tuple(SeccompArg(index=0, op="SCMP_CMP_EQ", value=n) for n in (5, 6))

    def entry() -> None:
        confined(profile(deny("setpriority", args=either, number=errno.EXDEV)))
        found = [call(SETPRIORITY, n, 0, 0) for n in (5, 6, 7)]
        assert found == [errno.EXDEV, errno.EXDEV, errno.EINVAL]

    in_child(entry)


def test_deadly_actions(status_of: Callable[..., int]) -> None:
    for action, status in (
        ("SCMP_ACT_KILL_PROCESS", 128 + 31),
        ("SCMP_ACT_KILL", 128 + 31),
        ("SCMP_ACT_TRAP", 128 + 31),
    ):
        rule = SeccompSyscalls(names=("getppid",), action=action)

        def entry(rule: SeccompSyscalls = rule) -> None:
            confined(profile(rule))
            call(GETPPID)

        assert status_of(entry) == status, action


def test_calls_newer_than_the_profile_are_unknown(in_child: InChild) -> None:
    """Not forbidden: a libc that knows them would not try the older ones otherwise."""
    allowed = SeccompSyscalls(names=ALLOWED, action="SCMP_ACT_ALLOW")

    def entry(default: str, number: int | None, expected: int) -> None:
        confined(profile(allowed, default=default, default_errno_ret=number))
        assert call(FUTURE) == expected
        if default == "SCMP_ACT_ERRNO":
            assert call(GETPPID) == (number or errno.EPERM)
            assert call(-1) == (number or errno.EPERM)

    in_child(lambda: entry("SCMP_ACT_ERRNO", None, errno.ENOSYS))
    in_child(lambda: entry("SCMP_ACT_ERRNO", errno.EXDEV, errno.ENOSYS))
    in_child(lambda: entry("SCMP_ACT_LOG", None, errno.ENOSYS))


def test_names_nobody_knows_are_passed_over(in_child: InChild) -> None:
    def entry() -> None:
        confined(profile(deny("getppid", "flux_capacitor")))
        assert call(GETPPID) == errno.EPERM

    in_child(entry)


def test_a_rule_that_changes_nothing(in_child: InChild) -> None:
    rules = (deny("getppid"), SeccompSyscalls(names=("getpid",), action="SCMP_ACT_ALLOW"))
    in_child(lambda: confined(profile(*rules)))


@pytest.mark.skipif(not X86_64, reason="the other architecture is of x86_64")
def test_other_architectures(in_child: InChild) -> None:
    """Calls of an architecture that the profile does not name are deadly, as under runc."""
    rule = deny("getppid")
    one = seccomp.compile_filter(profile(rule))
    three = seccomp.compile_filter(
        profile(rule, architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"))
    )
    assert (simulate(one, 0xC000003E, 110), simulate(one, 0xC000003E, 39)) == (ERRNO | 1, ALLOW)
    assert simulate(one, 0x40000003, 64) == simulate(one, 0xC000003E, X32 | 110) == KILL
    assert simulate(three, 0x40000003, 64) == simulate(three, 0xC000003E, X32 | 110) == ERRNO | 1
    assert simulate(three, 0x40000028, 64) == KILL  # ARM


@pytest.mark.skipif(not X86_64, reason="numbers of x86_64")
def test_newer_calls_of_each_architecture() -> None:
    program = seccomp.compile_filter(
        profile(
            SeccompSyscalls(names=("getppid", "openat2"), action="SCMP_ACT_ALLOW"),
            default="SCMP_ACT_ERRNO",
            architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
        )
    )
    unknown = ERRNO | errno.ENOSYS
    for architecture, base, getppid in (
        (0xC000003E, 0, 110),
        (0x40000003, 0, 64),
        (0xC000003E, X32, 110),
    ):
        found = [simulate(program, architecture, base + n) for n in (getppid, 437, 436, 438, 900)]
        assert found == [ALLOW, ALLOW, ERRNO | 1, unknown, unknown]
    assert simulate(program, 0xC000003E, 0xFFFFFFFF) == ERRNO | 1


ERRNO, ALLOW, KILL, X32 = 0x00050000, 0x7FFF0000, 0, 0x40000000


def simulate(program: bytes, architecture: int, number: int) -> int:
    """Run a filter as the kernel would: the return value. Of BPF, what libseccomp uses."""
    data = struct.pack(
        "=iIQ6Q", number - (1 << 32 if number >> 31 else 0), architecture, 0, *[0] * 6
    )
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        op, true, false, k = code[at]
        at += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif op == 0x06:
            return int(k)
        elif op == 0x05:
            at += k
        elif op == 0x54:
            accumulator &= k
        else:
            jumps = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}
            at += true if jumps[op] else false


# What is no profile


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (profile(default="ALLOW"), "defaultAction: unknown action 'ALLOW'"),
        (profile(default=""), "defaultAction: unknown action ''"),
        (profile(default="SCMP_ACT_NOTIFY"), "defaultAction: SCMP_ACT_NOTIFY is not supported"),
        (
            profile(default_errno_ret=5),
            "defaultErrnoRet: SCMP_ACT_ALLOW returns no error number",
        ),
        (profile(listener_path="/x"), "listenerPath: notification is not supported"),
        (
            profile(architectures=("SCMP_ARCH_Z80",)),
            "architectures: unknown architecture 'SCMP_ARCH_Z80'",
        ),
        (profile(architectures=("amd64",)), "architectures: unknown architecture 'amd64'"),
        (profile(flags=("FAST",)), "flags: unknown flag 'FAST'"),
        (
            profile(flags=("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",)),
            "flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: notification is not supported",
        ),
        (profile(deny("a"), deny()), "syscalls[1].names: expected at least one name"),
        (
            profile(SeccompSyscalls(names=("read",), action="NO")),
            "syscalls[0].action: unknown action 'NO'",
        ),
        (
            profile(SeccompSyscalls(names=("read",), action="SCMP_ACT_NOTIFY")),
            "syscalls[0].action: SCMP_ACT_NOTIFY is not supported",
        ),
        (
            profile(SeccompSyscalls(names=("read",), action="SCMP_ACT_LOG", errno_ret=1)),
            "syscalls[0].errnoRet: SCMP_ACT_LOG returns no error number",
        ),
        (
            profile(deny("read", args=(SeccompArg(index=6, op="SCMP_CMP_EQ"),))),
            "syscalls[0].args[0].index: 6: a system call has 6 arguments",
        ),
        (
            profile(deny("read", args=(SeccompArg(index=0, op="=="),))),
            "syscalls[0].args[0].op: unknown operator '=='",
        ),
    ],
)
def test_errors_name_the_field(bad: Seccomp, message: str) -> None:
    with pytest.raises(SpecError) as e:
        seccomp.compile_filter(bad)
    assert str(e.value) == f"linux.seccomp.{message}"


def test_what_is_no_filter(in_child: InChild) -> None:
    def entry() -> None:
        no_new_privs()
        with pytest.raises(OSError) as e:
            seccomp.install(bytes(80))
        assert (e.value.errno, e.value.filename) == (errno.EINVAL, "linux.seccomp")

    in_child(entry)


def test_without_privileges(in_child: InChild) -> None:
    program = seccomp.compile_filter(profile(deny("getppid")))

    def entry() -> None:
        os.setresuid(1000, 1000, 1000)
        with pytest.raises(PermissionError):
            seccomp.install(program)
        no_new_privs()
        seccomp.install(program)

    in_child(entry)


def test_key_is_of_the_profile() -> None:
    keys = {seccomp.key(p) for p in (profile(), profile(deny("a")), profile(deny("a", number=1)))}
    assert len(keys) == 3
    assert seccomp.key(profile(deny("a"))) == seccomp.key(profile(deny("a")))


def test_compiling_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    seccomp.compile_filter(profile(deny("getppid")))
    with pytest.raises(SpecError):
        seccomp.compile_filter(profile(deny("a"), deny()))
    assert os.listdir("/proc/self/fd") == before


# containerd's own


def test_default_profile_in_the_guests_place(default_profile: Seccomp, in_child: InChild) -> None:
    def entry() -> None:
        confined(default_profile)
        assert call(KEXEC_LOAD, 0, 0, 0, 0) == errno.EPERM
        assert call(UNSHARE, 0x10000000) == errno.EPERM  # CLONE_NEWUSER
        assert call(NUMBERS["keyctl"], 0, -3, 0) == errno.EPERM
        assert call(NUMBERS["clone3"], 0, 0) == errno.ENOSYS
        assert call(FUTURE) == errno.ENOSYS
        new_user = 0x10000000 | 17
        assert call(56 if X86_64 else 220, new_user, 0, 0, 0, 0) == errno.EPERM

    in_child(entry)


def test_privileges_are_given_up_under_the_default_profile(
    default_profile: Seccomp, in_child: InChild
) -> None:
    """Where a container may gain privileges, the filter has to come first, as under runc."""
    program = seccomp.compile_filter(default_profile)
    user = User(uid=1000, gid=1000, additional_gids=(5,))

    def entry() -> None:
        seccomp.install(program, seccomp.flag_bits(default_profile))
        assert become(Process(user=user)) == []
        set_pdeathsig(9)
        with open("/proc/self/status") as file:
            found = dict(line.rstrip("\n").split(":\t") for line in file)
        assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "0")

    in_child(entry)


def test_threads_under_the_default_profile(default_profile: Seccomp, in_child: InChild) -> None:
    """clone3 is denied as unknown, so that libc does without."""

    def entry() -> None:
        confined(default_profile)
        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(call(KEXEC_LOAD, 0, 0, 0, 0)))
        thread.start()
        thread.join()
        assert results == [errno.EPERM]

    in_child(entry)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("guest", ["hello", "files"])
def test_guest_under_the_default_profile(
    kind: str, guest: str, default_profile: Seccomp, tmp_path: Path
) -> None:
    """Loaded and run by each engine with the filter in place, as a guest does."""
    wasm = build(guest).read_bytes()
    code = tmp_path / "code"
    run_in(lambda: code.write_bytes(engines.select(kind).compile(wasm)), tmp_path / "log")

    def run() -> NoReturn:
        engine = engines.select(kind)
        confined(default_profile)
        module = engine.load(code.read_bytes())
        module.check("_start")
        module.run(Grants([b"guest"], [], []), "_start")

    status, out = run_in(run, tmp_path / "out")
    if guest == "hello":
        assert (status, out[:5].lower()) == (0, b"hello"), out
    else:
        assert status < 126, out  # no directory was granted; what it does not do is die


def run_in(entry: Callable[[], object], path: Path) -> tuple[int, bytes]:
    """The exit status of a child, and what it wrote to stdout and stderr."""

    def redirected() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        entry()

    child = clone(redirected)
    try:
        status = wait(child.pidfd)
    finally:
        os.close(child.pidfd)
    return status, path.read_bytes()
