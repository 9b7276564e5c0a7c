from __future__ import annotations

import errno

import pytest

from oci.linux import DeviceRule
from shim.linux.cgroups.device_rules import Rule, container_rules, exceptions, line

ALL = frozenset("rwm")
DENY_ALL = Rule(False, "a", None, None, ALL)


def rule(allow: bool, type: str, major: int | None, minor: int | None, access: str) -> Rule:
    return Rule(allow, type, major, minor, frozenset(access))


def test_every_container_has_a_few_devices() -> None:
    allow, found = exceptions(container_rules([DeviceRule(allow=False, access="rwm")]))
    assert not allow
    assert [line(key, access) for key, access in found.items()] == [
        "c *:* m",
        "b *:* m",
        "c 1:3 rwm",
        "c 1:8 rwm",
        "c 1:7 rwm",
        "c 5:0 rwm",
        "c 1:5 rwm",
        "c 1:9 rwm",
        "c 136:* rwm",
        "c 5:2 rwm",
    ]
    assert exceptions(container_rules([])) == (allow, found)


def test_rules_of_the_spec() -> None:
    given = [
        DeviceRule(allow=True, type="b", major=8, minor=0, access="r"),
        DeviceRule(allow=True, type="c", major=10, access="rw"),
        DeviceRule(allow=True, type="c", major=-1, minor=-1, access="r"),
    ]
    assert container_rules(given)[1:4] == [
        rule(True, "b", 8, 0, "r"),
        rule(True, "c", 10, None, "rw"),
        rule(True, "c", None, None, "r"),
    ]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (DeviceRule(type="c"), "access"),
        (DeviceRule(type="c", access="rx"), "access"),
        (DeviceRule(type="p", access="r"), "type"),
        (DeviceRule(type="c", major=-2, access="r"), "devices"),
        (DeviceRule(type="c", minor=2**32, access="r"), "devices"),
        (DeviceRule(allow=True, major=10, access="rwm"), "devices"),
        (DeviceRule(allow=True, type="a", access="r"), "devices"),
    ],
)
def test_rule_that_says_nothing_clear(bad: DeviceRule, field: str) -> None:
    with pytest.raises(OSError, match=rf"linux\.resources\.devices\[1\].*{field}|{field}") as e:
        container_rules([DeviceRule(access="rwm"), bad])
    assert e.value.errno == errno.EINVAL
    assert "devices[1]" in str(e.value.strerror)


def test_the_last_rule_decides() -> None:
    rules = [
        DENY_ALL,
        rule(True, "c", 1, 3, "rw"),
        rule(True, "c", 1, 3, "m"),
        rule(True, "b", 8, 0, "rwm"),
        rule(False, "b", 8, 0, "w"),
        rule(True, "c", 7, 1, "r"),
        rule(False, "c", 7, None, "rwm"),
        rule(False, "c", 9, 9, "rwm"),
    ]
    assert exceptions(rules) == (
        False,
        {("c", 1, 3): ALL, ("b", 8, 0): frozenset("rm")},
    )
    assert exceptions([*rules, Rule(True, "a", None, None, ALL)]) == (True, {})
    assert exceptions([*rules, Rule(True, "a", None, None, ALL), rules[3]]) == (True, {})
    assert exceptions([Rule(True, "a", None, None, ALL), rules[4]]) == (
        True,
        {("b", 8, 0): frozenset("w")},
    )


@pytest.mark.parametrize(
    ("wide", "hole"),
    [
        (rule(True, "c", 1, None, "rw"), rule(False, "c", 1, 3, "r")),
        (rule(True, "c", None, 3, "rw"), rule(False, "c", 1, None, "w")),
        (rule(True, "c", None, None, "m"), rule(False, "c", 1, 3, "rwm")),
    ],
)
def test_v1_has_no_exceptions_of_exceptions(wide: Rule, hole: Rule) -> None:
    with pytest.raises(OSError, match="only a part of") as e:
        exceptions([DENY_ALL, wide, hole])
    assert e.value.errno == errno.EOPNOTSUPP


def test_what_does_not_meet_is_no_hole() -> None:
    wide = rule(True, "c", 1, None, "rw")
    for other in (
        rule(False, "b", 1, 3, "r"),
        rule(False, "c", 2, 3, "r"),
        rule(False, "c", 1, 3, "m"),
    ):
        assert exceptions([DENY_ALL, wide, other]) == (False, {("c", 1, None): frozenset("rw")})
