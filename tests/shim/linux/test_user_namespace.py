from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from oci.decoding import SpecError
from oci.linux import IDMapping, Linux, Namespace
from oci.runtime import Capabilities, Process, User
from shim.linux import user_namespace
from shim.linux.clone import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER
from shim.linux.credentials import become
from shim.linux.user_namespace import Ids

InChild = Callable[..., None]
Alive = Callable[..., AbstractContextManager[int]]

UIDS = (
    IDMapping(container_id=0, host_id=100_000, size=1000),
    IDMapping(container_id=1000, host_id=5, size=1),
)
GIDS = (IDMapping(container_id=0, host_id=200_000, size=2000),)


def status(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file)


@pytest.mark.parametrize(("uid", "host"), [(0, 100_000), (1000, 5)])
def test_entered_last(uid: int, host: int, alive: Alive) -> None:
    process = Process(
        user=User(uid=uid, gid=7, additional_gids=(8, 9), umask=0o027),
        capabilities=Capabilities(
            bounding=("CAP_KILL",), effective=("CAP_KILL",), permitted=("CAP_KILL",)
        ),
        no_new_privileges=True,
    )

    def entry() -> None:
        assert os.getpid() == 1
        namespace = user_namespace.create(UIDS, GIDS)
        user_namespace.enter(namespace)
        os.close(namespace)
        assert become(process) == []

    with alive(entry, CLONE_NEWPID | CLONE_NEWNS) as pid:
        with open(f"/proc/{pid}/uid_map") as file:
            assert [line.split() for line in file] == [["0", "100000", "1000"], ["1000", "5", "1"]]
        with open(f"/proc/{pid}/gid_map") as file:
            assert file.read().split() == ["0", "200000", "2000"]
        with open(f"/proc/{pid}/setgroups") as file:
            assert file.read() == "allow\n"
        found = status(pid)
        assert found["Uid"].split() == [str(host)] * 4
        assert found["Gid"].split() == ["200007"] * 4
        assert found["Groups"].split() == ["200008", "200009"]
        assert found["Umask"] == "0027"
        assert found["NoNewPrivs"] == "1"
        kept = 0 if uid else 32
        for name, bits in (("CapEff", kept), ("CapPrm", kept), ("CapBnd", 32), ("CapInh", 0)):
            assert int(found[name], 16) == bits, name
        own = os.readlink("/proc/self/ns/user")
        assert os.readlink(f"/proc/{pid}/ns/user") != own


def test_root_of_it_is_nobody_on_the_host(in_child: InChild) -> None:
    process = Process(
        capabilities=Capabilities(
            **dict.fromkeys(
                ("bounding", "effective", "permitted"),
                ("CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_KILL"),
            )
        )
    )
    parent = os.getpid()

    def entry() -> None:
        user_namespace.enter(user_namespace.create(UIDS, GIDS))
        assert become(process) == []
        assert os.getuid() == 0
        for attempt in (
            lambda: os.kill(parent, 0),
            lambda: os.open("/etc/shadow", os.O_RDONLY),
            lambda: os.open("/proc/sys/kernel/hostname", os.O_WRONLY),
            lambda: socket.sethostname("x"),
        ):
            with pytest.raises(PermissionError):
                attempt()

    in_child(entry)


def test_id_without_a_mapping(in_child: InChild) -> None:
    def entry() -> None:
        user_namespace.enter(user_namespace.create(UIDS, GIDS))
        with pytest.raises(OSError) as e:
            become(Process(user=User(uid=999_999)))
        assert (e.value.filename, e.value.strerror) == (
            "uid 999999",
            "not mapped in the user namespace",
        )

    in_child(entry)


def test_mappings_the_kernel_refuses(in_child: InChild) -> None:
    overlapping = (IDMapping(host_id=5, size=10), IDMapping(host_id=100, size=10))

    def entry() -> None:
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError) as e:
            user_namespace.create(UIDS, overlapping)
        assert e.value.filename == "linux.gidMappings"
        assert set(os.listdir("/proc/self/fd")) == before
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    in_child(entry)


def test_born_in_it(alive: Alive) -> None:
    """The other way: the parent writes the mappings of a child that waits for them."""
    with alive(lambda: None, CLONE_NEWUSER) as pid:
        user_namespace.write_mappings(f"/proc/{pid}", UIDS, GIDS)
        with open(f"/proc/{pid}/uid_map") as file:
            assert file.readline().split() == ["0", "100000", "1000"]


def test_ids() -> None:
    same = Ids()
    assert (same.uid(5), same.gid(6), same.root()) == (5, 6, None)
    assert same.mount_data("tmpfs", "mode=755") == "mode=755"
    ids = Ids(UIDS, GIDS)
    assert (ids.uid(0), ids.uid(1000), ids.gid(1999)) == (100_000, 5, 201_999)
    assert ids.root() == (100_000, 200_000)
    with pytest.raises(SpecError, match=r"linux.uidMappings: uid 1001 is not mapped"):
        ids.uid(1001)
    for fstype, data, expected in (
        ("tmpfs", "", "uid=100000,gid=200000"),
        ("tmpfs", "mode=755,gid=5", "mode=755,gid=200005,uid=100000"),
        ("devpts", "newinstance,gid=5", "newinstance,gid=200005"),
        ("proc", "hidepid=2,gid=5", "hidepid=2,gid=200005"),
        ("overlay", "lowerdir=/a,uid=0", "lowerdir=/a,uid=0"),
    ):
        assert ids.mount_data(fstype, data) == expected


@pytest.mark.parametrize("ids", [Ids(), Ids(UIDS, GIDS)])
@pytest.mark.parametrize("none", [2**32 - 1, -1])
def test_what_is_no_id_is_not_the_hosts_root(ids: Ids, none: int) -> None:
    for of_host in (ids.uid, ids.gid):
        with pytest.raises(SpecError, match=f"{none}: no id"):
            of_host(none)


@pytest.mark.parametrize(
    ("linux", "message"),
    [
        (Linux(uid_mappings=UIDS), "linux.uidMappings, gidMappings: there is no user namespace"),
        (
            Linux(namespaces=(Namespace(type="user"),), uid_mappings=UIDS),
            "linux.gidMappings: expected for a new user namespace",
        ),
        (
            Linux(namespaces=(Namespace(type="user"),)),
            "linux.uidMappings: expected for a new user namespace",
        ),
    ],
)
def test_mappings_and_namespace_belong_together(linux: Linux, message: str) -> None:
    with pytest.raises(SpecError) as e:
        user_namespace.check(linux)
    assert str(e.value) == message


def test_given_namespaces_need_no_mappings() -> None:
    user_namespace.check(Linux())
    user_namespace.check(Linux(namespaces=(Namespace(type="user", path="/proc/1/ns/user"),)))
