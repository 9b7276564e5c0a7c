"""The real shims that leave while another container joins are in test_faults.py."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shim.daemon.api import joining
from shim.daemon.api.joining import Joining, join
from shim.ttrpc import Method, Server


@asynccontextmanager
async def serving(path: Path, services: Mapping[str, Mapping[str, Method]]) -> AsyncIterator[None]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    server = Server(services)
    task = asyncio.create_task(server.serve(listener))
    yield
    server.close()
    await server.wait_closed(0)
    await task


async def joined(path: Path, id: str = "x") -> bool:
    return await asyncio.to_thread(join, str(path), id)


async def test_a_shim_waits_for_those_who_joined(tmp_path: Path) -> None:
    who = Joining(lambda: None)
    async with serving(tmp_path / "s", who.services()):
        assert not who
        assert await joined(tmp_path / "s", "x")
        assert await joined(tmp_path / "s", "x")
        assert await joined(tmp_path / "s", "y")
        who.arrived("x")
        assert who
        who.arrived("y")
        assert not who
        who.arrived("nobody")


async def test_a_create_is_not_waited_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_CREATE_TIME", 0.05)
    given_up = asyncio.Event()
    who = Joining(given_up.set)
    async with serving(tmp_path / "s", who.services()):
        assert await joined(tmp_path / "s")
        await asyncio.wait_for(given_up.wait(), 5)
        assert not who


async def test_a_shim_that_is_about_to_end_takes_nobody(tmp_path: Path) -> None:
    who = Joining(lambda: None)
    who.closed = True
    async with serving(tmp_path / "s", who.services()):
        assert not await joined(tmp_path / "s")
        assert not who
    assert not await joined(tmp_path / "s")  # the socket of one that has ended
    assert not await joined(tmp_path / "nobody")


async def test_a_shim_of_another_build_is_one(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", {}):
        assert await joined(tmp_path / "s")


async def test_a_shim_that_does_not_answer_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_ANSWER_TIME", 1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        assert await joined(tmp_path / "s")
        assert await joined(tmp_path / "s")  # now the queue is full, too


async def test_a_shim_that_ends_without_an_answer_is_none(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    asking = asyncio.create_task(joined(tmp_path / "s"))
    await asyncio.sleep(0.05)
    listener.close()
    assert not await asking
