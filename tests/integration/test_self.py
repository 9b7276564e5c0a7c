"""What a program sees of itself: one source, as a module and natively under runc.

`docs/programs.md` has an explanation for each difference. These tests fail for one that has none,
and for an explanation of what does not differ.
"""

from __future__ import annotations

import itertools
import json
import shutil
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.guests.build import build
from tests.integration import specs
from tests.integration.containerd import PYWASM, RUNC, Containerd

PROGRAMS = Path(__file__).parents[2] / "docs/programs.md"
PASSWD = "root:x:0:0::/root:\none:x:1000:1000::/home/one:\n"
MASK = 0o027


class Difference(NamedTuple):
    """A row of the table in the document; patterns as of fnmatch."""

    what: str
    runc: str
    guest: str

    def fits(self, *found: str) -> bool:
        return all(map(fnmatchcase, found, self))


def explained() -> list[Difference]:
    rows = (line.strip("| ").split(" | ") for line in PROGRAMS.read_text().splitlines())
    cells = ([cell.strip("` ") for cell in row[:3]] for row in rows if row[0].startswith("`"))
    return [Difference(*row) for row in cells]


@pytest.fixture
def root(containerd: Containerd) -> Iterator[Path]:
    directory = Path(containerd.directory, "self")
    for name in ("etc", "proc", "app"):
        (directory / name).mkdir(parents=True)
    (directory / "app").chmod(0o777)
    (directory / "etc/passwd").write_text(PASSWD)
    for name in ("self", "idle"):
        shutil.copy(build(name), directory / f"{name}.wasm")
        shutil.copy(build(name, native=True), directory / name)
        (directory / name).chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def spec(root: Path, runtime: str, name: str, **process: Any) -> dict[str, Any]:
    ending = ".wasm" if runtime == PYWASM else ""
    document = specs.usual(f"/{name}{ending}", "first", "", "a b", annotations=process.pop("notes"))
    document["root"] = {"path": str(root)}
    document["process"].update(process)
    return document


def seen(
    containerd: Containerd, root: Path, runtime: str, *, execute: bool, **process: Any
) -> dict[str, str]:
    """Run it as a container's program or as an exec; return what it says, by what it is about."""
    name = containerd.new_name()
    config = Path(containerd.directory, f"{name}.json")
    document = spec(root, runtime, "idle" if execute else "self", **process)
    config.write_text(json.dumps(document))
    options = [*containerd.run_options(runtime), "--config", str(config)]
    if execute:
        containerd.checked(*options, "--detach", name)
        args = spec(root, runtime, "self", **process)["process"]["args"]
        done = containerd.ctr("tasks", "exec", "--exec-id", "e", name, *args, input="typed")
        containerd.remove(name)
    else:
        done = containerd.ctr(*options, "--rm", name, input="typed")
    assert done.returncode == 0, done
    config.unlink()
    made = root / process["cwd"].lstrip("/") / "made"
    mode = stat.S_IMODE(made.stat().st_mode)
    made.unlink()
    lines = (line.partition(": ") for line in done.stdout.splitlines())
    return {what: said for what, _, said in lines} | {"mode of a new file": f"{mode:o}"}


CASES: dict[str, dict[str, Any]] = {
    "root": {"cwd": "/", "notes": {}},
    "user": {
        "cwd": "/app",
        "notes": {"dev.pywasm.kernel-filesystems": "proc"},
        "user": {"uid": 1000, "gid": 1000, "umask": MASK},
        "env": ["PATH=/bin", "A=1", "TWICE=1", "EMPTY=", "HOME=", "TWICE=2"],
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "hard": 64, "soft": 64},
            {"type": "RLIMIT_FSIZE", "hard": 8192, "soft": 8192},
        ],
    },
}


def test_a_program_sees_of_itself_what_it_sees_under_runc(
    containerd: Containerd, root: Path
) -> None:
    rows, used = explained(), set()
    for case, execute in itertools.product(CASES.values(), (False, True)):
        theirs = seen(containerd, root, RUNC, execute=execute, **case)
        ours = seen(containerd, root, PYWASM, execute=execute, **case)
        for what in theirs.keys() | ours.keys():
            pair = theirs.get(what, "(nothing)"), ours.get(what, "(nothing)")
            if pair[0] != pair[1]:
                fitting = {row for row in rows if row.fits(what, *pair)}
                assert fitting, (what, *pair)
                used |= fitting
    assert used == set(rows)
