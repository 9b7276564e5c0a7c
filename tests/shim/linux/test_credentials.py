from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from oci.runtime import Capabilities, Process, User
from shim.linux import credentials
from shim.linux.clone import CLONE_NEWUTS, clone, wait
from shim.linux.credentials import (
    CAPABILITIES,
    become,
    no_new_privs,
    prctl,
    set_capabilities,
    set_child_subreaper,
    set_domainname,
    set_dumpable,
    set_hostname,
    set_pdeathsig,
    set_rlimit,
    set_user,
)
from shim.linux.libc import LIBC

InChild = Callable[..., None]
Alive = Callable[..., AbstractContextManager[int]]


def status(pid: int | str = "self") -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file)


def sets(pid: int | str = "self") -> dict[str, set[str]]:
    found = status(pid)
    return {
        name: {
            capability
            for number, capability in enumerate(CAPABILITIES)
            if int(found[field], 16) & 1 << number
        }
        for name, field in (
            ("bounding", "CapBnd"),
            ("effective", "CapEff"),
            ("inheritable", "CapInh"),
            ("permitted", "CapPrm"),
            ("ambient", "CapAmb"),
        )
    }


def test_capability_names_are_all_of_this_kernels() -> None:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        assert len(CAPABILITIES) >= int(file.read()) + 1
    assert CAPABILITIES[21] == "CAP_SYS_ADMIN"
    assert CAPABILITIES[40] == "CAP_CHECKPOINT_RESTORE"


def test_user(in_child: InChild) -> None:
    def entry() -> None:
        set_user(1001, 1002, [5, 7], 0o077)
        found = status()
        assert found["Uid"].split() == ["1001"] * 4
        assert found["Gid"].split() == ["1002"] * 4
        assert found["Groups"].split() == ["5", "7"]
        assert found["Umask"] == "0077"
        assert sets()["permitted"] == sets()["effective"] == set()
        with pytest.raises(PermissionError) as e:
            set_user(0, 0)
        assert e.value.filename == "additional gids []"
        with pytest.raises(PermissionError):
            os.setuid(0)

    in_child(entry)


def test_root_without_groups_keeps_its_umask(in_child: InChild) -> None:
    def entry() -> None:
        os.umask(0o022)
        set_user(0, 0)
        assert status()["Groups"].split() == []
        assert status()["Umask"] == "0022"

    in_child(entry)


def test_user_errors_name_the_id(in_child: InChild) -> None:
    def entry() -> None:
        os.setresuid(1000, 1000, 0)
        prctl(credentials._PR_SET_KEEPCAPS, 0)
        with pytest.raises(PermissionError, match="additional gids"):
            set_user(5, 6, [1])

    in_child(entry)


@pytest.mark.parametrize("none", [2**32 - 1, -1, 2**32])
@pytest.mark.parametrize("field", ["uid", "gid", "additional gids"])
def test_what_is_no_id_is_not_root(field: str, none: int, in_child: InChild) -> None:
    def entry() -> None:
        ids = {"uid": 1001, "gid": 1002, "additional gids": 1003} | {field: none}
        with pytest.raises(OSError, match=f"{field} .*{none}") as e:
            set_user(ids["uid"], ids["gid"], [ids["additional gids"]])
        assert e.value.errno == errno.EINVAL

    in_child(entry)


def test_more_groups_than_there_can_be() -> None:
    with pytest.raises(OSError, match="more than 65536"):
        set_user(0, 0, [1] * 65537)


def test_only_the_bits_of_a_umask_count(in_child: InChild) -> None:
    def entry() -> None:
        set_user(0, 0, umask=2**32 - 1)
        assert status()["Umask"] == "0777"

    in_child(entry)


def test_capabilities_of_a_user(in_child: InChild) -> None:
    def entry() -> None:
        set_user(1000, 1000, keep_capabilities=True)
        missing = set_capabilities(
            bounding=["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHECKPOINT_RESTORE"],
            effective=["CAP_KILL", "CAP_CHECKPOINT_RESTORE"],
            permitted=["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHECKPOINT_RESTORE"],
            inheritable=["CAP_NET_BIND_SERVICE"],
            ambient=["CAP_NET_BIND_SERVICE"],
        )
        assert missing == []
        kill, net, high = "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHECKPOINT_RESTORE"
        assert sets() == {
            "bounding": {kill, net, high},
            "effective": {kill, high},
            "permitted": {kill, net, high},
            "inheritable": {net},
            "ambient": {net},
        }
        with pytest.raises(PermissionError):
            os.setgroups([1])

    in_child(entry)


def test_no_capabilities_for_root(in_child: InChild) -> None:
    def entry() -> None:
        assert set_capabilities() == []
        assert not any(sets().values())
        with pytest.raises(PermissionError):
            os.chown("/proc/self/comm", 5, 5)

    in_child(entry)


def test_what_cannot_be_granted_is_said_and_not_granted(in_child: InChild) -> None:
    def entry() -> None:
        missing = set_capabilities(
            bounding=["CAP_KILL", "CAP_FUTURE"],
            permitted=["CAP_KILL"],
            effective=["CAP_KILL", "CAP_CHOWN"],
            inheritable=["CAP_CHOWN"],
            ambient=["CAP_KILL"],
        )
        assert missing == ["CAP_CHOWN", "CAP_FUTURE", "CAP_KILL"]
        kill = {"CAP_KILL"}
        assert sets() == {
            "bounding": kill,
            "permitted": kill,
            "effective": kill,
            "inheritable": set(),
            "ambient": set(),
        }
        # What is gone is gone.
        assert set_capabilities(bounding=["CAP_KILL"], permitted=["CAP_CHOWN"]) == ["CAP_CHOWN"]

    in_child(entry)


def test_bounding_set_that_cannot_be_reduced_is_an_error(in_child: InChild) -> None:
    def entry() -> None:
        set_user(1000, 1000)
        with pytest.raises(PermissionError, match="prctl"):
            set_capabilities(bounding=["CAP_KILL"])

    in_child(entry)


def test_process_as_the_kernel_shows_it(alive: Alive) -> None:
    capabilities = Capabilities(
        bounding=("CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"),
        permitted=("CAP_KILL", "CAP_CHOWN"),
        effective=("CAP_KILL",),
        inheritable=("CAP_CHOWN",),
        ambient=("CAP_CHOWN",),
    )
    user = User(uid=1001, gid=1002, additional_gids=(5, 6), umask=0o037)

    def entry() -> None:
        process = Process(user=user, capabilities=capabilities, no_new_privileges=True)
        assert become(process) == []

    with alive(entry) as pid:
        found = status(pid)
        chown = {"CAP_CHOWN"}
        assert sets(pid) == {
            "bounding": {"CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"},
            "permitted": chown,
            "effective": chown,
            "inheritable": chown,
            "ambient": chown,
        }
        # Not the user's: what the kernel does not let be dumped is root's.
        assert os.stat(f"/proc/{pid}/mem").st_uid == 0
    assert found["Uid"].split() == ["1001"] * 4
    assert found["Gid"].split() == ["1002"] * 4
    assert found["Groups"].split() == ["5", "6"]
    assert found["Umask"] == "0037"
    assert found["NoNewPrivs"] == "1"


def test_root_has_what_the_spec_says(alive: Alive) -> None:
    capabilities = Capabilities(
        bounding=("CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"),
        permitted=("CAP_KILL", "CAP_CHOWN"),
        effective=("CAP_KILL",),
    )
    with alive(lambda: assert_granted(become(Process(capabilities=capabilities)))) as pid:
        assert sets(pid) == {
            field: set(getattr(capabilities, field)) for field in capabilities.__struct_fields__
        }


@pytest.mark.parametrize("lacking", ["permitted", "inheritable", "ambient"])
def test_user_keeps_what_is_in_three_sets(lacking: str, alive: Alive) -> None:
    """As after an exec: the ambient set, which is what is permitted and inheritable, too."""
    names = {"bounding", "permitted", "effective", "inheritable", "ambient"} - {lacking}
    capabilities = Capabilities(**dict.fromkeys(names, ("CAP_KILL",)))

    def entry() -> None:
        become(Process(user=User(uid=1001), capabilities=capabilities))

    with alive(entry) as pid:
        found = sets(pid)
        assert found["bounding"] == {"CAP_KILL"}
        assert not found["permitted"] | found["effective"] | found["ambient"]


def test_umask_is_not_inherited(alive: Alive) -> None:
    def entry() -> None:
        os.umask(0o077)
        become(Process())

    with alive(entry) as pid:
        assert status(pid)["Umask"] == "0022"


def assert_granted(missing: list[str]) -> None:
    assert missing == []


@pytest.mark.parametrize("uid", [0, 1000])
def test_neighbour_with_the_same_user_cannot_look_into_it(
    uid: int, alive: Alive, in_child: InChild
) -> None:
    """Both without CAP_SYS_PTRACE, as containers are, in one PID namespace, as in some pods."""
    process = Process(user=User(uid=uid, gid=uid))

    def neighbour() -> None:
        become(process)
        for name in ("mem", "maps", "environ", "root/etc", "cwd/.", "fd/0", "ns/net"):
            with pytest.raises(PermissionError):
                os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
        attach = 0x4206  # PTRACE_SEIZE
        assert LIBC.ptrace(attach, pid, 0, 0) == -1
        assert ctypes.get_errno() == errno.EPERM

    with alive(lambda: assert_granted(become(process))) as pid:
        in_child(neighbour)


def test_no_new_privs(in_child: InChild) -> None:
    def entry() -> None:
        assert status()["NoNewPrivs"] == "0"
        no_new_privs()
        assert status()["NoNewPrivs"] == "1"

    in_child(entry)


def test_limits(in_child: InChild) -> None:
    infinity = 2**64 - 1

    def entry() -> None:
        set_rlimit("RLIMIT_NOFILE", 100, 200)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100, 200)
        set_rlimit("RLIMIT_CORE", 0, infinity)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, resource.RLIM_INFINITY)
        set_rlimit("RLIMIT_LOCKS", 5, 5)
        with open("/proc/self/limits") as limits:
            (line,) = (line for line in limits if line.startswith("Max file locks"))
        assert line.split()[3:5] == ["5", "5"]
        os.setresuid(1000, 1000, 1000)
        with pytest.raises(PermissionError, match="hard 300") as e:
            set_rlimit("RLIMIT_NOFILE", 100, 300)
        assert e.value.filename == "RLIMIT_NOFILE"

    in_child(entry)


@pytest.mark.parametrize(
    ("name", "soft", "hard"),
    [("RLIMIT_NOPE", 1, 1), ("prlimit", 1, 1), ("", 1, 1), ("RLIMIT_CORE", 2, 1)],
)
def test_limits_that_cannot_be(name: str, soft: int, hard: int) -> None:
    with pytest.raises(OSError) as e:
        set_rlimit(name, soft, hard)
    assert (e.value.errno, e.value.filename) == (errno.EINVAL, name)


def test_host_and_domain_name(in_child: InChild) -> None:
    before = os.uname().nodename

    def entry() -> None:
        set_hostname("guest-1")
        set_domainname("example.org")
        assert socket.gethostname() == os.uname().nodename == "guest-1"
        with open("/proc/sys/kernel/domainname") as file:
            assert file.read() == "example.org\n"
        with pytest.raises(OSError) as e:
            set_hostname("x" * 65)
        assert (e.value.errno, e.value.filename) == (errno.EINVAL, "x" * 65)

    in_child(entry, CLONE_NEWUTS)
    assert os.uname().nodename == before


def test_dumpable(in_child: InChild) -> None:
    def entry() -> None:
        get_dumpable = 3
        set_dumpable(False)
        assert prctl(get_dumpable) == 0
        set_dumpable(True)
        assert prctl(get_dumpable) == 1

    in_child(entry)


def test_death_of_the_parent_is_the_childs_and_a_subreaper_hears_of_it(in_child: InChild) -> None:
    def entry() -> None:
        set_child_subreaper()
        read, write = os.pipe()

        def parent() -> None:
            def child() -> None:
                set_pdeathsig(signal.SIGTERM)
                os.write(write, os.getpid().to_bytes(4, "little"))
                signal.pause()

            clone(child)
            # Ends when the child has said who it is.
            os.write(write, os.read(read, 4))

        middle = clone(parent)
        assert wait(middle.pidfd) == 0
        orphan = int.from_bytes(os.read(read, 4), "little")
        assert os.waitpid(orphan, 0) == (orphan, signal.SIGTERM)

    in_child(entry)


def test_unknown_option_is_named() -> None:
    with pytest.raises(OSError, match="option 9999") as e:
        prctl(9999)
    assert e.value.errno == errno.EINVAL
