"""Every method of the Task API in every state, beside containerd's own runc shim.

The same calls are sent to both, to ours for a wasm program and to containerd's for a native one;
answers, status codes, states and events are compared. docs/task-api.md explains the differences,
and its table is what this test goes by: a difference that is not there fails, and so does a row
that has become untrue.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.ttrpc import RpcError
from tests.shim.daemon.reference import Fields, Recorder, ReferenceShim, references, version_of
from tests.shim.task_api import Shim

DOCUMENT = Path(__file__).parents[3] / "docs" / "task-api.md"
GUESTS = ("idle", "exit3", "cat")
MESSAGE = "(message)"
"""Shown, not compared: it is for people."""

Probe = tuple[str, str, dict[str, Any]]


def document(value: object) -> AnyMessage:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return AnyMessage(value=data)


def process(*args: str) -> AnyMessage:
    return document({"args": args, "cwd": "/", "env": ["PATH=/"]})


# --- calls that change nothing, if the situation is as its name says -----------------------------

HARMLESS: list[Probe] = [
    ("State", "State", {}),
    ("Pids", "Pids", {}),
    ("Connect", "Connect", {}),
    ("Stats", "Stats", {}),
    ("Update", "Update", {"resources": document({"pids": {"limit": 100}})}),
    ("Update without limits", "Update", {"resources": document({})}),
    ("Update with no JSON", "Update", {"resources": document(b"{")}),
    ("Update with a wrong type", "Update", {"resources": document({"pids": {"limit": "x"}})}),
    ("ResizePty", "ResizePty", {"width": 80, "height": 25}),
    ("CloseIO of nothing", "CloseIO", {}),
    ("CloseIO", "CloseIO", {"stdin": True}),
    ("CloseIO again", "CloseIO", {"stdin": True}),
    ("Kill with 0", "Kill", {"signal": 0}),
    ("Kill with 65", "Kill", {"signal": 65}),
    ("Kill with 2**32 - 1", "Kill", {"signal": 2**32 - 1}),
    ("Checkpoint", "Checkpoint", {}),
    ("Shutdown", "Shutdown", {}),
    ("Exec with no JSON", "Exec", {"exec_id": "bad", "spec": document(b"{")}),
    *(
        (f"{method} of an unknown exec", method, {"exec_id": "nobody"})
        for method in ("State", "Start", "Wait", "Kill", "Delete", "ResizePty", "CloseIO")
    ),
]
START: Probe = ("Start", "Start", {})
PAUSE: Probe = ("Pause", "Pause", {})
RESUME: Probe = ("Resume", "Resume", {})
DELETE: Probe = ("Delete", "Delete", {})
KILL_ALL: Probe = ("Kill all with 0", "Kill", {"signal": 0, "all": True})
"""Not for a paused container: runc 1.1 lets it go on."""
KILL: Probe = ("Kill", "Kill", {"signal": signal.SIGKILL})
WAIT: Probe = ("Wait", "Wait", {})
EXEC: Probe = ("Exec", "Exec", {"exec_id": "late", "spec": process("/idle.wasm")})

EXEC_HARMLESS: list[Probe] = [
    ("State", "State", {}),
    ("ResizePty", "ResizePty", {"width": 80, "height": 25}),
    ("CloseIO", "CloseIO", {"stdin": True}),
    ("CloseIO again", "CloseIO", {"stdin": True}),
    ("Kill with 0", "Kill", {"signal": 0}),
    ("Kill all with 0", "Kill", {"signal": 0, "all": True}),
    ("Kill with 65", "Kill", {"signal": 65}),
    ("Exec with the same id", "Exec", {"spec": process("/idle.wasm")}),
]


async def probe(r: Recorder, state: str, probes: list[Probe], **whom: str) -> None:
    for label, method, fields in probes:
        await r.do(f"{label}: {state}", method, **whom, **fields)


# --- scenarios ----------------------------------------------------------------------------------


async def a_life(r: Recorder) -> None:
    """Through all states, and in each of them what is not for it."""
    await probe(
        r, "unknown", [*HARMLESS, KILL_ALL, START, PAUSE, RESUME, KILL, WAIT, DELETE, EXEC], id="x"
    )

    request = r.create_request("x", "/idle.wasm")
    await r.do("Create: unknown", "Create", **request)
    await r.do("Create: created", "Create", **request)
    await probe(r, "created", [*HARMLESS, KILL_ALL, PAUSE, RESUME], id="x")
    waiting = await r.do_not_wait("Wait: until the end", id="x")
    await r.pending("Wait: created", waiting)

    await probe(r, "created", [START], id="x")
    await r.do("Create: running", "Create", **request)
    await probe(r, "running", [*HARMLESS, KILL_ALL, START, RESUME, DELETE], id="x")
    await r.pending("Wait: running", waiting)

    await probe(r, "running", [PAUSE], id="x")
    await probe(r, "paused", [*HARMLESS, START, PAUSE, DELETE, EXEC], id="x")
    await probe(r, "paused", [RESUME], id="x")
    await r.do("State: resumed", "State", id="x")

    await probe(r, "running", [KILL], id="x")
    await waiting
    await r.heard("x", "/tasks/exit")
    await probe(r, "stopped", [WAIT], id="x")
    await r.do("Create: stopped", "Create", **request)
    await probe(r, "stopped", [*HARMLESS, KILL_ALL, START, PAUSE, RESUME, KILL, EXEC], id="x")
    await probe(r, "stopped", [DELETE], id="x")
    await probe(
        r, "deleted", [*HARMLESS, KILL_ALL, START, PAUSE, RESUME, KILL, WAIT, DELETE, EXEC], id="x"
    )


async def a_second_life(r: Recorder) -> None:
    """An id is free again after Delete."""
    for life in ("first", "second"):
        request = r.create_request("again", "/exit3.wasm")
        await r.do(f"Create: the {life} life", "Create", **request)
        await r.do(f"Start: the {life} life", "Start", id="again")
        await r.do(f"Wait: the {life} life", "Wait", id="again")
        await r.do(f"State: after the {life} life", "State", id="again")
        await r.do(f"Delete: the {life} life", "Delete", id="again")
        await r.heard("again", "/tasks/delete", 1 if life == "first" else 2)
        shutil.rmtree(r.shim.directory / "again")
        for stream in ("in", "stdout", "stderr"):
            os.unlink(r.shim.directory / f"again.{stream}")


async def created_and_deleted(r: Recorder) -> None:
    await r.make("unborn", streams=False)
    await r.do("Delete: created", "Delete", id="unborn")
    await r.heard("unborn", "/tasks/delete")


async def created_and_killed(r: Recorder) -> None:
    await r.make("early")
    await r.do("Kill: created", "Kill", id="early", signal=signal.SIGKILL)
    await r.do("Wait: killed when created", "Wait", id="early")
    await r.heard("early", "/tasks/exit")
    await r.do("State: killed when created", "State", id="early")
    await r.do("Start: killed when created", "Start", id="early")
    await r.do("Delete: killed when created", "Delete", id="early")
    await r.heard("early", "/tasks/delete")


async def paused_and_killed(r: Recorder) -> None:
    await r.make("frozen")
    await r.do("Start: to be paused", "Start", id="frozen")
    await r.do("Pause: to be killed", "Pause", id="frozen")
    waiting = await r.do_not_wait("Wait: killed when paused", id="frozen")
    await r.do("Kill: paused", "Kill", id="frozen", signal=signal.SIGKILL)
    await r.pending("Wait: killed when paused, at once", waiting, 10)
    await r.do("Resume: killed when paused", "Resume", id="frozen")
    await waiting
    await r.heard("frozen", "/tasks/exit")
    await r.do("State: killed when paused", "State", id="frozen")
    await r.do("Delete: killed when paused", "Delete", id="frozen")
    await r.heard("frozen", "/tasks/delete")


async def terminated(r: Recorder) -> None:
    """What a program without handlers makes of the polite signal."""
    await r.make("polite")
    await r.do("Start: to be terminated", "Start", id="polite")
    waiting = await r.do_not_wait("Wait: terminated", id="polite")
    await r.outputs["polite.stdout"].line()  # a native program must have been executed
    await r.do("Kill with SIGTERM: running", "Kill", id="polite", signal=signal.SIGTERM)
    await r.pending("Wait: terminated, at once", waiting, 0.5)
    if not waiting.done():
        await r.call("Kill", id="polite", signal=signal.SIGKILL)
    await waiting
    await r.heard("polite", "/tasks/exit")
    await r.do("Delete: terminated", "Delete", id="polite")
    await r.heard("polite", "/tasks/delete")


async def all_killed(r: Recorder) -> None:
    whom = {"id": "crowd", "exec_id": "e"}
    await r.make("crowd")
    await r.do("Start: to be killed with all", "Start", id="crowd")
    await r.do("Exec: to be killed with all", "Exec", **whom, spec=process("/idle.wasm"))
    await r.do("Start: exec, to be killed with all", "Start", **whom)
    await r.do("Kill all: running", "Kill", id="crowd", signal=signal.SIGKILL, all=True)
    await r.do("Wait: killed with all", "Wait", id="crowd")
    await r.do("Wait: exec, killed with all", "Wait", **whom)
    await r.heard("crowd", "/tasks/exit", 2)
    await r.do("Kill all: stopped", "Kill", id="crowd", signal=signal.SIGKILL, all=True)
    await r.do("Delete: killed with all", "Delete", id="crowd")
    await r.heard("crowd", "/tasks/delete")


async def an_exec(r: Recorder) -> None:
    """A further program through all its states."""
    await r.make("home")
    whom = {"id": "home", "exec_id": "e"}
    exec_request = {**whom, "spec": process("/idle.wasm"), **r.streams("home.e")}
    await r.do("Start: to be executed in", "Start", id="home")
    await r.do("Exec: running", "Exec", **exec_request)
    await probe(r, "added exec", EXEC_HARMLESS, **whom)
    await r.do("Kill: added exec", "Kill", **whom, signal=signal.SIGKILL)
    waiting = await r.do_not_wait("Wait: exec, until the end", **whom)
    await r.pending("Wait: added exec", waiting)
    await r.do("Pids: added exec", "Pids", id="home")

    await r.do("Start: added exec", "Start", **whom)
    await r.heard("home", "/tasks/exec-started")
    await probe(r, "running exec", [*EXEC_HARMLESS, DELETE], **whom)
    await r.do("Pids: running exec", "Pids", id="home")
    await r.pending("Wait: running exec", waiting)
    await r.do("Pause: with an exec", "Pause", id="home")
    await r.do("State: paused exec", "State", **whom)
    await r.do("Delete: paused exec", "Delete", **whom)
    await r.do("Resume: with an exec", "Resume", id="home")

    await r.do("Kill: running exec", "Kill", **whom, signal=signal.SIGKILL)
    await waiting
    await r.heard("home", "/tasks/exit")
    await probe(r, "ended exec", [WAIT, *EXEC_HARMLESS, KILL], **whom)
    await r.do("Delete: ended exec", "Delete", **whom)
    await probe(r, "deleted exec", [*EXEC_HARMLESS[:-1], START, KILL, WAIT, DELETE], **whom)
    await r.do("Exec: with the id of a deleted one", "Exec", **exec_request)
    await r.do("Delete: added exec", "Delete", **whom)

    await r.do("Kill: after execs", "Kill", id="home", signal=signal.SIGKILL)
    await r.do("Wait: after execs", "Wait", id="home")
    await r.do("Delete: after execs", "Delete", id="home")
    await r.heard("home", "/tasks/delete")


async def odd_execs(r: Recorder) -> None:
    await r.make("odd")
    ended = {"exec_id": "three", "spec": process("/exit3.wasm")}
    await r.do("Exec: created", "Exec", id="odd", **ended)
    await r.do("Start: exec in a created container", "Start", id="odd", exec_id="three")
    await r.do("Wait: exec in a created container", "Wait", id="odd", exec_id="three")
    await r.heard("odd", "/tasks/exit")
    await r.do("State: exec of 3", "State", id="odd", exec_id="three")
    await r.do("Delete: exec of 3", "Delete", id="odd", exec_id="three")
    await r.do("Start: with odd execs", "Start", id="odd")

    await r.do("Exec: without an id", "Exec", id="odd", spec=process("/exit3.wasm"))
    missing = {"id": "odd", "exec_id": "missing"}
    await r.do("Exec: of what is not there", "Exec", **missing, spec=process("/missing"))
    await r.do("Start: of what is not there", "Start", **missing)
    await r.do("State: of what is not there", "State", **missing)
    waiting = await r.do_not_wait("Wait: of what is not there", **missing)
    await r.pending("Wait: of what is not there, at once", waiting, 10)
    await r.do("Kill: of what is not there", "Kill", **missing, signal=signal.SIGKILL)
    await r.do("Delete: of what is not there", "Delete", **missing)

    empty = {"id": "odd", "exec_id": "empty"}
    await r.do("Exec: without arguments", "Exec", **empty, spec=process())
    await r.do("Start: without arguments", "Start", **empty)
    await r.do("Delete: without arguments", "Delete", **empty)

    late = {"id": "odd", "exec_id": "late"}
    await r.do("Exec: started too late", "Exec", **late, spec=process("/idle.wasm"))
    await r.do("Kill: with an added exec", "Kill", id="odd", signal=signal.SIGKILL)
    await r.do("Wait: with an added exec", "Wait", id="odd")
    await r.heard("odd", "/tasks/exit", 2)
    await r.do("State: added exec of a stopped container", "State", **late)
    await r.do("Start: added exec of a stopped container", "Start", **late)
    await r.do("Delete: added exec of a stopped container", "Delete", **late)
    await r.do("Delete: after odd execs", "Delete", id="odd")
    await r.heard("odd", "/tasks/delete")


async def the_first_takes_the_others_along(r: Recorder) -> None:
    await r.make("captain")
    whom = {"id": "captain", "exec_id": "crew"}
    await r.do("Start: with a crew", "Start", id="captain")
    await r.do("Exec: crew", "Exec", **whom, spec=process("/idle.wasm"))
    await r.do("Start: crew", "Start", **whom)
    waiting = await r.do_not_wait("Wait: crew", **whom)
    await r.do("Kill: with a crew", "Kill", id="captain", signal=signal.SIGKILL)
    await r.do("Wait: with a crew", "Wait", id="captain")
    await waiting
    await r.heard("captain", "/tasks/exit", 2)
    await r.do("State: crew", "State", **whom)
    await r.do("Delete: with a crew", "Delete", id="captain")
    await r.do("State: crew of a deleted container", "State", **whom)
    await r.heard("captain", "/tasks/delete")


async def input_ends(r: Recorder) -> None:
    """CloseIO is the end of input once the client has closed its end."""
    await r.make("reader", "/cat.wasm")
    await r.do("Start: a reader", "Start", id="reader")
    waiting = await r.do_not_wait("Wait: a reader", id="reader")
    writer = os.open(r.shim.directory / "reader.in", os.O_WRONLY)
    os.write(writer, b"text")
    await r.pending("Wait: a reader, while there may be more", waiting)
    await r.do("CloseIO: before the client has closed its end", "CloseIO", id="reader", stdin=True)
    await r.pending("Wait: a reader, after CloseIO", waiting)
    os.close(writer)
    await waiting
    await r.heard("reader", "/tasks/exit")
    await r.do("Delete: a reader", "Delete", id="reader")
    await r.heard("reader", "/tasks/delete")


async def terminals(r: Recorder) -> None:
    size = {"width": 80, "height": 25}
    await r.make("tty", terminal=True)
    await r.do("ResizePty: created, a terminal", "ResizePty", id="tty", **size)
    await r.do("Start: a terminal", "Start", id="tty")
    await r.do("State: a terminal", "State", id="tty")
    await r.do("ResizePty: running, a terminal", "ResizePty", id="tty", **size)
    await r.do("ResizePty: to nothing", "ResizePty", id="tty")
    await r.do("ResizePty: too large", "ResizePty", id="tty", width=1 << 20, height=1 << 20)
    whom = {"id": "tty", "exec_id": "e"}
    streams = r.streams("tty.e", terminal=True)
    spec = process("/idle.wasm")
    await r.do("Exec: a terminal", "Exec", **whom, terminal=True, spec=spec, **streams)
    await r.do("ResizePty: added exec, a terminal", "ResizePty", **whom, **size)
    await r.do("Start: exec, a terminal", "Start", **whom)
    await r.do("State: exec, a terminal", "State", **whom)
    await r.do("ResizePty: running exec, a terminal", "ResizePty", **whom, **size)
    waiting = await r.do_not_wait("Wait: exec, a terminal", **whom)
    await r.do("CloseIO: exec, a terminal", "CloseIO", **whom, stdin=True)
    await r.pending("Wait: exec, a terminal, after CloseIO", waiting, 0.5)
    if not waiting.done():
        await r.call("Kill", **whom, signal=signal.SIGHUP)
    await waiting
    await r.heard("tty", "/tasks/exit")
    await r.do("ResizePty: ended exec, a terminal", "ResizePty", **whom, **size)
    await r.do("Delete: exec, a terminal", "Delete", **whom)
    await r.do("Kill: a terminal", "Kill", id="tty", signal=signal.SIGKILL)
    await r.do("Wait: a terminal", "Wait", id="tty")
    await r.heard("tty", "/tasks/exit", 2)
    await r.do("Delete: a terminal", "Delete", id="tty")
    await r.heard("tty", "/tasks/delete")


async def of_crio(r: Recorder) -> None:
    """Who stops once more what has ended."""
    whom = {"id": "crio", "exec_id": "e"}
    request = r.create_request("crio", "/exit3.wasm")
    config = r.shim.directory / "crio" / "config.json"
    marked = {"annotations": {"io.kubernetes.cri-o.ContainerType": "container"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | marked))
    await r.do("Create: CRI-O's", "Create", **request)
    await r.do("Exec: CRI-O's", "Exec", **whom, spec=process("/exit3.wasm"))
    await r.do("Start: exec, CRI-O's", "Start", **whom)
    await r.do("Wait: exec, CRI-O's", "Wait", **whom)
    await r.do("Kill: ended exec, CRI-O's", "Kill", **whom, signal=signal.SIGKILL)
    await r.do("Start: CRI-O's", "Start", id="crio")
    await r.do("Wait: CRI-O's", "Wait", id="crio")
    for signum in (0, signal.SIGHUP, signal.SIGTERM, signal.SIGKILL):
        await r.do(f"Kill with {signum:d}: stopped, CRI-O's", "Kill", id="crio", signal=signum)
    await r.heard("crio", "/tasks/exit", 2)
    await r.do("Delete: CRI-O's", "Delete", id="crio")
    await r.do("Kill: deleted, CRI-O's", "Kill", id="crio", signal=signal.SIGKILL)
    await r.heard("crio", "/tasks/delete")


async def bad_creates(r: Recorder) -> None:
    """Nothing is left of them, and no event tells of them."""
    request = r.create_request("broken", "/missing.wasm")
    await r.do("Create: of what is not there", "Create", **request)
    await r.do("State: a failed Create", "State", id="broken")
    config = r.shim.directory / "broken" / "config.json"
    config.write_text("{")
    await r.do("Create: with no JSON", "Create", **request)
    config.unlink()
    await r.do("Create: without config.json", "Create", **request)
    restored = r.create_request("restored", "/idle.wasm")
    await r.do(
        "Create: of a checkpoint",
        "Create",
        **restored,
        checkpoint=str(r.shim.directory / "no-image"),
    )
    await r.do("Start: of a checkpoint", "Start", id="restored")
    await r.do("Delete: of a checkpoint", "Delete", id="restored")


async def what_there_is_not(r: Recorder) -> None:
    await r.do("unknown method", "Fly", id="x")
    await r.do("unknown service", "State", id="x", service="containerd.task.v9.Task")
    for version in (2, 3):
        service = f"containerd.task.v{version}.Task"
        await r.do(f"version {version}", "State", id="x", service=service)


async def the_end(r: Recorder) -> None:
    """The last scenario: the shim goes, or stays for those that are left."""
    await r.do("Shutdown: with a container", "Shutdown", id="shim", now=True)
    await r.do("State: after a Shutdown that was too early", "State", id="shim")
    await r.do("Start: the last", "Start", id="shim")
    await r.finish("shim")
    await r.do("Shutdown: without containers", "Shutdown", id="shim")
    await r.gone()
    await r.do("State: after Shutdown", "State", id="shim")


async def updated_with_nothing(r: Recorder) -> None:
    await r.do("Update: with nothing", "Update", id="shim")


async def exec_of_nothing(r: Recorder) -> None:
    await r.do("Exec: without a process", "Exec", id="shim", exec_id="e")


async def exec_started_twice(r: Recorder) -> None:
    whom = {"id": "shim", "exec_id": "e"}
    await r.do("Start: for an exec", "Start", id="shim")
    await r.do("Exec: to be started twice", "Exec", **whom, spec=process("/idle.wasm"))
    await r.do("Start: exec, first", "Start", **whom)
    await r.do("Start: running exec", "Start", **whom)
    await r.do("Kill: exec, started twice", "Kill", **whom, signal=signal.SIGKILL)
    await r.do("Wait: exec, started twice", "Wait", **whom)
    await r.heard("shim", "/tasks/exit")
    await r.do("Start: ended exec", "Start", **whom)
    with suppress(RpcError):  # it is a matter of moments
        await r.call("Kill", id="shim", signal=signal.SIGKILL)
    await r.do("Wait: after an exec was started twice", "Wait", id="shim")


Scenario = Callable[[Recorder], Awaitable[None]]
SCENARIOS: tuple[Scenario, ...] = (
    a_life,
    a_second_life,
    created_and_deleted,
    created_and_killed,
    paused_and_killed,
    terminated,
    all_killed,
    an_exec,
    odd_execs,
    the_first_takes_the_others_along,
    input_ends,
    terminals,
    of_crio,
    bad_creates,
    what_there_is_not,
    the_end,
)
ALONE: tuple[Scenario, ...] = (updated_with_nothing, exec_of_nothing, exec_started_twice)
"""Each has a shim of its own, since not every shim survives it."""


# --- differences --------------------------------------------------------------------------------


class Difference(NamedTuple):
    """A row of the table in the document; patterns as of fnmatch."""

    call: str
    field: str
    runc: str
    wasm: str
    why: str

    def fits(self, call: str, field: str, runc: str, wasm: str) -> bool:
        pairs = zip((call, field, runc, wasm), self, strict=False)
        return all(fnmatchcase(value, pattern) for value, pattern in pairs)


def explained(version: str) -> list[Difference]:
    """The rows that apply beside this version of containerd.

    Each section is headed by the versions.
    """
    found, applies = [], True
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            applies = line == "## Always" or version in line.split()
        elif line.startswith("| `") and applies:
            *patterns, why = (cell.strip() for cell in line.strip("| ").split(" | "))
            call, field, runc, wasm = (cell.strip("`") for cell in patterns)
            found.append(Difference(call, field, runc, wasm, why))
    return found


def differences(
    runc: dict[str, Fields], wasm: dict[str, Fields]
) -> dict[tuple[str, str], tuple[str, str]]:
    """By call and field: what runc's shim says, and ours."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for call in runc | wasm:
        theirs, ours = runc.get(call, {}), wasm.get(call, {})
        fields = [f for f in theirs | ours if f != MESSAGE and theirs.get(f) != ours.get(f)]
        # Where the one refuses, or says another number of things, there is nothing else to compare.
        for first in ("code", "order"):
            if first in fields:
                fields = [first]
        found |= {(call, f): (theirs.get(f, "-"), ours.get(f, "-")) for f in fields}
    return found


async def seen(shim: Shim, scenarios: Sequence[Scenario]) -> dict[str, Fields]:
    recorder = Recorder(shim)
    try:
        await recorder.start()
        for scenario in scenarios:
            await scenario(recorder)
        return recorder.seen()
    finally:
        await recorder.close()


async def both(
    directory: Path, reference: str, scenarios: Sequence[Scenario]
) -> list[dict[str, Fields]]:
    """What each of the two does, runc's first."""
    for name in ("runc", "wasm"):
        (directory / name).mkdir(parents=True)
    shims = (
        ReferenceShim(directory / "runc", GUESTS, reference),
        Shim(directory / "wasm", GUESTS),
    )
    return await asyncio.gather(*(seen(shim, scenarios) for shim in shims))


@pytest.mark.parametrize("reference", references(), ids=version_of)
async def test_beside_runc(reference: str, tmp_path: Path) -> None:
    version = version_of(reference)
    if not re.search(rf"^## .*\b{re.escape(version)}\b", DOCUMENT.read_text(), re.MULTILINE):
        pytest.skip(f"nothing is known of containerd {version}'s shim")
    runc, wasm = await both(tmp_path / "n", reference, SCENARIOS)
    for number, scenario in enumerate(ALONE):  # in paths that leave room for those of sockets
        found = await both(tmp_path / str(number), reference, [scenario])
        for side, more in zip((runc, wasm), found, strict=True):
            side |= {call: more[call] for call in more if not call.startswith("events")}

    rows = explained(version)
    print(f"compared: {len(wasm)} answers and streams of events")
    unexplained, used = {}, set()
    for (call, field), (theirs, ours) in differences(runc, wasm).items():
        row = next((row for row in rows if row.fits(call, field, theirs, ours)), None)
        messages = [side.get(call, {}).get(MESSAGE, "") for side in (runc, wasm)]
        print(f"{call}, {field}\n    runc: {theirs} {messages[0]}\n    wasm: {ours} {messages[1]}")
        print(f"    why:  {row and row.why}")
        if row is None:
            unexplained[call, field] = (theirs, ours)
        else:
            used.add(row)
    assert unexplained == {}
    assert [row for row in rows if row not in used] == []
