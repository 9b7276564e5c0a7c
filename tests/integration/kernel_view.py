"""What the kernel says of a running process, seen from outside, as named fields: library.

Two containers are never equal to the letter: their ids, pids and directories differ. What stands
for the same thing is made equal here, so that what is left to differ is worth an explanation.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import stat
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence

from tests.integration import seccomp_view

View = dict[str, str]
"""Fields such as `status CapEff`, `mount /dev/shm`, `cgroup memory.limit_in_bytes`."""

# Of /proc/PID/status, what is neither a counter nor an amount of memory.
_STATUS = (
    *("Umask", "TracerPid", "Uid", "Gid", "Groups", "NSpid", "NSpgid", "NSsid", "Kthread"),
    *("CoreDumping", "THP_enabled", "Threads", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"),
    *("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"),
    *("Speculation_Store_Bypass", "SpeculationIndirectBranch"),
    *("Cpus_allowed_list", "Mems_allowed_list"),
)
_FILES = (
    *("attr/current", "attr/exec", "attr/fscreate", "attr/keycreate", "attr/sockcreate"),
    *("cmdline", "comm", "coredump_filter", "environ", "gid_map", "loginuid", "oom_score_adj"),
    *("personality", "sessionid", "setgroups", "timens_offsets", "timerslack_ns", "uid_map"),
)
_NS_GET_USERNS = 0xB701
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
# Of a cgroup's files, what counts, or acts when it is written to; the rest are limits.
_NO_LIMIT = re.compile(
    r"tasks|procs|threads|usage|failcnt|peak|current|stat|events|pressure|reclaim|reset|recursive"
    r"|serviced|service_bytes|clone_children|event_control|force_empty|release|eventfd|kill|type"
    r"|slabinfo|shown_ram|effective|controllers|subtree|allow|deny|freezer\.(self|parent)"
)
_KINDS = {
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "pipe",
    stat.S_IFDIR: "directory",
}
_ACCESS = ("read", "write", "read and write")
_POLICIES = ("other", "fifo", "rr", "batch", "iso", "idle", "deadline")
_IO_CLASSES = ("none", "rt", "be", "idle")


def view(pid: int, places: Mapping[str, str], sysctls: Sequence[str] = ()) -> View:
    """Return what is to be seen of the process `pid`, which does not run this code.

    `places` are parts of values and what stands for them: directories, ids, namespaces by path.
    The value of a namespace is `the node's` where it is that of this process, or else `its own`.
    """
    fields = {
        **_status(pid),
        **_files(pid),
        **_namespaces(pid, places),
        **_limits(pid),
        **_scheduling(pid),
        **_network(pid),
        **_names(pid, sysctls),
        **_descriptors(pid),
        **_mounts(pid),
        **_devices(pid),
        **_cgroups(pid),
        **{f"seccomp {arch}": text for arch, text in seccomp_view.verdicts(pid).items()},
    }
    for text in sorted(places, key=len, reverse=True):
        fields = {name: value.replace(text, places[text]) for name, value in fields.items()}
    return fields


def differences(ours: View, theirs: View) -> dict[str, tuple[str, str]]:
    """Return the fields that differ, with both values; `-` where one has no such field."""
    names = dict.fromkeys((*ours, *theirs))
    pairs = {name: (ours.get(name, "-"), theirs.get(name, "-")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError as error:
        return str(error.strerror)


def _status(pid: int) -> View:
    fields = dict(line.split(":", 1) for line in _read(f"/proc/{pid}/status").splitlines())
    values = {name: " ".join(fields.get(name, "").split()) for name in _STATUS}
    # One for each namespace, the innermost last.
    for name in ("NSpid", "NSpgid", "NSsid"):
        values[name] = "1" if values[name].split()[-1] == "1" else "another"
    for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
        values[name] = _signals(int(values[name], 16))
    return {f"status {name}": value for name, value in values.items()}


def _signals(mask: int) -> str:
    """Names, without those two that libc keeps for itself and ignores in what it spawns."""
    numbers = (number for number in range(1, 65) if mask >> number - 1 & 1)
    return " ".join(
        signal.Signals(number).name if number < 32 else str(number)
        for number in numbers
        if number not in (32, 33)
    )


def _files(pid: int) -> View:
    fields = {
        f"/proc/PID/{name}": " ".join(_read(f"/proc/{pid}/{name}").split()) for name in _FILES
    }
    for link in ("exe", "cwd", "root"):
        fields[f"/proc/PID/{link}"] = os.readlink(f"/proc/{pid}/{link}")
    # The kernel gives the files of a process that is not dumpable to root.
    owner = os.stat(f"/proc/{pid}/environ")
    return {**fields, "/proc/PID owner": f"{owner.st_uid}:{owner.st_gid}"}


def _namespaces(pid: int, places: Mapping[str, str]) -> View:
    fields = {}
    own = os.readlink(f"/proc/{pid}/ns/user")
    for kind in NAMESPACES:
        path = f"/proc/{pid}/ns/{kind}"
        name = os.readlink(path)
        if name == os.readlink(f"/proc/self/ns/{kind}"):
            name = "the node's"
        elif name not in places:
            name = "its own"
        fields[f"namespace {kind}"] = name
        if kind != "user":
            belongs = "its own" if _owner(path) == own else "the node's"
            fields[f"namespace {kind}, belongs to user namespace"] = belongs
    return fields


def _owner(path: str) -> str:
    """Name the user namespace that a namespace belongs to (ioctl_nsfs(2))."""
    fd = os.open(path, os.O_RDONLY)
    user = fcntl.ioctl(fd, _NS_GET_USERNS)
    name = os.readlink(f"/proc/self/fd/{user}")
    os.close(user)
    os.close(fd)
    return name


def _limits(pid: int) -> View:
    lines = _read(f"/proc/{pid}/limits").splitlines()[1:]
    parts = (re.split(r"\s{2,}", line) for line in lines)
    return {f"limit {part[0]}": f"{part[1]} {part[2]}" for part in parts}


def _scheduling(pid: int) -> View:
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()  # from the third on
    policy = os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK
    priority = seccomp_view.system_call("ioprio_get", 1, pid)
    return {
        "terminal": fields[4],
        "scheduler": f"{_POLICIES[policy]} {os.sched_getparam(pid).sched_priority}",
        "nice": fields[16],
        "I/O priority": f"{_IO_CLASSES[priority >> 13]} {priority & 7}",
        "affinity": " ".join(map(str, sorted(os.sched_getaffinity(pid)))),
    }


def _network(pid: int) -> View:
    lines = _read(f"/proc/{pid}/net/dev").splitlines()[2:]
    return {
        "network devices": " ".join(line.split(":")[0].strip() for line in lines),
        "loopback": "up" if "127.0.0.1" in _read(f"/proc/{pid}/net/fib_trie") else "down",
    }


def _names(pid: int, sysctls: Sequence[str]) -> View:
    names = ("kernel.hostname", "kernel.domainname", *sysctls)
    files = [f"/proc/sys/{name.replace('.', '/')}" for name in names]
    # Whose value the kernel shows depends on who reads.
    command = ["nsenter", f"--target={pid}", "--uts", "--ipc", "--net", "cat", *files]
    values = subprocess.run(command, check=True, capture_output=True).stdout.decode().splitlines()
    return {f"sysctl {name}": value for name, value in zip(names, values, strict=True)}


def _descriptors(pid: int) -> View:
    fields = {}
    for fd in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
        path = f"/proc/{pid}/fd/{fd}"
        target, kind = os.readlink(path), os.stat(path)
        # Where a device was opened says nothing: it may have been through a mount of its own.
        device = _node(kind) if stat.S_ISCHR(kind.st_mode) else target.partition(":[")[0]
        lines = _read(f"/proc/{pid}/fdinfo/{fd}").splitlines()
        flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
        access = "path" if flags & os.O_PATH else _ACCESS[flags & os.O_ACCMODE]
        fields[f"fd {fd}"] = f"{device} {access}"
    return fields


def _mounts(pid: int) -> View:
    fields: View = {}
    seen: Counter[str] = Counter()
    for line in _read(f"/proc/{pid}/mountinfo").splitlines():
        mount, _, filesystem = line.partition(" - ")
        _, _, _, root, point, options, *propagation = mount.split()
        fstype, source, data = filesystem.split(" ", 2)
        data = re.sub(r"(upperdir|workdir)=[^,]*", r"\1=SNAPSHOT", data)
        seen[point] += 1
        name = point if seen[point] == 1 else f"{point} ({seen[point]})"
        fields[f"mount {name}"] = " ".join(
            (fstype, source, root, options, data, *(p.partition(":")[0] for p in propagation))
        )
    return fields


def _devices(pid: int) -> View:
    fields = {}
    top = f"/proc/{pid}/root/dev"
    for directory, directories, files in os.walk(top):
        for name in sorted((*directories, *files)):
            path = f"{directory}/{name}"
            fields[path.removeprefix(f"/proc/{pid}/root")] = _entry(path)
    return fields


def _entry(path: str) -> str:
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return f"link to {os.readlink(path)}"
    return f"{_node(found)} {stat.S_IMODE(found.st_mode):04o} {found.st_uid}:{found.st_gid}"


def _node(found: os.stat_result) -> str:
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "file")
    if not found.st_rdev:
        return kind
    return f"{kind} {os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def _cgroups(pid: int) -> View:
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    fields: View = {}
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        fields[f"cgroup {controllers or 'v2'}"] = path
        for mount in mounts:
            options = mount[-1].split(",")
            mine = (
                set(controllers.split(",")) <= set(options)
                if controllers
                else mount[-3] == "cgroup2"
            )
            if mine and mount[-3].startswith("cgroup") and path != "/":
                fields.update(_cgroup_limits(mount[4] + path))
                break
    return fields


def _cgroup_limits(directory: str) -> View:
    return {
        f"cgroup {name}": "; ".join(sorted(_read(f"{directory}/{name}").splitlines()))
        for name in sorted(os.listdir(directory))
        if not _NO_LIMIT.search(name) and os.path.isfile(f"{directory}/{name}")
    }
