"""The rehearsal, in interpreters of their own: what it leaves behind is for good."""

from __future__ import annotations

import os
from pathlib import Path

from shim.linux.cgroups.trees import own
from tests.shim.zygote.test_heap import run

BEGIN = """
sys.path.insert(0, os.getcwd())
from shim.zygote import layout, main, rehearsal
main._preload()
"""


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    before = own()
    told = run(f"""{BEGIN}
def state():
    return sorted(os.listdir("/proc/self/fd")), sys.getprofile()

before = state()
rehearsal.rehearse({str(tmp_path)!r})
print(state() == before, os.getcwd())
try:
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
except ChildProcessError:
    print("no children")
""")
    assert told == "True /\nno children\n"
    assert os.listdir(tmp_path) == []
    assert own() == before


def test_the_container_lives_and_its_code_is_put_together(tmp_path: Path) -> None:
    told = run(f"""{BEGIN}
taken = []
pack = layout.pack
layout.pack = lambda functions: [taken.extend(functions), pack(functions)]
rehearsal.rehearse({str(tmp_path)!r})
names = {{function.__qualname__ for function in taken}}
print({{"TaskService.create", "WasmContainer._run", "live", "enter_root", "Program.grant"}} - names)
codes = {{id(function.__code__): sys.getsizeof(function.__code__) for function in taken}}
print(sum(codes.values()) / len({{address // 4096 for address in codes}}))
""")
    missing, bytes_on_a_page = told.splitlines()
    assert missing == "set()"
    assert float(bytes_on_a_page) > 2048


def test_where_no_container_can_be_made(tmp_path: Path) -> None:
    told = run(f"""{BEGIN}
from shim.linux import clone
def refuse(*arguments, **named):
    raise PermissionError(1, "not here")
clone.clone = refuse
rehearsal.rehearse({str(tmp_path)!r})
print("done")
""")
    assert told == "done\n"
    assert os.listdir(tmp_path) == []
