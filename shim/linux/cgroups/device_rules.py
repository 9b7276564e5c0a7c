"""The device rules of `linux.resources.devices` (library).

They are a list, and the last rule that speaks of an access decides. cgroup v2 takes them like that
(`device_filter`); v1 and systemd know one answer for all devices and exceptions to it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final, NamedTuple

from oci.linux import DeviceRule
from shim.linux.cgroups.files import refusal

READ: Final = "r"
WRITE: Final = "w"
MKNOD: Final = "m"
_ORDER: Final = READ + WRITE + MKNOD


class Rule(NamedTuple):
    """One rule, complete. A number of None is every number."""

    allow: bool
    type: str
    """"b" for block, "c" for character devices, or "a" for all there are."""
    major: int | None
    minor: int | None
    access: frozenset[str]
    """Some of READ, WRITE and MKNOD."""


class Exceptions(NamedTuple):
    """One answer for all devices, and the accesses for which the other one holds."""

    allow: bool
    accesses: dict[tuple[str, int | None, int | None], frozenset[str]]
    """By type, major and minor number."""


_ALL: Final = frozenset(_ORDER)
_DEFAULTS: Final = tuple(
    Rule(True, type, major, minor, frozenset(access))
    for type, major, minor, access in (
        # To make a device node is not to use it: whoever does is asked again.
        ("c", None, None, MKNOD),
        ("b", None, None, MKNOD),
        ("c", 1, 3, _ORDER),  # null
        ("c", 1, 8, _ORDER),  # random
        ("c", 1, 7, _ORDER),  # full
        ("c", 5, 0, _ORDER),  # tty
        ("c", 1, 5, _ORDER),  # zero
        ("c", 1, 9, _ORDER),  # urandom
        ("c", 136, None, _ORDER),  # pts
        ("c", 5, 2, _ORDER),  # ptmx
    )
)


def container_rules(given: Iterable[DeviceRule]) -> list[Rule]:
    """The rules of a container: no device, then what the spec says, then what every container has.

    That is what runc does, except that it adds /dev/net/tun. Raises OSError (EINVAL) for a rule
    that says nothing clear.
    """
    rules = [Rule(False, "a", None, None, _ALL)]
    for index, rule in enumerate(given):
        field = f"devices[{index}]"
        access, type_ = frozenset(rule.access), rule.type or "a"
        if not access or access - _ALL:
            raise refusal(errno.EINVAL, f"{field}.access", f"{rule.access!r}: not some of rwm")
        if type_ not in ("a", "b", "c"):
            raise refusal(errno.EINVAL, f"{field}.type", f"{rule.type!r}: not one of a, b, c")
        major, minor = (None if n == -1 else n for n in (rule.major, rule.minor))
        if any(n is not None and not 0 <= n < 2**32 for n in (major, minor)):
            raise refusal(errno.EINVAL, field, f"{rule.major}:{rule.minor}: not device numbers")
        if type_ == "a" and (access != _ALL or (major, minor) != (None, None)):
            # The kernel's v1 takes it for every access to every device.
            raise refusal(errno.EINVAL, field, "type a, but not all devices or not all of rwm")
        rules.append(Rule(rule.allow, type_, major, minor, access))
    rules += _DEFAULTS
    return rules


def exceptions(rules: Iterable[Rule]) -> Exceptions:
    """Make exceptions of a list of rules, which begins with a rule for everything.

    Raises OSError (EOPNOTSUPP) for a rule that takes back a part of what an earlier one says of
    more devices, for which there is no exception.
    """
    allow, found = False, dict[tuple[str, int | None, int | None], frozenset[str]]()
    for rule in rules:
        if rule.type == "a":
            allow, found = rule.allow, {}
            continue
        key = (rule.type, rule.major, rule.minor)
        if rule.allow != allow:
            found[key] = found.get(key, frozenset()) | rule.access
            continue
        for other, access in list(found.items()):
            if not _overlap(key, other) or not access & rule.access:
                continue
            if not _contains(key, other):
                raise refusal(
                    errno.EOPNOTSUPP,
                    "devices",
                    f"{line(key, rule.access)} is only a part of {line(other, access)}",
                )
            found[other] = access - rule.access
    return Exceptions(allow, {key: access for key, access in found.items() if access})


def line(key: tuple[str, int | None, int | None], access: frozenset[str]) -> str:
    """An exception as v1's files have it, such as "c 1:* rw"."""
    kind, major, minor = key
    numbers = ":".join("*" if number is None else str(number) for number in (major, minor))
    return f"{kind} {numbers} {ordered(access)}"


def ordered(access: frozenset[str]) -> str:
    """The letters, in the kernel's order."""
    return "".join(letter for letter in _ORDER if letter in access)


def _overlap(
    one: tuple[str, int | None, int | None], other: tuple[str, int | None, int | None]
) -> bool:
    return one[0] == other[0] and all(
        a is None or b is None or a == b for a, b in zip(one[1:], other[1:], strict=True)
    )


def _contains(
    outer: tuple[str, int | None, int | None], inner: tuple[str, int | None, int | None]
) -> bool:
    return all(a is None or a == b for a, b in zip(outer[1:], inner[1:], strict=True))
