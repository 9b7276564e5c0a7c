"""The heap of a zygote, in interpreters of their own: what is done to it is for good."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.shim.launching import ROOT

immortal = pytest.mark.skipif(sys.version_info < (3, 12), reason="no object can be immortal")


def run(program: str) -> str:
    """Run a program that ends as the zygote does; returns what it prints."""
    begin = "import ctypes, gc, os, sys, weakref\nfrom shim.zygote import heap\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{begin}{program}\nsys.stdout.flush()\nos._exit(0)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@immortal
def test_what_is_there_is_not_counted_any_more() -> None:
    told = run("""
class Thing:
    def method(self, number: int = 5000):
        return "a constant", number

key = "".join(["a ", "key"])
table = {key: [float("1.5"), (b"bytes", Thing)]}
thing = Thing()
everything = [thing, Thing, Thing.method, Thing.method.__code__, table, table[key], key,
    Thing.method.__code__.co_consts[0], Thing.method.__code__.co_names, Thing.method.__defaults__]
number = heap.immortalize()
before = [heap._count(each) for each in everything]
others = everything * 1000
del thing
after = [heap._count(each) for each in everything]
print(number > 10_000, before == after, set(before) == {heap._count(None)})
""")
    assert told == "True True True\n"


@immortal
def test_what_comes_later_lives_and_dies() -> None:
    told = run("""
class Thing:
    pass

heap.settle()
later, cycle = Thing(), Thing()
cycle.itself = cycle
died = []
watches = [weakref.ref(each, died.append) for each in (later, cycle)]
del later
print(len(died))
del cycle
gc.collect()
print(len(died), gc.get_freeze_count() > 1000)
""")
    assert told == "1\n2 True\n"


@immortal
def test_an_interpreter_that_counts_otherwise_is_left_alone() -> None:
    told = run("""
thing, count = object(), heap._count
before = count(thing)
for name, otherwise in (("_LEAST", 1 << 33), ("_count", lambda thing: 7)):
    kept = getattr(heap, name)
    setattr(heap, name, otherwise)
    try:
        heap.immortalize()
    except heap.UnknownInterpreterError as error:
        print(error)
    setattr(heap, name, kept)
print(count(thing) == before)
""")
    assert told.count("reference counts are not where they should be") == 2
    assert told.endswith("True\n")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="objects can be immortal")
def test_where_no_object_can_be_immortal_none_is_made_so() -> None:
    told = run("""
before = heap._count(heap)
try:
    heap.immortalize()
except heap.UnknownInterpreterError:
    print(heap._count(heap) - before)
""")
    assert told == "0\n"
