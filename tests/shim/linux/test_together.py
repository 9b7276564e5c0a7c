"""All of a spec applied to one process, in the order that a guest does it, seen from outside."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from oci.runtime import Spec, decode
from shim.linux import (
    credentials,
    devices,
    files,
    keyring,
    limits,
    masks,
    mounts,
    personality,
    procfs,
    scheduling,
    seccomp,
    security_labels,
    spec_mounts,
    sysctl,
    user_namespace,
)
from shim.linux.clone import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUTS,
)
from tests.shim.linux.mountinfo import Mount, mounted

NEW = {
    "mnt": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "net": CLONE_NEWNET,
    "cgroup": CLONE_NEWCGROUP,
    "time": CLONE_NEWTIME,
}


def config(user_namespace: bool) -> dict[str, object]:
    mapping = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
    names = ["pid", "ipc", "uts", "network", "mount", "cgroup", "time"]
    linux: dict[str, object] = {
        "namespaces": [{"type": name} for name in names],
        "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmax": "65536"},
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        "personality": {"domain": "LINUX"},
        "rootfsPropagation": "rslave",
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["unshare", "mount"], "action": "SCMP_ACT_ERRNO"}],
        },
    }
    if user_namespace:
        linux["namespaces"] = [{"type": name} for name in [*names, "user"]]
        linux |= {"uidMappings": mapping, "gidMappings": mapping}
    return {
        "process": {
            "user": {"uid": 1001, "gid": 1002, "additionalGids": [3], "umask": 0o027},
            "args": ["/x.wasm"],
            "capabilities": {
                "bounding": ["CAP_KILL", "CAP_CHOWN"],
                "effective": ["CAP_KILL"],
                "permitted": ["CAP_KILL"],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 256}],
            "noNewPrivileges": True,
            "oomScoreAdj": 500,
            "scheduler": {"policy": "SCHED_BATCH", "nice": 3},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "guest",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        ],
        "linux": linux,
    }


def live(spec: Spec, rootfs: str) -> None:
    """A guest's way into its container, between its clone and its module."""
    process, linux = spec.process, spec.linux
    filter_ = linux.seccomp
    assert filter_ is not None
    program = seccomp.compile_filter(filter_)
    proc = procfs.open_proc()
    # As the host's root, who it is born as.
    credentials.set_dumpable(False)
    credentials.set_pdeathsig(signal.SIGKILL)
    sysctl.check(linux.sysctl, linux.namespaces)
    security_labels.check(process.apparmor_profile, process.selinux_label, linux.mount_label)
    user_namespace.check(linux)
    limits.check_rlimits(process.rlimits)
    keyring.new_session_keyring()
    namespace = -1
    if linux.uid_mappings:
        namespace = user_namespace.create(linux.uid_mappings, linux.gid_mappings)
    # Mounts.
    ids = user_namespace.ids(linux)
    mounts.isolate(rootfs, linux.rootfs_propagation)
    mounts.mount(rootfs, rootfs, None, mounts.MS_BIND | mounts.MS_REC)
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY)
    for entry in spec.mounts:
        spec_mounts.mount(root, entry, linux)
    devices.create(root, linux.devices, ids)
    devices.create_links(root, ids)
    spec_mounts.seal(root, spec.mounts)
    masks.mask(root, linux.masked_paths, linux.mount_label)
    masks.make_readonly(root, linux.readonly_paths)
    mounts.seal(root)
    mounts.enter_root(root)
    mounts.share_root(linux.rootfs_propagation)
    # What is the process's own.
    credentials.set_hostname(spec.hostname)
    sysctl.write(linux.sysctl, proc)
    if process.oom_score_adj is not None:
        limits.set_oom_score_adj(process.oom_score_adj, proc)
    if process.scheduler is not None:
        scheduling.set_scheduler(process.scheduler)
    if process.io_priority is not None:
        scheduling.set_io_priority(process.io_priority)
    if linux.personality is not None:
        personality.set_personality(linux.personality)
    limits.set_rlimits(process.rlimits)
    if process.apparmor_profile:
        security_labels.apply_apparmor(process.apparmor_profile, proc)
    if process.selinux_label:
        security_labels.apply_selinux(process.selinux_label, proc)
    os.close(proc)
    if namespace >= 0:
        user_namespace.enter(namespace)
    if not process.no_new_privileges:
        seccomp.install(program, seccomp.flag_bits(filter_))
    assert credentials.become(process) == []
    credentials.set_pdeathsig(signal.SIGKILL)
    if process.no_new_privileges:
        seccomp.install(program, seccomp.flag_bits(filter_))


@pytest.mark.parametrize("user_namespace", [False, True])
def test_all_of_a_spec(
    user_namespace: bool, tmp_path: Path, alive: Callable[..., AbstractContextManager[int]]
) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    spec = decode(msgspec.json.encode(config(user_namespace)))
    base = 100_000 if user_namespace else 0
    flags = 0
    for flag in NEW.values():
        flags |= flag

    def entry() -> None:
        live(spec, str(rootfs))

    with alive(entry, flags) as pid:
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
        assert status["Uid"].split() == [str(base + 1001)] * 4
        assert status["Gid"].split() == [str(base + 1002)] * 4
        assert status["Groups"].split() == [str(base + 3)]
        assert status["Umask"] == "0027"
        assert int(status["CapBnd"], 16) == 1 << 5 | 1
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0  # those are root's
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert status["NSpid"].split()[1:] == ["1"]
        for name in (*NEW, *(["user"] if user_namespace else [])):
            assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
        with open(f"/proc/{pid}/oom_score_adj") as file:
            assert file.read() == "500\n"
        with open(f"/proc/{pid}/limits") as file:
            (line,) = (line for line in file if line.startswith("Max open files"))
            assert line.split()[3:5] == ["256", "512"]
        with open(f"/proc/{pid}/mountinfo") as file:
            shown = {mount.point: mount for mount in map(Mount, file)}
        assert "ro" in shown["/"].options
        assert "ro" in shown["/tmp"].options
        assert {"ro"} <= shown["/proc/sys"].options
        assert shown["/proc/keys"].root == "/null"
        assert mounted("/dev", pid).fstype == "tmpfs"
        # Nothing of the host is left in it.
        assert str(tmp_path) not in {mount.point for mount in shown.values()}
        assert os.stat(f"/proc/{pid}/root/dev/fuse").st_uid == base


def test_calls_after_it_are_a_guests(in_child: Callable[..., None], tmp_path: Path) -> None:
    """Native code in its place cannot undo any of it."""
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    spec = decode(msgspec.json.encode(config(False)))

    def entry() -> None:
        live(spec, str(rootfs))
        files.keep_only([])
        attempts: tuple[Callable[[], object], ...] = (
            lambda: os.setuid(0),
            lambda: os.setgroups([0]),
            lambda: mounts.mount("tmpfs", "/tmp", "tmpfs"),
            lambda: credentials.set_rlimit("RLIMIT_NOFILE", 1024, 1024),
            lambda: credentials.set_hostname("host"),
            lambda: os.mknod("/dev/mem", 0o20666, os.makedev(1, 1)),
            lambda: os.nice(-10),
            lambda: os.chroot("/"),
            lambda: credentials.set_capabilities(effective=["CAP_SYS_ADMIN"]),
            lambda: os.open("/proc/sysrq-trigger", os.O_WRONLY | os.O_CREAT),
        )
        for attempt in attempts:
            with pytest.raises((PermissionError, FileNotFoundError)):
                attempt()

    in_child(entry, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET)
