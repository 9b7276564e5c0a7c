"""A path leads a module where it leads a native program under runc: the same source as both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.guests.build import build
from tests.integration.containerd import PYWASM, RUNC, Containerd

WITH_PROC = ["--annotation", "dev.pywasm.kernel-filesystems=proc"]
LEAVING = """
read /etc/localtime
read /vol/../etc/file
read /vol/../../../etc/file
read /../etc/file
read /vol/absolute
read /vol/up
read /vol/dir/../../etc/file
read /vol/around
stat /vol/absolute
lstat /vol/absolute
readlink /vol/absolute
stat /vol/..
stat /vol/dangling
lstat /vol/dangling
nofollow /vol/absolute
nofollow /vol/file
list /
list /vol/..
read /to-vol/file
read /to-vol/../etc/file
below /vol file
below / vol/file
below /vol absolute
below /vol absolute-dir/file
below /vol/dir/.. up
below /etc localtime
read /vol/loop
read /nothing
read /vol/nothing
read /vol/file/x
read /vol/../nothing
read /etc/conf
chdir /vol/dir
read ../file
read ../../etc/file
read ../up
make ../from-dir
make ../../run/from-dir
chdir /
"""

WRITING = """
make /run/direct
make /var/run/link
make /var/relative/link2
make /vol/new
make /vol/../vol/new2
make /to-vol/new3
make /fixed/new
make /to-fixed/new
make /vol/../fixed/new
make /vol/to-fixed/new
make /plain
make /vol/../plain2
make /vol/absolute-dir/plain3
write /vol/absolute
write /vol/to-run
write /etc/conf
write /fixed/file
write /to-fixed/file
write /vol/../fixed/file
write /dev/null
make /vol/file
make /fixed/file
make /vol/dangling
write /vol/dangling
mkdir /vol/d
mkdir /vol/../run/d
mkdir /var/run/d/e
mkdir /fixed/d
mkdir /vol/../fixed/d
mkdir /vol/dir
mkdir /fixed
symlink /etc/file /vol/l1
read /vol/l1
symlink /etc/file /run/l2
readlink /var/run/l2
symlink ../etc/file /vol/../run/l3
read /run/l3
symlink x /fixed/l4
rename /vol/new /vol/../vol/dir/new
rename /vol/dir/new /run/new
rename /run/direct /vol/new
rename /run/direct /var/run/renamed
rename /vol/new2 /fixed/x
rename /fixed/file /fixed/y
rename /fixed/file /vol/y
link /vol/file /vol/dir/../linked
link /vol/file /run/linked
link /fixed/file /vol/linked2
link /vol/absolute /vol/linked3
lstat /vol/linked3
touch /vol/absolute
touch /vol/../run/renamed
touch /vol/../fixed/file
unlink /vol/linked
unlink /var/run/renamed
unlink /vol/../fixed/file
unlink /vol/dangling
rmdir /vol/../run/d/e
rmdir /var/run/d
rmdir /vol/d
rmdir /fixed/dir
rmdir /vol/..
"""

OWN = """
read /dev/stdin
write /dev/stdout
write /dev/stderr
write /dev/fd/1
write /proc/self/fd/1
write /proc/1/fd/1
write /logs/access.log
write /logs/../dev/stdout
write /logs/own/1
write /vol/../dev/fd/2
stat /dev/stdin
stat /logs/access.log
lstat /dev/stdout
lstat /dev/fd/1
lstat /proc/self/fd/0
lstat /logs/access.log
readlink /dev/stdout
readlink /logs/access.log
nofollow /dev/stdout
make /dev/stdout
read /dev/fd/77
read /proc/self/fd/77
stat /proc/self/fd/77
read /dev/fd/x
"""

BELOW = """
read file
read ./file
read ../etc/file
read ../../etc/file
read up
read absolute
read /etc/file
make new
make ../run/new
make /run/new2
make absolute-dir/new3
symlink /etc/file l
read l
read /vol/../etc/file
"""


DIFFERENT = [
    # A directory that the program has opened, its own `..`, as WASI has it.
    ("below /vol/dir ../file", "Capabilities insufficient", "of vol/file"),
    # A libc sends the mount point as the `.` of its preopen.
    ("rmdir /vol", "Invalid argument", "Resource busy"),
    ("read /dev/fd/1/x", "No such file or directory", "Not a directory"),
    ("read /dev/stdout/x", "No such file or directory", "Not a directory"),
    # No procfs, so nothing that could be listed.
    ("list /dev/fd", "No such file or directory", "entries"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root and what is mounted in it, anew for each container."""
    return tmp_path / "tree"


def run(
    containerd: Containerd, runtime: str, tree: Path, operations: str, *options: str
) -> tuple[list[str], list[str]]:
    """Run them in a container with mounts; return the lines of stdout and stderr."""
    shutil.rmtree(tree, ignore_errors=True)
    root = tree / "root"
    for name in ("etc", "usr", "var", "logs", "vol", "fixed", "run"):
        (root / name).mkdir(parents=True)
    for name in ("vol/dir", "fixed/dir"):
        (tree / name).mkdir(parents=True)
    for name in ("root/etc/file", "root/etc/conf", "root/usr/zone", "vol/file", "fixed/file"):
        (tree / name).write_text(f"of {name}\n")
    (tree / "conf").write_text("bound\n")
    for link, target in {
        "root/etc/localtime": "/usr/zone",
        "root/var/run": "/run",
        "root/var/relative": "../run",
        "root/to-vol": "/vol",
        "root/to-fixed": "fixed",
        "root/logs/access.log": "/dev/stdout",
        "root/logs/own": "../dev/fd",
        "vol/absolute": "/etc/file",
        "vol/absolute-dir": "/etc",
        "vol/up": "../etc/file",
        "vol/around": "../to-vol/dir/../file",
        "vol/to-fixed": "../fixed",
        "vol/to-run": "/run/to-run",
        "vol/dangling": "/run/nothing",
        "vol/loop": "loop",
    }.items():
        os.symlink(target, tree / link)
    wasm = runtime == PYWASM
    program = root / ("paths.wasm" if wasm else "paths")
    shutil.copy(build("paths", native=not wasm), program)
    program.chmod(0o755)
    mounts = [
        f"type=bind,src={tree}/{source},dst=/{target},options=rbind:{mode}"
        for source, target, mode in (
            ("vol", "vol", "rw"),
            ("fixed", "fixed", "ro"),
            ("conf", "etc/conf", "rw"),
        )
    ]
    done = containerd.ctr(
        *containerd.run_options(runtime),
        *("--rm", "--rootfs", *(f"--mount={mount}" for mount in mounts), *options),
        *(str(root), containerd.new_name(), f"/{program.name}", *operations.split()),
        input="typed\n",
    )
    assert done.returncode == 0, done
    return done.stdout.splitlines(), done.stderr.splitlines()


def differences(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    assert len(ours) == len(theirs)
    return [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]


@pytest.mark.parametrize(
    "options", [[], ["--read-only"], WITH_PROC], ids=["usual", "read-only", "with-proc"]
)
@pytest.mark.parametrize("operations", [LEAVING, WRITING, OWN], ids=["leaving", "writing", "own"])
def test_as_under_runc(
    containerd: Containerd, tree: Path, operations: str, options: list[str]
) -> None:
    theirs = run(containerd, RUNC, tree, operations, *options)
    ours = run(containerd, PYWASM, tree, operations, *options)
    assert [differences(*pair) for pair in zip(ours, theirs, strict=True)] == [[], []]


def test_as_under_runc_in_a_working_directory(containerd: Containerd, tree: Path) -> None:
    theirs, _ = run(containerd, RUNC, tree, BELOW, "--cwd", "/vol")
    ours, _ = run(containerd, PYWASM, tree, BELOW, "--cwd", "/vol")
    assert differences(ours, theirs) == []


def test_these_are_the_differences(containerd: Containerd, tree: Path) -> None:
    operations = " ".join(operation for operation, _, _ in DIFFERENT)
    theirs, _ = run(containerd, RUNC, tree, operations)
    ours, _ = run(containerd, PYWASM, tree, operations)
    said = [
        (mine.partition(": ")[2], his.partition(": ")[2])
        for mine, his in zip(ours, theirs, strict=True)
    ]
    assert said == [(mine, his) for _, mine, his in DIFFERENT]
