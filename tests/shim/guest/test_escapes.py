"""With its wasm sandbox taken as broken, a guest is still in a container.

`escapes.py` has what it tries, `broken.py` is how it comes to; here is what it meets.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from proto import task_v2_pb2 as api
from shim.engines.text import assembled
from shim.linux.cgroups import hierarchies
from tests.guests.build import build
from tests.integration.containerd import Containerd, parent_of
from tests.shim.guest.broken import outcome
from tests.shim.guest.escapes import ATTEMPTS
from tests.shim.task_api import POD, Shim, call

CGROUP = f"/pywasm-escapes-{os.getpid()}"
CAPABILITIES = "00000000a80425fb"  # containerd's default

GUESTS = ("root", "user", "unconfined", "unconfined-user", "host-pids", "usual")
"""Containers of containerd's default spec, worst case first:

root             with its seccomp profile, and with every kernel filesystem that can be asked for
user             the same as user 1000
unconfined       as Kubernetes does it without a securityContext: no profile, no no_new_privs
unconfined-user  the same as user 1000
host-pids        unconfined, and in the host's PID namespace
usual            as root, without kernel filesystems, as a wasm guest is unless it asks
"""

# What depends on the kernel's configuration, or on what a version of containerd filters.
ONE_OF = {
    "KILLED": {"status -9"},
    "LIFT": {"EPERM", "EACCES", "ENOENT"},
    "LOCKED": {"EPERM", "EINVAL", "ENODEV"},
    "NOSYS": {"EPERM", "ENOSYS"},
    "PERF": {"EPERM", "EACCES", "ENOSYS"},
    "QUOTA": {"EPERM", "ENOENT", "ENOSYS"},
    "SEALED": {"EROFS", "EACCES"},
    "SRCH": {"EPERM", "ESRCH"},
    "ok": {"ok None"},
}

# A column for each guest, or one for all. What is not listed is EPERM for all; `*` stands for the
# shim and the neighbour.
TABLE = """
chroot_and_back                            ENOENT  EPERM   ENOENT  EPERM   ENOENT  ENOENT
lift its limits in a user namespace        EPERM   EPERM   LIFT    LIFT    LIFT    EPERM
unmount a mask in a user namespace         EPERM   EPERM   LOCKED  LOCKED  LOCKED  EPERM
join the first process's mnt namespace     EPERM   EPERM   EPERM   EPERM   EACCES  ENOENT
join the first process's net namespace     EPERM   EPERM   EPERM   EPERM   EACCES  ENOENT
join the first process's pid namespace     EPERM   EPERM   EPERM   EPERM   EACCES  ENOENT
join the first process's user namespace    EPERM   EPERM   EINVAL  EINVAL  EACCES  ENOENT
join the first process's uts namespace     EPERM   EPERM   EPERM   EPERM   EACCES  ENOENT
join the first process's ipc namespace     EPERM   EPERM   EPERM   EPERM   EACCES  ENOENT
join the first process's cgroup namespace  EPERM   EPERM   EPERM   EPERM   EACCES  ENOENT
up_from_descriptors                        ENOENT
up from /proc/self/fd                      ENOENT
up from /proc/self/cwd                     ENOENT
up from /proc/self/root                    ENOENT
up from /proc/1/cwd                        ENOENT  ENOENT  ENOENT  ENOENT  EACCES  ENOENT
up from /proc/1/root                       ENOENT  ENOENT  ENOENT  ENOENT  EACCES  ENOENT
an absolute path                           ENOENT
the artifact cache                         ENOENT
change the mode of stdin                   EROFS
change the owner of stdin                  EROFS
change the times of stdin                  EROFS
mark stdin                                 EROFS
write to the interpreter                   ETXTBSY EACCES  ETXTBSY EACCES  ETXTBSY ENOENT
write_to_the_interpreter_by_a_descriptor   ETXTBSY EACCES  ETXTBSY EACCES  ETXTBSY ENOENT
truncate the interpreter                   EROFS   SEALED  EROFS   SEALED  EROFS   ENOENT
mount a cgroup in a user namespace         EPERM   EPERM   LOCKED  LOCKED  LOCKED  EPERM
change the interpreter's mode              EROFS   EROFS   EROFS   EROFS   EROFS   ENOENT
change the interpreter's owner             EROFS   EROFS   EROFS   EROFS   EROFS   ENOENT
give the interpreter capabilities          EROFS   EROFS   EROFS   EROFS   EROFS   ENOENT
link the interpreter                       EXDEV   EXDEV   EXDEV   EXDEV   EXDEV   ENOENT
write_to_a_library                         EPERM   EPERM   EPERM   EPERM   EPERM   ENOENT
lower_the_oom_score                        EROFS   EROFS   EROFS   EROFS   EROFS   ENOENT
signal the *                               ESRCH   ESRCH   ESRCH   ESRCH   ok      ESRCH
trace the *                                ESRCH   ESRCH   ESRCH   ESRCH   EPERM   ESRCH
take a descriptor of the *                 ESRCH   ESRCH   ESRCH   ESRCH   EPERM   ESRCH
read the memory of the *                   SRCH    SRCH    ESRCH   ESRCH   EPERM   SRCH
move the pages of the *                    SRCH    SRCH    ESRCH   ESRCH   EPERM   SRCH
compare with the *                         SRCH    SRCH    ESRCH   ESRCH   EPERM   SRCH
open mem of the *                          ENOENT  ENOENT  ENOENT  ENOENT  EACCES  ENOENT
open root of the *                         ENOENT  ENOENT  ENOENT  ENOENT  EACCES  ENOENT
open cwd of the *                          ENOENT  ENOENT  ENOENT  ENOENT  EACCES  ENOENT
open environ of the *                      ENOENT  ENOENT  ENOENT  ENOENT  EACCES  ENOENT
open maps of the *                         ENOENT  ENOENT  ENOENT  ENOENT  EACCES  ENOENT
open fd/0 of the *                         ENOENT  ENOENT  ENOENT  ENOENT  EACCES  ENOENT
open exe of the *                          ENOENT  ENOENT  ENOENT  ENOENT  EACCES  ENOENT
open ns/mnt of the *                       ENOENT  ENOENT  ENOENT  ENOENT  EACCES  ENOENT
a file by the root of the *                  ENOENT  ENOENT  ENOENT  ENOENT  EACCES  ENOENT
signal_everybody                           ESRCH
load a module                              EPERM   EPERM   NOSYS   NOSYS   NOSYS   EPERM
load a module from a file                  EPERM   EPERM   NOSYS   NOSYS   NOSYS   EPERM
remove a module                            EPERM   EPERM   NOSYS   NOSYS   NOSYS   EPERM
another kernel                             EPERM   EPERM   NOSYS   NOSYS   NOSYS   EPERM
bpf                                        EPERM   EPERM   NOSYS   NOSYS   NOSYS   EPERM
perf_event_open                            EPERM   EPERM   PERF    PERF    PERF    EPERM
userfaultfd                                EPERM   EPERM   NOSYS   NOSYS   NOSYS   EPERM
quotas                                     EPERM   EPERM   QUOTA   QUOTA   QUOTA   EPERM
ports                                      EPERM   EPERM   NOSYS   NOSYS   NOSYS   EPERM
some ports                                 EPERM   EPERM   NOSYS   NOSYS   NOSYS   EPERM
call as an x32 program                     EPERM   EPERM   ENOSYS  ENOSYS  ENOSYS  EPERM
the shim's key                             EPERM   EPERM   EACCES  EACCES  EACCES  EPERM
link the shim's key                        EPERM   EPERM   EACCES  EACCES  EACCES  EPERM
search for a key                           EPERM   EPERM   ENOKEY  ENOKEY  ENOKEY  EPERM
more_processes                             EAGAIN
more_memory                                KILLED
no longer no_new_privs                     EINVAL
the host's abstract sockets                ECONNREFUSED
the host's loopback                        ECONNREFUSED
"""

# That there is nothing to be found is what an empty file says, or none at all.
HIDDEN = {"ENOENT", "ok b''", "EPERM"}
SEALED = {"ENOENT", "EROFS", "EACCES", "EISDIR"}


@pytest.fixture(scope="session")
def spec() -> dict[str, Any]:
    """What containerd itself writes for `ctr run --seccomp`."""
    with Containerd() as containerd:
        containerd.ctr("containers", "create", "--seccomp", "--rootfs", "/nowhere", "x", "/m.wasm")
        found: dict[str, Any] = json.loads(containerd.ctr("containers", "info", "x").stdout)["Spec"]
    return found


@pytest.fixture(scope="module")
def outcomes(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What came of each attempt, for each guest."""
    # Not below pytest's directory, which nobody else can enter: that must not be what stops them.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield tried(spec, directory)
        assert (directory / "secret").read_text() == "SECRET"


def tried(spec: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Have `broken.py` run a guest of each kind; return what it prints."""
    rootfs = directory / "rootfs"
    (rootfs / "tmp").mkdir(parents=True)
    (rootfs / "tmp").chmod(0o1777)
    (directory / "state").mkdir(mode=0o700)
    (directory / "secret").write_text("SECRET")
    (rootfs / "m.wasm").write_bytes(assembled(b'(module (func (export "_start")))'))
    for name, mode in (("status", 0o755), ("setuid", 0o4755)):
        shutil.copy(build("status", native=True), rootfs / name)
        (rootfs / name).chmod(mode)
    for guest in ("neighbour", *GUESTS):
        (directory / guest / "rootfs").mkdir(parents=True)
        (directory / guest / "config.json").write_text(json.dumps(variant(spec, guest)))
    done = subprocess.run(
        [sys.executable, "-m", "tests.shim.guest.broken", str(directory), *GUESTS],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        check=True,
    )
    for hierarchy in hierarchies():
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(hierarchy.mount + CGROUP)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def variant(spec: dict[str, Any], guest: str) -> dict[str, Any]:
    """The spec of one of `GUESTS`."""
    made: dict[str, Any] = json.loads(json.dumps(spec))
    process, linux = made["process"], made["linux"]
    made["root"] = {"path": "rootfs"}
    linux["cgroupsPath"] = f"{CGROUP}/{guest}"
    linux["resources"]["pids"] = {"limit": 64}
    linux["resources"]["memory"] = {"limit": 256 << 20, "swap": 256 << 20}
    mount = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
    made["mounts"].append(mount | {"options": ["ro", "nosuid", "noexec", "nodev"]})
    if guest != "usual":
        made["annotations"] = {"dev.pywasm.kernel-filesystems": "all"}
    if guest.endswith("user"):
        process["user"] = {"uid": 1000, "gid": 1000}
        process["capabilities"] = {"bounding": process["capabilities"]["bounding"]}
    if guest.startswith(("unconfined", "host-pids")):
        del linux["seccomp"]
        process["noNewPrivileges"] = False
    if guest == "host-pids":
        linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "pid"]
    return made


def expected(column: int) -> dict[str, set[str]]:
    """What each attempt may end with in a guest."""
    found = {name: {"EPERM"} for name in ATTEMPTS}
    for line in TABLE.strip().splitlines():
        template, _, rest = line.partition("  ")
        cells = rest.split()
        cell = cells[column if len(cells) > 1 else 0]
        for who in ("shim", "neighbour"):
            name = template.replace("*", who)
            if name in found:  # some exist on x86-64 only
                found[name] = ONE_OF.get(cell, {cell})
    for name in found:
        if name.startswith(("write /", "make a cgroup")):
            found[name] = SEALED
        elif name.startswith("read /"):
            found[name] = HIDDEN
    return found


FACTS = ("descriptors", "working_directory", "interfaces", "become_root", "a file that is setuid")
ROOT = f"ok Uid: 0 0 0 0  CapEff: {CAPABILITIES}"


@pytest.mark.parametrize("guest", GUESTS)
def test_all_fail(outcomes: dict[str, Any], guest: str) -> None:
    may = expected(GUESTS.index(guest))
    if guest.startswith(("unconfined", "host-pids")):
        del may["call_as_a_32_bit_program"]  # there is no filter to be passed by
    found = outcomes[guest]
    assert set(found) == set(ATTEMPTS)
    wrong = {
        name: found[name] for name in may if name not in FACTS and found[name] not in may[name]
    }
    assert wrong == {}


@pytest.mark.parametrize("guest", GUESTS)
def test_nothing_is_inherited(outcomes: dict[str, Any], guest: str) -> None:
    """Standard streams and granted directories; and the pipe by which the attempt told."""
    found = outcomes[guest]
    mounts = 4 if guest == "usual" else 9
    ok, *inherited = found["descriptors"].split()
    assert (ok, inherited[:3]) == ("ok", ["device", "pipe", "pipe"])
    assert sorted(inherited[3:]) == [*["directory"] * mounts, "pipe"]
    assert found["working_directory"] == "ok /"
    assert found["interfaces"] == "ok lo"


@pytest.mark.parametrize("guest", GUESTS)
def test_privileges_do_not_grow(outcomes: dict[str, Any], guest: str) -> None:
    found = outcomes[guest]
    if guest == "usual":  # without a /proc it cannot even be told
        ends = ("ok ", "ok ")
    elif guest == "user":
        ends = ("EPERM", "ok Uid: 1000 1000 1000 1000  CapEff: 0000000000000000")
    elif guest == "unconfined-user":
        # The image's own setuid program, which the spec allows by its noNewPrivileges, and no more
        # than the bounding set.
        ends = ("EPERM", f"ok Uid: 1000 0 0 0  CapEff: {CAPABILITIES}")
    else:
        ends = (ROOT, ROOT)
    assert (found["become_root"], found["a file that is setuid"]) == ends


def test_the_others_go_on(outcomes: dict[str, Any]) -> None:
    assert outcomes["neighbour"] is True


def test_attempts_are_told_apart() -> None:
    """Else all of this would pass for the wrong reason."""
    assert outcome(lambda: os.open("/", os.O_WRONLY)) == "EISDIR"
    assert outcome(lambda: 1) == "ok 1"
    assert outcome(lambda: os._exit(3)) == "status 3"
    assert "ZeroDivision" in outcome(lambda: 1 // 0)


async def test_no_other_containers_secrets_are_in_memory(tmp_path: Path) -> None:
    """A guest is a copy of its shim, which has never had a container's arguments or environment.

    The first container was there before its neighbour was cloned; so was the request for it.
    """
    shim = Shim(tmp_path, ["idle"])
    marks = {name: f"{name}-{secrets.token_hex(16)}" for name in ("one", "two")}
    pids = {}
    try:
        client = None
        for name, mark in marks.items():
            process = {"args": ["/idle.wasm", f"a{mark}"], "env": [f"E={mark}"], "cwd": "/"}
            shim.bundle(name, process=process, annotations=POD)
            client = client or await shim.start(name)
            request = shim.create_request(name)
            pids[name] = (await call(client, "Create", request, api.CreateTaskResponse)).pid
            await call(client, "Start", api.StartRequest(id=name), Empty)
            shim.clients.append((name, client))
        pids["shim"] = parent_of(pids["two"])
        held = {
            (who, name)
            for who, pid in pids.items()
            for name, mark in marks.items()
            if mark.encode() in memory(pid)
        }
        assert held == {("one", "one"), ("two", "two")}
    finally:
        await shim.close()


async def test_the_interpreter_and_its_libraries_are_nobodys_to_change(tmp_path: Path) -> None:
    """As in `broken.py`, so in every shim and guest: they are all the zygote's (CVE-2019-5736)."""
    shim = Shim(tmp_path, ["idle"])
    try:
        client = await shim.create("one", "/idle.wasm")
        request = api.StateRequest(id="one")
        guest = (await call(client, "State", request, api.StateResponse)).pid
        for pid in (guest, parent_of(guest)):
            assert os.statvfs(f"/proc/{pid}/exe").f_flag & os.ST_RDONLY
            assert changeable(pid) == []
    finally:
        await shim.close()


def changeable(pid: int) -> list[str]:
    """The mapped files that could be written to, by who may follow the links to them."""
    directory = f"/proc/{pid}/map_files"
    found = {os.readlink(f"{directory}/{name}"): name for name in os.listdir(directory)}
    return [
        path
        for path, name in found.items()
        if not path.startswith("/memfd:")  # sealed, and of this zygote alone
        and not os.statvfs(f"{directory}/{name}").f_flag & os.ST_RDONLY
    ]


def memory(pid: int) -> bytes:
    """All that a process has written to."""
    found = b""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in maps:
            span, access, *_ = line.split()
            first, end = (int(address, 16) for address in span.split("-"))
            if access.startswith("rw") and end - first < 1 << 30:
                mem.seek(first)
                with contextlib.suppress(OSError):
                    found += mem.read(end - first)
    return found
