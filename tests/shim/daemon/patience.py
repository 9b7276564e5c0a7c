"""Loops in coroutines that wait for something which may never come."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

_SECONDS = 30.0


async def patiently(pause: float = 0.0) -> AsyncIterator[None]:
    """Let the event loop run, again and again, until the caller leaves the loop.

    Raises AssertionError after half a minute: what pytest-timeout raises, the event loop may
    swallow.
    """
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        await asyncio.sleep(pause)
        yield
    raise AssertionError("waited for too long")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what others are about to bring about. Raises AssertionError as `patiently`."""
    async for _ in patiently(0.005):
        if condition():
            return
