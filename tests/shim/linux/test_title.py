"""Names and command lines, in interpreters of their own, by what the kernel says of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from shim.linux.title import ROOM
from tests.shim.launching import ROOT

_CAP_SYS_RESOURCE = 1 << 24
_PROGRAM = """
import json, os
from shim.linux.title import find_place, set_title
find_place()
shown = []
for arguments in (["a"], ["a b", "", "c"], ["x" * 200, "y"], ["z"], ["w" * 10_000], ["name"]):
    set_title("a-name-that-is-too-long" if arguments[0] == "a" else "name", *arguments)
    with open("/proc/self/cmdline", "rb") as line, open("/proc/self/comm") as name:
        shown.append((name.read(), line.read().decode()))
print(json.dumps([shown, dict(os.environ)]))
"""
Shown = list[tuple[str, str]]


def run(env: dict[str, str], *wrapper: str) -> tuple[Shown, dict[str, str]]:
    """Return each name and command line that was set, and what the environment is then."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", _PROGRAM],
        cwd=ROOT,
        env=env | {"LAST": "value"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    shown, environment = json.loads(done.stdout)
    return [(name, line) for name, line in shown], environment


def privileged() -> bool:
    """Whether this process may say where its command line ends."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) & _CAP_SYS_RESOURCE)


def test_a_command_line_is_what_it_was_set_to() -> None:
    shown, environment = run({ROOM: " " * 4000})
    names, lines = zip(*shown, strict=True)
    assert names == ("a-name-that-is-\n", *["name\n"] * 5)
    if privileged():
        assert 4000 < lines[4].count("w") < 10_000
    else:
        lines = tuple(line.rstrip("\0") + "\0" for line in lines)
    assert lines[:4] == ("a\0", "a b\0\0c\0", f"{'x' * 200}\0y\0", "z\0")
    assert lines[5] == "name\0"
    assert ROOM not in environment
    assert environment["LAST"] == "value"


def test_without_the_privilege_nothing_else_is_shown() -> None:
    shown, _ = run({ROOM: " " * 4000}, "setpriv", "--bounding-set=-sys_resource", "--")
    lines = [line.rstrip("\0") for _, line in shown]
    assert lines[:2] == ["a", "a b\0\0c"]
    assert lines[3] == "z"
    assert lines[5] == "name"


def test_without_room_it_stays() -> None:
    shown, _ = run({})
    assert len({line for _, line in shown}) == 1
    assert _PROGRAM in shown[0][1]
