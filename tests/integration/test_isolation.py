"""What the kernel says of a running wasm guest: against its spec, and beside runc's container.

`scripts/isolation-table` prints what differs from runc. `docs/security.md` has an explanation for
each difference, and these tests compare with the tables there: they fail for one that is not
explained, and for an explanation of what does not differ.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.guests.build import build
from tests.integration import kernel_view, specs
from tests.integration.client import Client
from tests.integration.conftest import IMAGE, Containers, program
from tests.integration.containerd import PYWASM, RUNC, Containerd, eventually
from tests.integration.images import Image
from tests.integration.kernel_view import View

SECURITY = Path(__file__).parents[2] / "docs/security.md"
NAMES = {"ipc": "ipc", "network": "net", "pid": "pid", "uts": "uts"}
"""Namespaces that runc 1.1 can be given by path, and what the kernel calls them."""

UIDS, GIDS = 123456, 234567
MIB = 1 << 20
ON_V1 = os.path.isdir("/sys/fs/cgroup/memory")
CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "devices", "blkio", "freezer")

Spec = dict[str, Any]


@dataclass
class Lab:
    """Runs idle programs under either runtime, and looks at them."""

    client: Client
    containers: Containers
    directory: Path

    @property
    def root(self) -> str:
        """A root filesystem with the idle programs."""
        return str(self.directory / "rootfs")

    @property
    def volume(self) -> str:
        """A tmpfs of the node's, shared, with another one in it (`inner`), to bind."""
        return str(self.directory / "volume")

    @property
    def containerd(self) -> Containerd:
        return self.client.containerd

    def run(self, runtime: str, spec: Spec) -> tuple[int, dict[str, str]]:
        """Run the idle program until it says so; its pid, and what its own names stand for."""
        spec = json.loads(json.dumps(spec))
        spec["process"]["args"] = [program(runtime, "idle")]
        container = self.containers.new(runtime, spec)
        container.fifos("stdout", "stderr")  # the reference shim wants both, and a reader for each
        readers = [os.open(p, os.O_RDONLY | os.O_NONBLOCK) for p in container.stdio.values()]
        try:
            if os.path.isabs(spec["root"]["path"]):
                pid = self.client.create(container.name, [], **container.stdio)
                self.client.start(container.name)
            else:
                pid = container.run()
            eventually(lambda: _read(readers[0]) == b"idle\n")
        finally:
            for reader in readers:
                os.close(reader)
        return pid, {
            f"/{self.containerd.namespace}/{container.name}": "/CONTAINER",
            **dict.fromkeys(container.stdio.values(), "FIFO"),
            str(self.directory): "DIRECTORY",
            self.containerd.directory: "CONTAINERD",
            str(UIDS): "ROOT",
            str(GIDS): "ROOT",
        }

    def view(self, runtime: str, spec: Spec, given: int = 0) -> View:
        """What is to be seen of it; `given` is a pid whose namespaces it may have joined."""
        pid, places = self.run(runtime, spec)
        if given:
            for kind in kernel_view.NAMESPACES:
                name = os.readlink(f"/proc/{given}/ns/{kind}")
                if name != os.readlink(f"/proc/self/ns/{kind}"):
                    places[name] = "the given one"
        return kernel_view.view(pid, places, tuple(spec["linux"].get("sysctl", ())))


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 100)
    except BlockingIOError:
        return b""


@pytest.fixture
def lab(client: Client, image: Image) -> Iterator[Lab]:
    directory = Path(client.containerd.directory, "isolation")
    root, volume = directory / "rootfs", directory / "volume"
    with ExitStack() as stack:
        # The first process of runc in a user namespace is nobody already when it looks for these.
        os.chmod(client.containerd.directory, 0o711)
        stack.callback(os.chmod, client.containerd.directory, 0o700)
        root.mkdir(parents=True)
        stack.callback(shutil.rmtree, directory)
        for name in ("dev", "etc", "masked", "private", "proc", "shared", "slave", "sys", "tmp"):
            (root / name).mkdir()
        (root / "etc/hosts").touch()
        shutil.copy(build("idle"), root / "idle.wasm")
        shutil.copy(build("idle", native=True), root / "idle")
        (root / "idle").chmod(0o755)
        (directory / "mapped").mkdir()
        volume.mkdir()
        stack.callback(subprocess.run, ["umount", "--lazy", str(volume)], check=True)
        for path in (volume, volume / "inner"):
            path.mkdir(exist_ok=True)
            options = ["-t", "tmpfs", "-o", "size=1m,mode=755"]
            subprocess.run(["mount", *options, "volume", str(path)], check=True)
            subprocess.run(["mount", "--make-shared", str(path)], check=True)
        (volume / "hosts").write_text("127.0.0.1 localhost\n")
        containers = Containers(client, image)
        stack.callback(containers.remove)
        yield Lab(client, containers, directory)


# --- specs, and what the kernel has to say of each ----------------------------------------------


def mount(destination: str, fstype: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": fstype, "source": source, "options": [*options]}


def base(lab: Lab) -> Spec:
    """With the root directory of the lab, the usual filesystems, and all namespaces of ctr's."""
    spec = specs.usual(annotations={"dev.pywasm.kernel-filesystems": "all"})
    spec["root"] = {"path": lab.root}
    spec["process"]["noNewPrivileges"] = False
    spec["mounts"] = [
        mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666"),
        mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=1m"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    ]
    return spec


def by_ctr(lab: Lab) -> Spec:
    """The spec of `ctr run --seccomp`."""
    name = lab.containerd.new_name()
    snapshotter = ("--snapshotter", lab.containerd.snapshotter)
    lab.containerd.checked("containers", "create", *snapshotter, "--seccomp", IMAGE, name)
    spec: Spec = json.loads(lab.containerd.checked("containers", "info", "--spec", name))
    lab.containerd.remove(name)
    return spec


BY_CTR = {
    **{f"status {name}": "00000000a80425fb" for name in ("CapPrm", "CapEff", "CapBnd")},
    "status CapInh": "0000000000000000",
    "status CapAmb": "0000000000000000",
    "status Uid": "0 0 0 0",
    "status Gid": "0 0 0 0",
    "status Groups": "0",
    "status Umask": "0022",
    "status NoNewPrivs": "1",
    "status Seccomp": "2",
    "status NSpid": "1",
    "limit Max open files": "1024 1024",
    "mount /": "* rw,*",
    "mount /run": "tmpfs tmpfs / rw,nosuid rw,size=65536k,mode=755*",
    "namespace mnt": "its own",
    "namespace user": "the node's",
    **{f"cgroup {name}": "/CONTAINER" for name in CONTROLLERS if ON_V1},
}


def hardened(lab: Lab) -> Spec:
    """Everything tightened that runc 1.1 can tighten."""
    spec = base(lab)
    spec["hostname"] = "hardened"
    spec["root"]["readonly"] = True
    spec["process"].update(
        user={"uid": 1000, "gid": 1001, "additionalGids": [10, 2000], "umask": 0o27},
        noNewPrivileges=True,
        oomScoreAdj=500,
        capabilities={},
        rlimits=[
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_FSIZE", "soft": MIB, "hard": 2**64 - 1},
            {"type": "RLIMIT_MEMLOCK", "soft": 0, "hard": 4096},
            {"type": "RLIMIT_NOFILE", "soft": 200, "hard": 300},
            {"type": "RLIMIT_NPROC", "soft": 400, "hard": 500},
        ],
    )
    spec["mounts"] += [
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "ro"),
        mount("/tmp", "tmpfs", "tmpfs", "nosuid", "nodev", "noexec", "size=2m", "mode=1770"),
        mount("/volume", "bind", lab.volume, "rbind", "ro", "nosuid", "nodev", "noexec"),
        mount("/shared", "bind", lab.volume, "rbind", "rshared"),
        mount("/slave", "bind", lab.volume, "bind", "rslave", "noatime"),
        mount("/private", "bind", lab.volume, "bind", "rprivate"),
        mount("/etc/hosts", "bind", f"{lab.volume}/hosts", "bind", "ro"),
    ]
    os.mkdir(f"{lab.root}/volume")
    fuse = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
    spec["linux"].update(
        sysctl={"net.ipv4.ip_forward": "1", "kernel.shmmax": "65536", "fs.mqueue.msg_max": "20"},
        maskedPaths=["/proc/keys", "/proc/timer_list", "/sys/firmware", "/masked", "/no/such"],
        readonlyPaths=["/proc/bus", "/proc/sys", "/volume/inner", "/no/such"],
        seccomp=SECCOMP,
        devices=[
            {**fuse, "fileMode": 0o640, "uid": 1000, "gid": 10},
            {"path": "/dev/deep/pipe", "type": "p", "fileMode": 0o622, "uid": 5, "gid": 6},
        ],
        resources={
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            ],
            "memory": {"limit": 64 * MIB, "reservation": 32 * MIB, "swap": 96 * MIB},
            "cpu": {"shares": 512, "quota": 50000, "period": 200000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 50},
        },
    )
    spec["linux"]["namespaces"].append({"type": "cgroup"})
    return spec


SECCOMP = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
    "syscalls": [
        {"names": ["mount", "umount2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
        {"names": ["ptrace", "keyctl", "bpf"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["kexec_load"], "action": "SCMP_ACT_KILL_PROCESS"},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ERRNO",
            "args": [
                {"index": 0, "value": 1 << 28, "valueTwo": 1 << 28, "op": "SCMP_CMP_MASKED_EQ"}
            ],
        },
    ],
}
CGROUP_FILES = (
    {
        **{f"cgroup {name}": "/CONTAINER" for name in CONTROLLERS},
        "cgroup memory.limit_in_bytes": f"{64 * MIB}",
        "cgroup memory.soft_limit_in_bytes": f"{32 * MIB}",
        "cgroup memory.memsw.limit_in_bytes": f"{96 * MIB}",
        "cgroup cpu.shares": "512",
        "cgroup cpu.cfs_quota_us": "50000",
        "cgroup cpu.cfs_period_us": "200000",
        "cgroup devices.list": "*c 10:229 rw;*",
    }
    if ON_V1
    else {
        "cgroup v2": "/CONTAINER",
        "cgroup memory.max": f"{64 * MIB}",
        "cgroup memory.low": f"{32 * MIB}",
        "cgroup memory.swap.max": f"{32 * MIB}",
        "cgroup cpu.max": "50000 200000",
    }
)
HARDENED = {
    "status Uid": "1000 1000 1000 1000",
    "status Gid": "1001 1001 1001 1001",
    "status Groups": "10 2000",
    "status Umask": "0027",
    **{f"status Cap{name}": "0" * 16 for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")},
    "status NoNewPrivs": "1",
    "status Seccomp": "2",
    "status Seccomp_filters": "1",
    "status Cpus_allowed_list": "0",
    "affinity": "0",
    "/proc/PID/oom_score_adj": "500",
    "limit Max core file size": "0 0",
    "limit Max file size": f"{MIB} unlimited",
    "limit Max locked memory": "0 4096",
    "limit Max open files": "200 300",
    "limit Max processes": "400 500",
    **{f"namespace {kind}": "its own" for kind in ("cgroup", "ipc", "mnt", "net", "pid", "uts")},
    "namespace user": "the node's",
    "namespace time": "the node's",
    "network devices": "lo",
    "loopback": "up",
    "sysctl kernel.hostname": "hardened",
    "sysctl net.ipv4.ip_forward": "1",
    "sysctl kernel.shmmax": "65536",
    "sysctl fs.mqueue.msg_max": "20",
    "mount /": "* ro,*",
    "mount /dev": "tmpfs tmpfs / rw,nosuid rw,size=65536k,mode=755*",
    "mount /dev/shm": "tmpfs shm / rw,nosuid,nodev,noexec,relatime rw,size=1024k*",
    "mount /dev/pts": "devpts devpts / rw,nosuid,noexec,relatime rw,mode=600,ptmxmode=666",
    "mount /dev/mqueue": "mqueue mqueue / rw,nosuid,nodev,noexec,relatime rw",
    "mount /proc": "proc proc / ro,nosuid,nodev,noexec,relatime rw",
    "mount /sys": "sysfs sysfs / ro,nosuid,nodev,noexec,relatime r*",
    "mount /sys/fs/cgroup": "* ro,nosuid,nodev,noexec,relatime r*",
    "mount /tmp": "tmpfs tmpfs / rw,nosuid,nodev,noexec,relatime rw,size=2048k,mode=1770*",
    "mount /volume": "tmpfs volume / ro,nosuid,nodev,noexec,relatime rw,size=1024k,mode=755*",
    "mount /volume/inner": "tmpfs volume / rw,relatime rw,size=1024k,mode=755*",
    "mount /volume/inner (2)": "tmpfs volume / ro,relatime rw,size=1024k,mode=755*",
    "mount /shared": "tmpfs volume / rw,relatime rw,* shared*",
    "mount /shared/inner": "tmpfs volume / rw,relatime rw,* shared*",
    "mount /slave": "tmpfs volume / rw,noatime rw,* master*",
    "mount /private": "tmpfs volume / rw,relatime rw,size=1024k,mode=755*",
    "mount /etc/hosts": "tmpfs volume /hosts ro,relatime rw,*",
    "mount /masked": "tmpfs tmpfs / ro,*",
    "mount /sys/firmware": "tmpfs tmpfs / ro,*",
    "mount /proc/keys": "* /null *",
    "mount /proc/timer_list": "* /null *",
    "mount /proc/bus": "proc proc /bus ro,nosuid,nodev,noexec,relatime rw",
    "mount /proc/sys": "proc proc /sys ro,nosuid,nodev,noexec,relatime rw",
    "/dev/fuse": "character 10:229 0640 1000:10",
    "/dev/deep/pipe": "pipe 0622 5:6",
    "/dev/null": "character 1:3 0666 0:0",
    "/dev/ptmx": "link to pts/ptmx",
    "/dev/stderr": "link to /proc/self/fd/2",
    "cgroup pids.max": "50",
    "cgroup cpuset.cpus": "0",
    "cgroup cpuset.mems": "0",
    **CGROUP_FILES,
}


def another_user(lab: Lab) -> Spec:
    """Capabilities in all five sets, and another user than root."""
    spec = base(lab)
    few = ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SYS_ADMIN"]
    spec["process"]["user"] = {"uid": 33, "gid": 34}
    spec["process"]["capabilities"] = {
        "bounding": [*few, "CAP_CHOWN"],
        "permitted": [*few, "CAP_CHOWN"],
        "effective": few,
        "inheritable": few[:2],
        "ambient": few[:1],
    }
    spec["annotations"]["dev.pywasm.engine"] = "wasmtime"
    spec["linux"]["rootfsPropagation"] = "rslave"
    return spec


ANOTHER_USER = {
    "status Uid": "33 33 33 33",
    "status Gid": "34 34 34 34",
    "status Groups": "",
    "status NoNewPrivs": "0",
    "status Seccomp": "0",
    "status CapBnd": "0000000000200421",
    "status CapPrm": "0000000000000020",
    "status CapEff": "0000000000000020",
    "status CapInh": "0000000000000420",
    "status CapAmb": "0000000000000020",
}


def user_namespace(lab: Lab) -> Spec:
    spec = base(lab)
    some = ["CAP_KILL", "CAP_SETUID", "CAP_SYS_ADMIN"]
    spec["process"]["capabilities"] = dict.fromkeys(("bounding", "permitted", "effective"), some)
    spec["process"]["user"] = {"uid": 0, "gid": 8, "additionalGids": [9]}
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"]["uidMappings"] = [{"containerID": 0, "hostID": UIDS, "size": 1000}]
    spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": GIDS, "size": 1000}]
    spec["mounts"].append(mount("/shared", "bind", lab.volume, "rbind", "ro"))
    for path in (lab.root, *map(str, Path(lab.root).rglob("*"))):
        os.chown(path, UIDS, GIDS)
    return spec


USER_NAMESPACE = {
    "namespace user": "its own",
    "/proc/PID/uid_map": "0 ROOT 1000",
    "/proc/PID/gid_map": "0 ROOT 1000",
    "/proc/PID/setgroups": "allow",
    "status Uid": "ROOT ROOT ROOT ROOT",
    "status Gid": f"{GIDS + 8} {GIDS + 8} {GIDS + 8} {GIDS + 8}",
    "status Groups": f"{GIDS + 9}",
    **{f"status {name}": "00000000002000a0" for name in ("CapPrm", "CapEff", "CapBnd")},
    "mount /shared": "tmpfs volume / ro,*",
    "mount /dev/shm": "tmpfs shm / rw,nosuid,nodev,noexec,* rw,size=1024k,uid=ROOT,gid=ROOT*",
}


def given(lab: Lab, pid: int) -> Spec:
    """In the namespaces of another process, as a pod's containers are."""
    spec = base(lab)
    spec["linux"]["namespaces"] = [
        {"type": "mount"},
        *({"type": name, "path": f"/proc/{pid}/ns/{kind}"} for name, kind in NAMES.items()),
    ]
    return spec


GIVEN = {
    "namespace mnt": "its own",
    "namespace cgroup": "the node's",
    **{f"namespace {kind}": "the given one" for kind in NAMES.values()},
    "status NSpid": "another",
}


def beyond_runc(lab: Lab) -> Spec:
    """What the spec has and runc 1.1 has not, or does not apply."""
    spec = base(lab)
    spec["domainname"] = "isolation.test"
    spec["process"].update(
        scheduler={"policy": "SCHED_BATCH", "nice": 5},
        ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 6},
    )
    mapping = [{"containerID": 0, "hostID": UIDS, "size": 10}]
    mapped = mount("/mapped", "bind", f"{lab.directory}/mapped", "bind", "idmap")
    spec["mounts"] += [
        mount("/shared", "bind", lab.volume, "rbind", "rro", "rnosuid"),
        {**mapped, "uidMappings": mapping, "gidMappings": mapping},
    ]
    spec["linux"].update(
        personality={"domain": "LINUX32"},
        timeOffsets={"monotonic": {"secs": 86400, "nanosecs": 5}, "boottime": {"secs": 3600}},
    )
    spec["linux"]["namespaces"] += [{"type": "time"}, {"type": "cgroup"}]
    return spec


BEYOND_RUNC = {
    "sysctl kernel.domainname": "isolation.test",
    "scheduler": "batch 0",
    "nice": "5",
    "I/O priority": "be 6",
    "/proc/PID/personality": "00000008",
    "/proc/PID/timens_offsets": "monotonic 86400 5 boottime 3600 0",
    "namespace time": "its own",
    "namespace cgroup": "its own",
    "mount /shared": "tmpfs volume / ro,nosuid,relatime rw,*",
    "mount /shared/inner": "tmpfs volume / ro,nosuid,relatime rw,*",
    "mount /mapped": "* rw,*idmapped *",
}


# --- differences --------------------------------------------------------------------------------


class Difference(NamedTuple):
    """A row of a table in the document; patterns as of fnmatch."""

    when: str
    field: str
    runc: str
    guest: str
    why: str

    def fits(self, field: str, runc: str, guest: str) -> bool:
        return (
            fnmatchcase(field, self.field)
            and fnmatchcase(runc, self.runc)
            and fnmatchcase(guest, self.guest)
        )


def explained() -> list[Difference]:
    """The tables below "Beside runc"; each is headed by when it applies."""
    section = SECURITY.read_text().partition("\n## Beside runc\n")[2].partition("\n## ")[0]
    found, when = [], ""
    for line in section.splitlines():
        if line.startswith("### "):
            when = line[4:]
        elif line.startswith("| `"):
            *shown, why = (cell.strip() for cell in line.strip("| ").split(" | "))
            field, runc, guest = (cell.strip("`") for cell in shown)
            found.append(Difference(when, field, runc, guest, why))
    return found


OLD = "cgroup v1, and runc before 1.2"


@dataclass
class Case:
    spec: Callable[..., Spec]
    kernel_says: View
    applies: set[str]
    """Which of the tables in the document apply, besides the one that always does."""


CASES = {
    "ctr run --seccomp": Case(by_ctr, BY_CTR, {"Without annotations"}),
    "hardened": Case(
        hardened, HARDENED, {"A procfs", "Another user than root", "Masked paths", "cgroup mounts"}
    ),
    "another user": Case(another_user, ANOTHER_USER, {"A procfs", "Another user than root"}),
    "user namespace": Case(user_namespace, USER_NAMESPACE, {"A procfs", "User namespaces"}),
    "given namespaces": Case(given, GIVEN, {"A procfs"}),
}


def tables(case: Case) -> set[str]:
    """Those that apply to a container of this spec, on this machine."""
    found = {"Always", *case.applies}
    version = subprocess.run(["runc", "--version"], capture_output=True, text=True, check=True)
    old = re.search(r"version 1\.[01]\.", version.stdout)
    if ON_V1 and old:
        found.add(OLD)
    return found


@pytest.mark.parametrize("name", CASES)
def test_guest_beside_runc(name: str, lab: Lab) -> None:
    case = CASES[name]
    pid = 0
    if case.spec is given:
        pid, _ = lab.run(RUNC, base(lab))
    spec = case.spec(lab, *([pid] if pid else []))
    guest, runc = lab.view(PYWASM, spec, pid), lab.view(RUNC, spec, pid)
    assert wrong(guest, case.kernel_says) == {}

    applicable = [d for d in explained() if d.when in tables(case)]
    unexplained, seen = {}, set()
    print(f"\n== {name}, containerd {lab.client.version()}")
    for field, (ours, theirs) in kernel_view.differences(guest, runc).items():
        known = next((d for d in applicable if d.fits(field, theirs, ours)), None)
        print(f"{field}\n    runc:  {theirs}\n    guest: {ours}\n    why:   {known and known.why}")
        if known is None:
            unexplained[field] = (theirs, ours)
        else:
            seen.add(known)
    assert unexplained == {}
    assert [d for d in applicable if d not in seen] == []


def test_every_table_of_the_document_is_used() -> None:
    used = {"Always", OLD}.union(*(c.applies for c in CASES.values()))
    assert {difference.when for difference in explained()} == used


def test_what_runc_has_not(lab: Lab) -> None:
    spec = beyond_runc(lab)
    assert wrong(lab.view(PYWASM, spec), BEYOND_RUNC) == {}


def test_namespaces_that_runc_cannot_be_given(lab: Lab) -> None:
    spec = user_namespace(lab)
    spec["linux"]["namespaces"] += [{"type": "time"}, {"type": "cgroup"}]
    pid, _ = lab.run(PYWASM, spec)
    spec["linux"]["namespaces"] = [
        {"type": "mount"},
        *({"type": kind, "path": f"/proc/{pid}/ns/{kind}"} for kind in ("cgroup", "time", "user")),
    ]
    says = {f"namespace {kind}": "the given one" for kind in ("cgroup", "time", "user")}
    assert wrong(lab.view(PYWASM, spec, pid), {**says, "/proc/PID/uid_map": "0 ROOT 1000"}) == {}


def wrong(view: View, expected: View) -> dict[str, tuple[str, str]]:
    """Fields that are not as expected: what they are, and the pattern they should fit."""
    return {
        name: (view.get(name, "-"), pattern)
        for name, pattern in expected.items()
        if not fnmatchcase(view.get(name, "-"), pattern)
    }
