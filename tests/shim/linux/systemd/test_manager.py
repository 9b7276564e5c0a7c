"""The conversation, with a stand-in that speaks real D-Bus.

systemd itself is asked in tests/vm.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jeepney
import pytest
from jeepney.io.blocking import open_dbus_connection

from oci.linux import CPU, Memory, Resources
from shim.linux.clone import clone, wait
from shim.linux.systemd import manager as manager_module
from shim.linux.systemd.manager import Systemd
from shim.linux.systemd.scope import Scope, limit_properties, scope_properties

LIMITS = Resources(memory=Memory(limit=1 << 26), cpu=CPU(cpus="0-2,9"))


class Stand_in:
    """Answers as systemd does, and notes what it was asked, one line of JSON each."""

    def __init__(self, notes: int, send: Callable[[jeepney.Message], None]) -> None:
        self._notes, self._send = notes, send
        self._jobs = 0
        self._failed = {"run-again.scope"}
        self._units = {"run-living.scope"}

    def serve(self, messages: Iterator[jeepney.Message]) -> None:
        for message in messages:
            if message.header.message_type is not jeepney.MessageType.method_call:
                continue
            method = message.header.fields[jeepney.HeaderFields.member]
            note = json.dumps([method, message.body], default=list) + "\n"
            os.write(self._notes, note.encode())
            getattr(self, method)(message, *message.body)

    def Subscribe(self, call: jeepney.Message) -> None:
        self._send(jeepney.new_method_return(call))

    def Get(self, call: jeepney.Message, interface: str, name: str) -> None:
        assert (interface, name) == ("org.freedesktop.systemd1.Manager", "Version")
        self._send(jeepney.new_method_return(call, "v", (("s", "252.30-1~deb12u2"),)))

    def StartTransientUnit(
        self, call: jeepney.Message, unit: str, mode: str, properties: Any, others: Any
    ) -> None:
        assert (mode, others) == ("replace", [])
        if unit in self._failed | self._units:
            self._refuse(call, "org.freedesktop.systemd1.UnitExists", f"Unit {unit} exists.")
        elif unit == "run-denied.scope":
            self._refuse(call, "org.freedesktop.DBus.Error.AccessDenied", "No.\nNever.")
        elif unit == "run-silent.scope":
            pass
        else:
            self._units.add(unit)
            self._job(call, unit, "failed" if unit == "run-fails.scope" else "done")

    def SetUnitProperties(
        self, call: jeepney.Message, unit: str, runtime: bool, properties: Any
    ) -> None:
        self._send(jeepney.new_method_return(call))

    def StopUnit(self, call: jeepney.Message, unit: str, mode: str) -> None:
        if unit in self._units:
            self._job(call, unit, "done")
        else:
            self._refuse(call, "org.freedesktop.systemd1.NoSuchUnit", f"Unit {unit} not loaded.")

    def ResetFailedUnit(self, call: jeepney.Message, unit: str) -> None:
        if unit in self._failed:
            self._failed.discard(unit)
            self._send(jeepney.new_method_return(call))
        else:
            self._refuse(call, "org.freedesktop.systemd1.NoSuchUnit", f"Unit {unit} not loaded.")

    def _job(self, call: jeepney.Message, unit: str, result: str) -> None:
        self._jobs += 1
        job = f"/org/freedesktop/systemd1/job/{self._jobs}"
        reply = jeepney.new_method_return(call, "o", (job,))
        emitter = jeepney.DBusAddress(
            "/org/freedesktop/systemd1", interface="org.freedesktop.systemd1.Manager"
        )

        def removed(path: str, result: str) -> jeepney.Message:
            body = (self._jobs, path, unit, result)
            return jeepney.new_signal(emitter, "JobRemoved", "uoss", body)

        # A job may be over before the reply comes, and others end as well.
        messages = [removed(f"{job}0", "canceled"), removed(job, result), reply]
        if self._jobs % 2:
            messages.reverse()
        for message in messages:
            self._send(message)

    def _refuse(self, call: jeepney.Message, name: str, text: str) -> None:
        self._send(jeepney.new_error(call, name, "s", (text,)))


BUS = """<busconfig><listen>unix:path={path}</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*"/><allow own="*"/><allow receive_sender="*"/></policy></busconfig>"""


def on_a_bus(path: Path, notes: int, ready: int) -> None:
    with open_dbus_connection(f"unix:path={path}") as connection:
        name = jeepney.message_bus.RequestName("org.freedesktop.systemd1")
        connection.send_and_get_reply(name)
        os.write(ready, b"!")
        Stand_in(notes, connection.send).serve(iter(connection.receive, None))


def without_a_bus(listener: socket.socket, notes: int) -> None:
    """systemd's own socket: authentication, and then the calls at once."""
    while True:
        connection, _ = listener.accept()
        asked = b""
        while b"BEGIN\r\n" not in asked:
            asked += connection.recv(1)
            if asked.startswith(b"\0AUTH EXTERNAL") and asked.endswith(b"\r\n"):
                connection.sendall(b"OK 1234deadbeef1234deadbeef1234dead\r\n")
                asked = b""
        parser, serial = jeepney.Parser(), iter(range(1, 1000))

        def messages(
            connection: socket.socket = connection, parser: Any = parser
        ) -> Iterator[jeepney.Message]:
            while data := connection.recv(4096):
                parser.add_data(data)
                while (message := parser.get_next_message()) is not None:
                    yield message

        def send(
            message: jeepney.Message,
            connection: socket.socket = connection,
            serial: Iterator[int] = serial,
        ) -> None:
            with suppress(BrokenPipeError):  # who asked has heard enough
                connection.sendall(message.serialise(serial=next(serial)))

        Stand_in(notes, send).serve(messages())
        connection.close()


class Notes:
    """What the stand-in was asked."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> list[Any]:
        """Since the last time, but for what opens a conversation."""
        os.set_blocking(self._fd, False)
        try:
            lines = os.read(self._fd, 1 << 16).splitlines()
        except BlockingIOError:
            return []
        return [note for note in map(json.loads, lines) if note[0] != "Subscribe"]


@pytest.fixture(params=["bus", "private"])
def notes(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Notes]:
    address = tmp_path / "bus"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={address}")
    reader, writer = os.pipe()
    ready, told_ready = os.pipe()
    daemon = None
    if request.param == "bus":
        if shutil.which("dbus-daemon") is None:
            pytest.skip("no dbus-daemon")
        (tmp_path / "bus.conf").write_text(BUS.format(path=address))
        command = ["dbus-daemon", f"--config-file={tmp_path}/bus.conf", "--nofork"]
        daemon = subprocess.Popen(
            [*command, f"--print-address={told_ready}"], pass_fds=[told_ready]
        )
        assert os.read(ready, 1000)
        child = clone(lambda: on_a_bus(address, writer, told_ready))
        assert os.read(ready, 1) == b"!"
    else:
        private = tmp_path / "private"
        monkeypatch.setattr(manager_module, "PRIVATE_SOCKET", str(private))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(private))
        listener.listen()
        child = clone(lambda: without_a_bus(listener, writer))
        listener.close()
    yield Notes(reader)
    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    assert wait(child.pidfd) == 128 + signal.SIGKILL
    if daemon is not None:
        daemon.terminate()
        daemon.wait()
    for fd in (reader, writer, ready, told_ready, child.pidfd):
        os.close(fd)


def scope(name: str) -> Scope:
    return Scope.for_path(f"a-b.slice:run:{name}")


def test_life(notes: Notes) -> None:
    own = scope_properties([7, 0], slice="a-b.slice", description="a container")
    limits = limit_properties(LIMITS, unified=True, version=252)
    with Systemd() as manager:
        manager.start(scope("x"), own + limits)
        manager.update(scope("x"), [("TasksMax", ("t", 5))])
        manager.stop(scope("x"))
    (started, (unit, _, properties, _)), *rest = notes.read()
    assert (started, unit) == ("StartTransientUnit", "run-x.scope")
    heard = {name: value for name, (_, value) in properties}
    assert heard["Slice"] == "a-b.slice"
    assert heard["PIDs"] == [7, 0]
    assert heard["Delegate"] is True
    assert heard["CollectMode"] == "inactive-or-failed"
    assert heard["MemoryMax"] == 1 << 26
    assert bytes(heard["AllowedCPUs"]) == b"\x07\x02"
    assert ["char-136", "rwm"] in heard["DeviceAllow"]
    assert rest == [
        ["SetUnitProperties", ["run-x.scope", True, [["TasksMax", ["t", 5]]]]],
        ["StopUnit", ["run-x.scope", "replace"]],
        ["ResetFailedUnit", ["run-x.scope"]],
    ]


def test_version(notes: Notes) -> None:
    with Systemd() as manager:
        assert manager.version() == 252


def test_name_of_one_that_failed(notes: Notes) -> None:
    with Systemd() as manager:
        manager.start(scope("again"), [])
    assert [note[0] for note in notes.read()] == [
        "StartTransientUnit",
        "ResetFailedUnit",
        "StartTransientUnit",
    ]


def test_name_of_one_that_lives(notes: Notes) -> None:
    with Systemd() as manager, pytest.raises(FileExistsError, match=r"run-living\.scope exists"):
        manager.start(scope("living"), [])


def test_job_that_fails(notes: Notes) -> None:
    with Systemd() as manager, pytest.raises(OSError, match="failed") as e:
        manager.start(scope("fails"), [])
    assert e.value.filename == "run-fails.scope"
    assert notes.read()[-1][0] == "ResetFailedUnit"


def test_refusal(notes: Notes) -> None:
    with Systemd() as manager, pytest.raises(PermissionError, match=r"systemd: No\. Never\.") as e:
        manager.start(scope("denied"), [])
    assert "\n" not in str(e.value)


def test_silence(notes: Notes) -> None:
    with Systemd(timeout=0.05) as manager, pytest.raises(TimeoutError, match="no answer") as e:
        manager.start(scope("silent"), [])
    assert e.value.filename == "run-silent.scope"


def test_stop_of_what_is_gone(notes: Notes) -> None:
    with Systemd() as manager:
        manager.stop(scope("never"))


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    monkeypatch.setattr(manager_module, "PRIVATE_SOCKET", f"{tmp_path}/private")
    with pytest.raises(FileNotFoundError, match="systemd: ") as e:
        Systemd()
    assert re.search("private$", e.value.filename)


def test_forged_signal() -> None:
    """Somebody else on the bus says that the job failed."""
    manager = Systemd.__new__(Systemd)
    fields = jeepney.HeaderFields
    emitter = jeepney.DBusAddress(
        "/org/freedesktop/systemd1", interface=manager_module._MANAGER.interface
    )
    call = jeepney.new_method_call(manager_module._MANAGER, "StartTransientUnit")
    call.header.serial = 1
    reply = jeepney.new_method_return(call, "o", ("/job/1",))
    reply.header.fields[fields.sender] = ":1.1"
    signals = []
    for sender, result in ((":1.66", "failed"), (":1.1", "done")):
        removed = jeepney.new_signal(emitter, "JobRemoved", "uoss", (1, "/job/1", "u", result))
        removed.header.fields[fields.sender] = sender
        signals.append(removed)
    manager._signals = deque(signals)
    manager._timeout = 1.0
    assert manager._wait_for_job(reply, "u") == "done"
