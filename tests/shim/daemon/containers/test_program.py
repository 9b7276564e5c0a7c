import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proto.task_pb2 import Status
from shim.daemon.containers.program import Program
from shim.daemon.streams.stdio import Stdio


@pytest.mark.parametrize("moments", [0, 1, 2, 5])
async def test_an_exit_is_told_once_however_late_somebody_asks(moments: int) -> None:
    # No process: the moment between its end and what follows from it cannot be hit with a real one.
    child: Any = SimpleNamespace(exited=asyncio.get_running_loop().create_future(), pid=1)
    program = Program("x", "e", Stdio("", "", ""))
    program._adopt(child)
    child.exited.set_result(3)
    for _ in range(moments):
        await asyncio.sleep(0)
    told: list[int] = []
    program.on_exit(lambda: told.append(program.exit_status))
    for _ in range(5):
        await asyncio.sleep(0)
    assert (told, program.status) == ([3], Status.STOPPED)
