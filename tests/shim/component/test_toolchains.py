"""Programs of today's toolchains, made here: Python by componentize-py, JavaScript by its like.

Both put a whole interpreter into the component, and each is some 20 MB. The tools are on the
package indexes; they are not needed otherwise, so tests skip where they are not on PATH.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.shim.component.guests import Runner
from tests.shim.component.test_reference import ARGS, ENV, reference

pytestmark = pytest.mark.timeout(900)  # an engine compiles such a program for a minute

WIT = """package tests:programs;
world command {{ export wasi:cli/run@{version}; }}
package wasi:cli@{version} {{ interface run {{ run: {kind}func() -> result; }} }}
"""
PYTHON = """
import hashlib, os, stat, sys, time
from wit_world import exports

class Run(exports.Run):
    def run(self) -> None:
        data = sys.stdin.buffer.read()
        print(sys.argv[1:], os.environ["NAME"], len(data), hashlib.sha256(data).hexdigest())
        os.makedirs("/a/b")
        for number in range(20):
            with open(f"/a/b/{number}", "w") as file:
                file.write(str(number) * 1000)
        os.rename("/a/b/3", "/a/three")
        os.symlink("three", "/a/link")
        print(os.readlink("/a/link"), len(open("/a/link").read()), open("/file").read())
        for root, directories, files in sorted(os.walk("/a")):
            print(root, sorted(directories), sorted(files))
        print(stat.S_ISLNK(os.lstat("/a/link").st_mode), os.stat("/a/three").st_size)
        try:
            open("/nope/x")
        except OSError as error:
            print(type(error).__name__)
        before = time.monotonic()
        time.sleep(0.01)
        print(time.monotonic() - before >= 0.01)
        print("to standard error", file=sys.stderr)
"""
PYTHON_P3 = """
import sys
from wit_world import exports

class Run(exports.Run):
    async def run(self) -> None:
        print("hello from an async function", sys.argv[1:])
"""
JAVASCRIPT = """
export const run = { run() {
    console.log("hello from javascript", [..."abcabc"].sort().join(""), new Date(0).getTime());
    console.error("to standard error");
} };
"""


def made(directory: Path, tool: str, *args: str) -> bytes:
    """Have a tool make a component; skips without it."""
    command = shutil.which(tool)
    if command is None:
        pytest.skip(f"{tool} is not on PATH")
    path = directory / "component.wasm"
    subprocess.run([command, *args, "-o", str(path)], cwd=directory, check=True, timeout=300)
    return path.read_bytes()


def python(directory: Path, source: str, version: str, kind: str = "") -> bytes:
    (directory / "app.py").write_text(source)
    (directory / "world.wit").write_text(WIT.format(version=version, kind=kind))
    options = ("-q", "-d", "world.wit", "-w", "command", "componentize", "app")
    return made(directory, "componentize-py", *options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory to grant."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_text("contents")
    return tmp_path / "root"


def compared(run: Runner, binary: bytes, root: Path) -> None:
    stdin = bytes(range(256)) * 1000
    shutil.copytree(root, theirs_root := root.parent / "theirs")
    theirs = reference(binary, theirs_root, stdin)
    env = [f"{variable}={value}".encode() for variable, value in ENV.items()]
    ours = run(binary, *ARGS, env=env, directory=root, stdin=stdin)
    assert ours[:3] == theirs[:3]
    assert ours.status == 0, ours.stderr
    assert sorted(path.name for path in root.rglob("*")) == sorted(
        path.name for path in theirs_root.rglob("*")
    )


def test_python(run: Runner, tmp_path: Path, root: Path) -> None:
    compared(run, python(tmp_path, PYTHON, "0.2.0"), root)


def test_javascript(run: Runner, tmp_path: Path, root: Path) -> None:
    (tmp_path / "app.js").write_text(JAVASCRIPT)
    (tmp_path / "world.wit").write_text(WIT.format(version="0.2.0", kind=""))
    options = ("app.js", "-w", "world.wit", "-n", "command", "-d", "http", "fetch-event")
    compared(run, made(tmp_path, "componentize-js", *options), root)


def test_python_of_0_3(run: Runner, tmp_path: Path) -> None:
    binary = python(tmp_path, PYTHON_P3, "0.3.0", "async ")
    ended = run(binary, "a", "b")
    assert ended.status == 0, ended.stderr
    assert ended.stdout == b"hello from an async function ['a', 'b']\n"
