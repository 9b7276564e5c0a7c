from __future__ import annotations

import os
import resource
import signal
import time

import pytest

from shim.wasi.preview1 import clocks, errno

from .conftest import PAGE, Guest


def status(guest: Guest, name: str, number: int) -> int:
    """Call a function in a child that it ends; return the wait status."""
    child = os.fork()
    if child == 0:
        try:
            guest.functions[name].call(number)
        finally:
            os._exit(77)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize(("number", "code"), [(0, 0), (3, 3), (255, 255), (256, 0), (-1, 255)])
def test_exit(guest: Guest, number: int, code: int) -> None:
    assert os.waitstatus_to_exitcode(status(guest, "proc_exit", number)) == code


@pytest.mark.parametrize(
    ("number", "sent"),
    [(6, signal.SIGABRT), (9, signal.SIGKILL), (13, signal.SIGPIPE), (15, signal.SIGTERM)],
)
def test_raise(guest: Guest, number: int, sent: int) -> None:
    assert os.WTERMSIG(status(guest, "proc_raise", number)) == sent


ENDING = sorted(set(range(1, 31)) - {16, 17, 18, 19, 20, 21, 22, 27})


@pytest.mark.parametrize("number", ENDING)
def test_every_other_signal_ends_the_program(guest: Guest, number: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    ended = status(guest, "proc_raise", number)
    assert os.WIFSIGNALED(ended)


@pytest.mark.parametrize("number", [0, 16, 17, 22, 27])
def test_raise_what_does_nothing(guest: Guest, number: int) -> None:
    assert guest("proc_raise", number) == 0


@pytest.mark.parametrize("number", [31, 255, -1])
def test_raise_what_does_not_exist(guest: Guest, number: int) -> None:
    assert guest("proc_raise", number) == errno.INVAL


def test_yield(guest: Guest) -> None:
    assert guest("sched_yield") == 0


def test_random(guest: Guest) -> None:
    place = guest.room(64)
    assert guest("random_get", place, 32) == 0
    assert any(guest.memory[place : place + 32])
    assert not any(guest.memory[place + 32 : place + 64])
    assert guest("random_get", place, 0) == 0
    assert guest("random_get", PAGE - 1, 2) == errno.FAULT


def test_random_of_any_size(guest: Guest) -> None:
    guest.memory = bytearray(5_000_000)
    assert guest("random_get", PAGE, len(guest.memory) - PAGE) == 0
    assert len(set(guest.memory[-1000:])) > 100
    assert len(set(guest.memory[2_000_000:2_001_000])) > 100


def test_clocks(guest: Guest) -> None:
    result = guest.room(8)
    for number, linux in clocks.CLOCKS.items():
        before = time.clock_gettime_ns(linux)
        assert guest("clock_time_get", number, 0, result) == 0
        assert before <= guest.u64(result) <= time.clock_gettime_ns(linux)
        assert guest("clock_res_get", number, result) == 0
        assert 1 <= guest.u64(result) <= 10_000_000
    for number in (4, -1):
        assert guest("clock_time_get", number, 0, result) == errno.INVAL
        assert guest("clock_res_get", number, result) == errno.INVAL
    assert guest("clock_time_get", 0, 0, PAGE - 4) == errno.FAULT
