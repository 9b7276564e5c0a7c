"""Memory that forks share: pages that are given back, what stays, and real shims and guests."""

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from proto import task_v2_pb2 as api
from tests.shim.launching import ROOT
from tests.shim.task_api import Shim, call

IMMORTAL = sys.version_info >= (3, 12)
"""Then the zygote does not use it; what it does is tested all the same."""

# Forks, each of which is to end with the status of its assertions; the test reads what they say.
_PRELUDE = """
import gc, os, sys
from shim import pages
from tests.shim.test_pages import copies

LIBRARY = [(str(i), [i, str(-i)], {str(i): -i}) for i in range(20_000)]
HELD = [object() for _ in range(5_000)]


def read_all():
    for text, (number, negative), table in LIBRARY:
        assert negative == str(-number) and table[text] == -number, text
    return len([one for one in LIBRARY])


def in_a_fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


read_all()  # strings have their hashes from here on
gc.collect()
gc.freeze()
pages.close_pools()
"""


def _run(program: str) -> list[int]:
    """Run it in a process of its own, whose memory is all its own; the numbers that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_what_was_only_read_is_given_back() -> None:
    copied, left = _run("""
pages.keep()
def work():
    read_all()
    before = copies(os.getpid())
    pages.give_back()
    print(before, copies(os.getpid()))
    read_all()
in_a_fork(work)
""")
    assert copied > 1_000  # each object's count went up and came back
    assert left < copied // 4


def test_what_was_changed_stays() -> None:
    (different,) = _run("""
pages.keep()
def work():
    for text, numbers, table in LIBRARY[::100]:
        numbers.append(text)
        table["more"] = numbers
    grown = [(str(i), {i: str(i)}) for i in range(50_000)]
    kept_counts = [sys.getrefcount(one) for one in HELD[:5_000]]
    HELD.extend(HELD[::2])
    counts = [sys.getrefcount(one) for one in HELD[:5_000]]
    for _ in range(3):
        pages.give_back()
        gc.collect()
    assert counts == [sys.getrefcount(one) for one in HELD[:5_000]]
    print(sum(a != b for a, b in zip(kept_counts, counts)))
    for number, (text, numbers, table) in enumerate(LIBRARY):
        assert table[text] == -numbers[0] == -number
        assert (table.get("more") is numbers) == (numbers[2:] == [text]) == (number % 100 == 0)
    assert all(one == (str(i), {i: str(i)}) for i, one in enumerate(grown))
in_a_fork(work)
""")
    assert different == 2_500


def test_forks_of_forks_and_the_first_process_go_on() -> None:
    answers = _run("""
pages.keep()
def child():
    read_all()
    pages.give_back()
    in_a_fork(grandchild)
    print(read_all())
def grandchild():
    LIBRARY.append(("20000", [20000, "-20000"], {"20000": -20000}))
    read_all()
    pages.give_back()
    print(read_all())
in_a_fork(child)
pages.give_back()
print(read_all())
""")
    assert answers == [20_001, 20_000, 20_000]


def test_nobody_can_write_to_what_the_others_have() -> None:
    said = _run("""
import errno, mmap
pages.keep()
def refused(deed, *arguments):
    try:
        deed(*arguments)
    except OSError as error:
        print(error.errno)
def work():
    line = next(line for line in open("/proc/self/maps") if "pywasm-pages" in line)
    fd = os.open(f"/proc/self/map_files/{line.split()[0]}", os.O_RDWR)
    refused(os.pwrite, fd, b"x", 0)
    refused(os.ftruncate, fd, 0)
    refused(mmap.mmap, fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
in_a_fork(work)
""")
    assert said == [errno.EPERM] * 3


def test_another_allocator_has_no_pools() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from shim import pages; print(pages.keep(), pages.give_back())"],
        cwd=ROOT,
        env={"PYTHONMALLOC": "malloc"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["0", "None"]


def copies(pid: int) -> int:
    """How many pages of what it shares with the zygote a process has copies of."""
    size, ours = 0, False
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            field, *values = line.split()
            if not field.endswith(":"):
                ours = values[0] == "rw-p" and values[-2:-1] == ["/memfd:pywasm-pages"]
            elif ours and field == "Anonymous:":
                size += int(values[0])
    return size // 4


@pytest.mark.skipif(IMMORTAL, reason="what they share is immortal, and not copied")
async def test_a_shim_and_a_guest_at_rest_give_back(tmp_path: Path) -> None:
    shim = Shim(tmp_path, ["idle"])
    try:
        client = await shim.create("c", "/idle.wasm")
        started = await call(client, "Start", api.StartRequest(id="c"), api.StartResponse)
        connected = await call(client, "Connect", api.ConnectRequest(id="c"), api.ConnectResponse)
        pids = started.pid, connected.shim_pid
        before = [copies(pid) for pid in pids]
        assert min(before) > 100
        for _ in range(200):
            after = [copies(pid) for pid in pids]
            if all(left < 0.8 * had for left, had in zip(after, before, strict=True)):
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError((before, after))
    finally:
        await shim.close()


@pytest.mark.skipif(not os.path.exists("/sys/kernel/mm/ksm"), reason="the kernel has no KSM")
@pytest.mark.parametrize("settings", ["", "merge_pages = true\n"])
async def test_only_what_was_kept_can_be_merged(tmp_path: Path, settings: str) -> None:
    shim = Shim(tmp_path, ["idle"])
    (tmp_path / "config.toml").write_text(settings)
    shim.env["PYWASM_CONFIG"] = str(tmp_path / "config.toml")
    try:
        client = await shim.create("c", "/idle.wasm")
        started = await call(client, "Start", api.StartRequest(id="c"), api.StartResponse)
        connected = await call(client, "Connect", api.ConnectRequest(id="c"), api.ConnectResponse)
        for pid in started.pid, connected.shim_pid:
            mergeable = set()
            name = ""
            for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
                field, *values = line.split()
                if not field.endswith(":"):
                    name = " ".join([values[0], *values[4:5]])
                elif field == "VmFlags:" and "mg" in values:
                    mergeable.add(name)
            kept = "rw-p" if IMMORTAL else "rw-p /memfd:pywasm-pages"
            assert mergeable == ({kept} if settings else set())
    finally:
        await shim.close()
