"""The program is run by the kernel: there is no other judge of it."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from oci.linux import DeviceRule, Resources
from shim.linux.cgroups import Cgroup, hierarchies
from shim.linux.cgroups.device_filter import _attached, attach_device_filter, program
from shim.linux.cgroups.device_rules import Rule, container_rules
from shim.linux.cgroups.files import Directory

V2 = [tree for tree in hierarchies() if tree.is_v2]
pytestmark = pytest.mark.skipif(not V2, reason="no cgroup v2")

NULL, ZERO, FULL = os.makedev(1, 3), os.makedev(1, 5), os.makedev(1, 7)
ALL = frozenset("rwm")


def rule(allow: bool, type: str, major: int | None, minor: int | None, access: str) -> Rule:
    return Rule(allow, type, major, minor, frozenset(access))


def attach(cgroup: Cgroup, rules: list[Rule]) -> None:
    path = cgroup.directory("")
    assert path is not None
    with Directory(path.__str__) as directory:
        attach_device_filter(directory, rules)


def programs(cgroup: Cgroup) -> list[int]:
    fd = cgroup.open_dir()
    try:
        return _attached(fd)
    finally:
        os.close(fd)


def may(path: str, flags: int) -> bool:
    try:
        os.close(os.open(path, flags))
    except PermissionError:
        return False
    return True


def may_make(path: Path, kind: int, device: int) -> bool:
    try:
        os.mknod(path, kind | 0o600, device)
    except PermissionError:
        return False
    os.unlink(path)
    return True


@pytest.fixture
def cgroup(name: str) -> Cgroup:
    cgroup = Cgroup.for_path(f"/{name}/container", V2)
    cgroup.create()
    return cgroup


def test_containers_devices(cgroup: Cgroup, tmp_path: Path, in_child: Callable[..., None]) -> None:
    tty = tmp_path / "ttyS9"
    os.mknod(tty, stat.S_IFCHR | 0o600, os.makedev(4, 73))
    disk = tmp_path / "disk"
    os.mknod(disk, stat.S_IFBLK | 0o600, os.makedev(254, 0))
    attach(cgroup, container_rules([DeviceRule(access="rwm")]))

    def entry() -> None:
        assert may("/dev/kmsg", os.O_RDONLY)
        cgroup.attach()
        assert may("/dev/null", os.O_RDWR)
        assert may("/dev/urandom", os.O_RDONLY)
        assert not may("/dev/kmsg", os.O_RDONLY)
        assert not may("/dev/kmsg", os.O_WRONLY)
        assert not may(str(tty), os.O_RDWR)
        assert not may(str(disk), os.O_RDONLY)
        assert may_make(tmp_path / "x", stat.S_IFBLK, os.makedev(254, 0))
        os.close(os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY))

    in_child(entry)


ORDERED = [
    [rule(True, "c", 1, None, "rw"), rule(False, "c", 1, 3, "r")],
    [rule(False, "c", 1, 3, "r"), rule(True, "c", 1, None, "rw")],
    [rule(True, "c", 1, 5, "m"), rule(True, "c", None, 3, "r"), rule(True, "c", None, None, "w")],
    [rule(True, "a", None, None, "rwm"), rule(False, "c", 1, 7, "w"), rule(False, "b", 1, 5, "rw")],
    [rule(True, "c", 1, 3, "rwm"), rule(False, "a", None, None, "rwm"), rule(True, "c", 1, 7, "r")],
    [rule(True, "c", 1, 3, "r"), rule(True, "c", 1, 3, "w"), rule(True, "b", 1, 7, "rwm")],
    [],
]


def decided(rules: list[Rule], device: int, access: str) -> bool:
    """What the rules say: for each access the last that is about it."""
    answers = []
    for letter in access:
        answer = False
        for one in rules:
            if (
                one.type in ("a", "c")
                and one.major in (None, os.major(device))
                and one.minor in (None, os.minor(device))
                and letter in one.access
            ):
                answer = one.allow
        answers.append(answer)
    return all(answers)


@pytest.mark.parametrize("rules", ORDERED)
def test_the_last_rule_decides(
    cgroup: Cgroup, rules: list[Rule], tmp_path: Path, in_child: Callable[..., None]
) -> None:
    attach(cgroup, rules)
    assert len(programs(cgroup)) == 1

    def entry() -> None:
        cgroup.attach()
        names = {NULL: "/dev/null", ZERO: "/dev/zero", FULL: "/dev/full"}
        modes = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
        for (device, path), (access, flags) in itertools.product(names.items(), modes.items()):
            assert may(path, flags) == decided(rules, device, access), (path, access)
        for device in names:
            made = may_make(tmp_path / "node", stat.S_IFCHR, device)
            assert made == decided(rules, device, "m"), device

    in_child(entry)


def test_again_replaces(cgroup: Cgroup, in_child: Callable[..., None]) -> None:
    attach(cgroup, [])
    (first,) = programs(cgroup)
    attach(cgroup, container_rules([]))
    (second,) = programs(cgroup)
    assert second != first

    def entry() -> None:
        cgroup.attach()
        assert may("/dev/null", os.O_RDWR)

    in_child(entry)


def test_parent_decides_too(cgroup: Cgroup, name: str, in_child: Callable[..., None]) -> None:
    attach(Cgroup.for_path(f"/{name}", V2), [rule(True, "c", 1, 3, "rwm")])
    attach(cgroup, [rule(True, "a", None, None, "rwm")])

    def entry() -> None:
        cgroup.attach()
        assert may("/dev/null", os.O_RDWR)
        assert not may("/dev/zero", os.O_RDWR)

    in_child(entry)


def test_many_rules(cgroup: Cgroup, in_child: Callable[..., None]) -> None:
    rules = [rule(True, "c", 200, minor, "rwm") for minor in range(500)]
    attach(cgroup, [rule(True, "c", 1, 3, "rw"), *rules])

    def entry() -> None:
        cgroup.attach()
        assert may("/dev/null", os.O_RDWR)
        assert not may("/dev/zero", os.O_RDONLY)

    in_child(entry)


def test_numbers_of_32_bits_and_length() -> None:
    code = program((rule(True, "c", 2**32 - 1, 2**31, "r"),))
    assert len(code) % 8 == 0
    assert b"\xff\xff\xff\xff" in code


def test_part_of_the_limits_and_left_alone_by_an_update(
    cgroup: Cgroup, in_child: Callable[..., None]
) -> None:
    cgroup.limit(Resources())
    before = programs(cgroup)
    assert len(before) == 1
    cgroup.limit(Resources(devices=(DeviceRule(allow=True, access="rwm"),)), update=True)
    assert programs(cgroup) == before

    def entry() -> None:
        cgroup.attach()
        assert not may("/dev/kmsg", os.O_RDONLY)

    in_child(entry)


def test_gone(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"linux\.resources\.devices") as e:
        attach(Cgroup.for_path(f"/{name}/none", V2), [])
    assert name in e.value.filename
