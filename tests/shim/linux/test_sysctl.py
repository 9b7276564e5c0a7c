from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from oci.decoding import SpecError
from oci.linux import Namespace
from shim.linux import sysctl
from shim.linux.clone import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUTS
from shim.linux.procfs import open_proc

OWN = tuple(Namespace(type=kind) for kind in ("ipc", "network", "uts"))


def read(path: str) -> str:
    with open(f"/proc/sys/{path}") as file:
        return " ".join(file.read().split())


def test_written_in_the_containers_namespaces_alone(in_child: Callable[..., None]) -> None:
    wanted = {
        "kernel.shmmax": "123456",
        "kernel.sem": "100 200 30 40",
        "kernel.msgmax": "4096",
        "kernel.shm_rmid_forced": "1",
        "fs.mqueue.queues_max": "11",
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net/ipv4/conf/lo/rp_filter": "2",
        "kernel.domainname": "example",
    }
    paths = {name: name.replace(".", "/") for name in wanted}
    before = {name: read(path) for name, path in paths.items()}
    assert not set(before.items()) & set(wanted.items())

    def entry() -> None:
        proc = open_proc()
        sysctl.write(wanted, proc)
        for name, value in wanted.items():
            assert read(paths[name]) == value

    sysctl.check(wanted, OWN)
    in_child(entry, CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWPID)
    assert {name: read(path) for name, path in paths.items()} == before


def test_written_after_the_host_is_out_of_sight(in_child: Callable[..., None]) -> None:
    def entry() -> None:
        proc = open_proc()
        here = os.open("/proc/sys/net/ipv4/ip_unprivileged_port_start", os.O_RDONLY)
        os.chroot("/proc/self/fdinfo")
        sysctl.write({"net.ipv4.ip_unprivileged_port_start": "7"}, proc)
        assert os.read(here, 10) == b"7\n"

    in_child(entry, CLONE_NEWNET)


@pytest.mark.parametrize(
    ("name", "namespaces", "message"),
    [
        ("kernel.shmmax", (), "without a ipc namespace it would be the host's"),
        ("fs.mqueue.msg_max", OWN[1:], "without a ipc namespace it would be the host's"),
        ("net.core.somaxconn", (), "without a network namespace it would be the host's"),
        (
            "net.core.somaxconn",
            (Namespace(type="network", path="/proc/self/ns/net"),),
            "without a network namespace it would be the host's",
        ),
        ("kernel.domainname", OWN[:1], "without a uts namespace it would be the host's"),
        ("kernel.hostname", OWN, "there is the field `hostname` for it"),
        ("user.max_user_namespaces", OWN, "without a user namespace it would be the host's"),
        ("kernel.core_pattern", OWN, "belongs to no namespace, it would be the host's"),
        ("vm.overcommit_memory", OWN, "belongs to no namespace, it would be the host's"),
        ("net/../kernel/core_pattern", OWN, "not the name of a sysctl"),
        ("net/ipv4//x", OWN, "not the name of a sysctl"),
        ("", OWN, "not the name of a sysctl"),
    ],
)
def test_those_of_the_host(name: str, namespaces: tuple[Namespace, ...], message: str) -> None:
    with pytest.raises(SpecError) as e:
        sysctl.check({name: "1"}, namespaces)
    assert str(e.value) == f"linux.sysctl[{name!r}]: {message}"


def test_a_given_namespace_is_the_containers_own() -> None:
    pid = os.fork()
    if pid == 0:
        from shim.linux.clone import unshare

        unshare(CLONE_NEWNET)
        os.kill(os.getpid(), 19)
        os._exit(0)
    try:
        os.waitpid(pid, os.WUNTRACED)
        given = (Namespace(type="network", path=f"/proc/{pid}/ns/net"),)
        sysctl.check({"net.core.somaxconn": "1"}, given)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_what_the_kernel_refuses_names_the_field(in_child: Callable[..., None]) -> None:
    def entry() -> None:
        proc = open_proc()
        for name, value, message in (
            ("net.ipv4.nope", "1", "unknown to the kernel"),
            ("net.core.somaxconn", "many", "write 'many': Invalid argument"),
        ):
            with pytest.raises(OSError) as e:
                sysctl.write({name: value}, proc)
            assert (e.value.filename, e.value.strerror) == (f"linux.sysctl[{name!r}]", message)

    in_child(entry, CLONE_NEWNET)
