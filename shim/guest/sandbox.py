"""The process that holds a pod's namespaces. Runs in: guest.

CRI begins a pod with a container of its own, the sandbox, whose image has a program that does
nothing: the pod's other containers join its namespaces. Here nothing of that image is mounted or
executed. The guest becomes a program of some hundred bytes, in a root that has nothing else, so
that it costs a pod a few pages. Where a pod shares its PID namespace, it is the init that reaps
orphans. SIGTERM and SIGINT end it with status 0, as they end the usual image's program.

Where the pod has a user namespace, its other namespaces have to belong to that: an OCI runtime
enters it first, and then joins them and mounts their filesystems with the rights of its root. So
they are made in there, when all is done that takes the node's root.
"""

import os
import signal
import struct
from typing import Final

from oci.bundle import Outline
from oci.linux import Linux
from oci.runtime import Process
from shim.guest import annotations, control, program
from shim.guest.origin import Origin
from shim.guest.privileges import Confinement
from shim.linux import clone, credentials, mounts, security_labels, signals, user_namespace
from shim.linux.network import bring_up_loopback

_NAME: Final = "pywasm-sandbox"
_TMPFS: Final = "mode=755,size=64k,nr_inodes=4"

_JOINED: Final = {
    "ipc": clone.CLONE_NEWIPC,
    "network": clone.CLONE_NEWNET,
    "pid": clone.CLONE_NEWPID,
    "uts": clone.CLONE_NEWUTS,
}
"""What the other containers of a pod join."""

_WAITED_FOR: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
"""Blocked, which also keeps the kernel from ignoring them for an init."""

_MACHINES: Final = {
    "x86_64": (
        62,
        "488d3d3e000000 31f6 31d2 41ba08000000"  # next: rdi = set, rsi = rdx = 0, r10 = 8
        "b880000000 0f05"  # rt_sigtimedwait
        "83f811 740d 85c0 78df"  # eax == SIGCHLD: to reap; eax < 0: to next
        "31ff b8e7000000 0f05"  # exit_group(0)
        "4883cfff 31f6 ba01000000 4531d2"  # reap: rdi = -1, rsi = 0, rdx = WNOHANG, r10 = 0
        "b83d000000 0f05"  # wait4
        "85c0 7fe7 ebbb",  # eax > 0: to reap; to next
    ),
    "aarch64": (
        183,
        "a0020010 010080d2 020080d2 030180d2"  # next: x0 = set, x1 = x2 = 0, x3 = 8
        "281180d2 010000d4"  # rt_sigtimedwait
        "1f440071 a0000054 00ffff37"  # w0 == SIGCHLD: to reap; w0 < 0: to next
        "000080d2 c80b80d2 010000d4"  # exit_group(0)
        "00008092 010080d2 220080d2 030080d2"  # reap: x0 = -1, x1 = 0, x2 = WNOHANG, x3 = 0
        "882080d2 010000d4"  # wait4
        "1f000071 2cffff54 ecffff17",  # w0 > 0: to reap; to next
    ),
}
"""ELF's number for the machine, and the program as its code; the set of signals follows it."""

_BASE: Final = 0x400000
_EHDR, _PHDR = 64, 56
_ET_EXEC, _PT_LOAD, _PT_GNU_STACK = 2, 1, 0x6474E551
_EXECUTABLE, _WRITABLE, _READABLE = 1, 2, 4


def made_inside(outline: Outline) -> int:
    """Return the namespaces (CLONE_NEW*) that a guest makes itself, in its user namespace."""
    if not annotations.is_sandbox(outline.annotations):
        return 0
    if all(namespace.type != "user" for namespace in outline.namespaces):
        return 0
    flags = 0
    for namespace in outline.namespaces:
        if not namespace.path:
            flags |= _JOINED.get(namespace.type, 0)
    return flags


def enter_users(last: Confinement, inside: int) -> Confinement:
    """Enter the user namespace, as its root, and make namespaces there; returns what is left to do.

    Raises OSError.
    """
    assert last.user_namespace is not None
    user_namespace.enter(last.user_namespace)
    os.close(last.user_namespace)
    # To whom the sysctls of an IPC namespace belong.
    credentials.set_user(0, 0, keep_capabilities=True)
    clone.unshare(inside)
    if inside & clone.CLONE_NEWNET:
        bring_up_loopback()
    return last._replace(user_namespace=None, reborn=bool(inside & clone.CLONE_NEWPID))


def build(rootfs: str, linux: Linux) -> int:
    """Mount a root with the program alone; returns it open, for `rootfs.enter`. Raises OSError."""
    data = security_labels.mount_data("tmpfs", _TMPFS, linux.mount_label)
    mounts.mount("tmpfs", rootfs, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, data)
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    # Nobody may read it, so that the kernel lets no other user of the pod look into the process.
    fd = os.open(_NAME, flags, 0o111, dir_fd=root)
    os.write(fd, _executable(os.uname().machine))
    os.close(fd)
    mounts.seal(root)
    return root


def become(
    origin: Origin, process: Process, streams: program.Streams, last: Confinement
) -> program.Ready:
    """Become the user, ready to hold the namespaces. Raises OSError."""
    missing = program.settle(origin, process, streams, last)

    def run() -> None:
        signals.reset_signals(keep=())
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
        os.execve(f"/{_NAME}", [_NAME], {})

    return program.Ready(control.Ready("none", "the pod's sandbox", missing), run)


def _executable(machine: str) -> bytes:
    """Return an ELF file of the program (elf(5)). Raises KeyError for a machine without code."""
    number, text = _MACHINES[machine]
    code = bytes.fromhex(text)
    signal_set = sum(1 << signum - 1 for signum in _WAITED_FOR)
    start = _EHDR + 2 * _PHDR
    size = start + len(code) + 8
    ident = b"\x7fELF\x02\x01\x01"  # 64 bits, little-endian, version 1
    places = (_BASE + start, _EHDR, 0)
    sizes = (_EHDR, _PHDR, 2, 0, 0, 0)
    header = struct.pack("<16sHHI3QI6H", ident, _ET_EXEC, number, 1, *places, 0, *sizes)
    load = (_PT_LOAD, _READABLE | _EXECUTABLE, 0, _BASE, _BASE, size, size, 1 << 16)
    stack = (_PT_GNU_STACK, _READABLE | _WRITABLE, 0, 0, 0, 0, 0, 16)
    segments = b"".join(struct.pack("<IIQQQQQQ", *segment) for segment in (load, stack))
    return header + segments + code + struct.pack("<Q", signal_set)
