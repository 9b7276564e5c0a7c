"""Where a zygote's memory lies, in interpreters of their own: what is done to it is for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shim.zygote.test_heap import run

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_small_objects_lie_together() -> None:
    told = run("""
from shim.linux import mappings
from shim.zygote import layout
layout.reserve()
def heaps():
    return [end - begin for begin, end in mappings.private(b"", mappings.HEAP)]
def arenas():
    return sum(heaps())
before = arenas()
made = [bytes(number % 400) for number in range(30_000)]
print(max(heaps()) >= layout.RESERVED // 2, arenas() - before)
""")
    one_piece, more = told.split()
    assert one_piece == "True"
    assert int(more) < 2 << 20  # for 6 MB that were made since


def test_what_comes_after_the_gaps_are_closed_is_together() -> None:
    told = run("""
from shim.zygote import layout
holes = [bytes(number) for number in range(20, 3000)]
kept = holes[::2]
del holes
before = {id(each) // 4096 for each in kept}
layout.close_gaps()
new = [bytes(number) for number in range(20, 3000, 100)]
print(len(before & {id(each) // 4096 for each in new}))
""")
    assert int(told) <= 3  # of 30: where the one ends and the other begins


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="this kernel has no huge pages")
def test_a_zygote_has_huge_pages() -> None:
    told = run("""
from shim.linux.files import read_small
from shim.zygote import layout
layout.reserve()
layout.use_huge_pages()
print(sum(int(line.split()[1]) for line in read_small("/proc/self/smaps_rollup").splitlines()
    if line.startswith(b"AnonHugePages:")))
""")
    if told == "0\n":
        pytest.skip("this kernel makes no huge pages on demand (Linux 6.1)")
    assert int(told) >= 8 << 10
