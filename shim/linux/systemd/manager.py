"""A conversation with systemd, over D-Bus (library).

It blocks, for some milliseconds where all is well: not for the loop of a shim. Sources:
org.freedesktop.systemd1(5), the D-Bus specification.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

import jeepney
from jeepney.auth import AuthenticationError
from jeepney.bus import find_system_bus
from jeepney.io.blocking import prep_socket

from shim.linux.systemd.scope import Property, Scope

PRIVATE_SOCKET: Final = "/run/systemd/private"
_BUFFER: Final = 1 << 16

_MANAGER: Final = jeepney.DBusAddress(
    "/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager"
)
_ERRORS: Final = {
    "org.freedesktop.systemd1.UnitExists": errno.EEXIST,
    "org.freedesktop.systemd1.NoSuchUnit": errno.ENOENT,
    "org.freedesktop.DBus.Error.AccessDenied": errno.EACCES,
    "org.freedesktop.DBus.Error.InvalidArgs": errno.EINVAL,
    "org.freedesktop.DBus.Error.PropertyReadOnly": errno.EINVAL,
    "org.freedesktop.DBus.Error.ServiceUnknown": errno.ENOENT,
}


class Systemd:
    """A conversation with systemd. Every method blocks, and raises OSError, with its words."""

    def __init__(self, address: str | None = None, *, timeout: float = 30.0) -> None:
        """Connect, to a bus at this path, or else to the system's bus, or to systemd itself.

        `timeout`: the most seconds that a method may take.
        """
        self._timeout = timeout
        self._serial = 0
        self._parser = jeepney.Parser()
        self._signals: deque[jeepney.Message] = deque()
        private = False
        if address is None:
            address = find_system_bus()
            if not os.path.exists(address):
                # Root may speak to systemd itself, which needs no bus for it.
                address, private = PRIVATE_SOCKET, True
        try:
            self._socket: socket.socket = prep_socket(address, timeout=timeout)
        except AuthenticationError as e:
            raise PermissionError(errno.EACCES, f"systemd: {e}", address) from None
        except OSError as e:
            raise OSError(e.errno, f"systemd: {e.strerror or e}", address) from None
        try:
            if not private:
                self._send(jeepney.message_bus.Hello())
                self._send(jeepney.message_bus.AddMatch(_JOB_REMOVED))
                self._call("Subscribe", None, (), "")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Systemd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation."""
        self._socket.close()

    def version(self) -> int:
        """The number of its release, such as 252."""
        properties = jeepney.Properties(_MANAGER)
        ((_, text),) = self._send(properties.get("Version")).body
        number = re.match(r"v?(\d+)", text)
        return int(number[1]) if number else 0

    def start(self, scope: Scope, properties: Sequence[Property]) -> None:
        """Make a scope, with the processes that its properties name, and wait until it is there.

        One that failed before, under the same name, is forgotten. EEXIST: there is a living one.
        """
        no_other_units: list[Any] = []
        arguments = (scope.unit, "replace", list(properties), no_other_units)

        def ask() -> jeepney.Message:
            return self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", arguments, scope.unit)

        try:
            reply = ask()
        except FileExistsError:
            self._forget(scope.unit)
            reply = ask()
        result = self._wait_for_job(reply, scope.unit)
        if result != "done":
            self._forget(scope.unit)
            raise OSError(errno.EIO, f"systemd: the job to start it: {result}", scope.unit)

    def update(self, scope: Scope, properties: Sequence[Property]) -> None:
        """Change properties until the next boot."""
        arguments = (scope.unit, True, list(properties))
        self._call("SetUnitProperties", "sba(sv)", arguments, scope.unit)

    def stop(self, scope: Scope) -> None:
        """End what is left of a scope, and forget it. It may be gone already."""
        try:
            reply = self._call("StopUnit", "ss", (scope.unit, "replace"), scope.unit)
            self._wait_for_job(reply, scope.unit)
        except FileNotFoundError:
            pass
        self._forget(scope.unit)

    def _forget(self, unit: str) -> None:
        try:
            self._call("ResetFailedUnit", "s", (unit,), unit)
        except FileNotFoundError:
            pass

    def _wait_for_job(self, reply: jeepney.Message, unit: str) -> str:
        """How the job ended that a reply is about; it may be known before the reply comes."""
        deadline = time.monotonic() + self._timeout
        while True:
            while self._signals:
                signal = self._signals.popleft()
                # Anybody on the bus can send a signal.
                if _field(signal, "sender") == _field(reply, "sender") and (
                    _field(signal, "member") == "JobRemoved" and signal.body[1] == reply.body[0]
                ):
                    return str(signal.body[3])
            self._take(self._next(deadline, unit))

    def _call(
        self, method: str, signature: str | None, arguments: tuple[Any, ...], unit: str
    ) -> jeepney.Message:
        return self._send(jeepney.new_method_call(_MANAGER, method, signature, arguments), unit)

    def _send(self, message: jeepney.Message, unit: str | None = None) -> jeepney.Message:
        """Send a method call; returns the reply to it."""
        deadline = time.monotonic() + self._timeout
        self._serial += 1
        self._socket.settimeout(self._timeout)
        self._socket.sendall(message.serialise(serial=self._serial))
        while True:
            reply = self._next(deadline, unit)
            if _field(reply, "reply_serial") == self._serial:
                break
            self._take(reply)
        if reply.header.message_type is jeepney.MessageType.error:
            name = _field(reply, "error_name")
            text = " ".join(str(reply.body[0]).split()) if reply.body else name
            raise OSError(_ERRORS.get(name, errno.EIO), f"systemd: {text}", unit or None)
        return reply

    def _take(self, message: jeepney.Message) -> None:
        if message.header.message_type is jeepney.MessageType.signal:
            self._signals.append(message)

    def _next(self, deadline: float, unit: str | None) -> jeepney.Message:
        while (message := self._parser.get_next_message()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise OSError(errno.ETIMEDOUT, "systemd: no answer", unit)
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(_BUFFER)
            except TimeoutError:
                continue
            if not data:
                raise OSError(errno.ECONNRESET, "systemd: it hung up", unit)
            self._parser.add_data(data)
        return message


_JOB_REMOVED: Final = jeepney.MatchRule(
    type="signal",
    sender=_MANAGER.bus_name,
    interface=_MANAGER.interface,
    member="JobRemoved",
    path=_MANAGER.object_path,
)


def _field(message: jeepney.Message, name: str) -> Any:
    return message.header.fields.get(jeepney.HeaderFields[name])
