import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from oci.runtime import Hook
from shim.linux import hooks
from shim.linux.hooks import HookError, State

Run = Callable[..., Awaitable[None]]


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State("1.2.0", "x", "creating", os.getpid(), str(tmp_path), {"key": "value"})


@pytest.fixture(params=["shim", "guest"])
def run(request: pytest.FixtureRequest, state: State) -> Run:
    async def in_the_shim(*those: Hook) -> None:
        await hooks.run("createRuntime", those, state)

    async def in_the_guest(*those: Hook) -> None:
        hooks.run_here("createRuntime", those, state, state.bundle)

    return in_the_shim if request.param == "shim" else in_the_guest


def script(text: str, **more: Any) -> Hook:
    return Hook(path="/bin/sh", args=("sh", "-c", text), **more)


async def test_state_on_stdin_and_nothing_else(run: Run, state: State, tmp_path: Path) -> None:
    said = "cat >state; env >env; pwd >cwd; ls /proc/self/fd | wc -l >fds; exit 0"
    await run(script(said, env=("A=1", "B=x=y")))
    assert json.loads((tmp_path / "state").read_text()) == {
        "ociVersion": "1.2.0",
        "id": "x",
        "status": "creating",
        "pid": os.getpid(),
        "bundle": str(tmp_path),
        "annotations": {"key": "value"},
    }
    environment = (tmp_path / "env").read_text().split()
    assert {pair for pair in environment if pair[0] in "AB"} == {"A=1", "B=x=y"}
    assert not any(pair.startswith("HOME=") for pair in environment)
    assert (tmp_path / "cwd").read_text() == f"{tmp_path}\n"
    assert (tmp_path / "fds").read_text().strip() == "4"  # its own three, and the listing's


async def test_one_after_the_other_until_one_fails(run: Run, tmp_path: Path) -> None:
    with pytest.raises(HookError) as caught:
        await run(
            script("echo 0 >>order"),
            script("echo 1 >>order; echo it; printf 'went\\nwrong' >&2; exit 3"),
            script("echo 2 >>order"),
        )
    message = "hooks.createRuntime[1]: /bin/sh: ended with status 3: it went wrong"
    assert str(caught.value) == message
    assert (tmp_path / "order").read_text() == "0\n1\n"


async def test_one_that_takes_too_long_is_killed(run: Run, tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"\[0\]: /bin/sh: killed after 1 s"):
        await run(script("echo $$ >pid; exec sleep 60", timeout=1))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_one_that_ends_in_time(run: Run) -> None:
    await run(script("exit 0", timeout=20))


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (Hook(path="/no/such/program"), "/no/such/program: ended with status 127: No such file"),
        (Hook(path="relative"), "path: expected an absolute path, got 'relative'"),
        (Hook(path="/bin/true", timeout=0), "timeout: expected more than 0, got 0"),
    ],
)
async def test_one_that_cannot_run(run: Run, hook: Hook, reason: str) -> None:
    with pytest.raises(HookError) as caught:
        await run(hook)
    assert str(caught.value).startswith("hooks.createRuntime[0]")
    assert reason in str(caught.value)


async def test_signals_are_at_their_defaults(run: Run) -> None:
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    with pytest.raises(HookError, match=f"status {128 + signal.SIGPIPE}"):
        await run(script("kill -PIPE $$"))


async def test_nothing_stays_open(run: Run) -> None:
    await run(script("exit 0"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await run(script("exit 0"))
        with pytest.raises(HookError):
            await run(script("exit 1"))
    assert len(os.listdir("/proc/self/fd")) == before
