"""One execution of the shim's binary by containerd, as the launcher passed it on. Runs in: shim.

The command line is the shim API's: Go's flag syntax (`-id x`, `--id=x`), then the action; and
`features`, which CRI-O asks for as it asks an OCI runtime.
"""

import socket
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from proto.bootstrap_pb2 import BootstrapParams, LogLevel

_FLAGS = {
    "namespace": "namespace",
    "address": "containerd_address",
    "publish-binary": None,
    "id": "id",
    "bundle": "bundle",
    "socket": None,
    "debug-socket": None,
}
_SWITCHES = {"debug": "debug", "info": "info"}

STATE_DIRECTORY: Final = "/var/lib/pywasm"


class UsageError(Exception):
    """The command line is not one of the shim API's."""


@dataclass(slots=True)
class Invocation:
    """What containerd asks of one execution of the binary."""

    cwd: str
    ttrpc_address: str
    max_version: int
    """MAX_SHIM_VERSION, the highest bootstrap version the caller reads; 0 before containerd 1.7."""
    state_directory: str
    config: str
    """Path of the node's settings."""
    stdin: bytes
    namespace: str = ""
    id: str = ""
    containerd_address: str = ""
    bundle: str = ""
    debug: bool = False
    info: bool = False
    action: str = ""
    bootstrap: BootstrapParams | None = None
    """Set where the caller speaks the protobuf bootstrap of containerd 2.3 and later."""

    @classmethod
    def receive(cls, connection: socket.socket) -> "Invocation":
        """Read the launcher's request to its end.

        Raises UsageError for a command line that is none.
        """
        chunks = []
        while chunk := connection.recv(1 << 16):
            chunks.append(chunk)
        fields = b"".join(chunks).split(b"\0", 6)
        cwd, ttrpc_address, max_version, state, config, count, rest = fields
        *arguments, stdin = rest.split(b"\0", int(count))
        invocation = cls(
            cwd=cwd.decode("utf-8", "surrogateescape"),
            ttrpc_address=ttrpc_address.decode(),
            max_version=int(max_version) if max_version.isdigit() else 0,
            state_directory=state.decode("utf-8", "surrogateescape") or STATE_DIRECTORY,
            config=config.decode("utf-8", "surrogateescape") or "/etc/pywasm/config.toml",
            stdin=stdin,
        )
        invocation._parse([argument.decode("utf-8", "surrogateescape") for argument in arguments])
        invocation._read_bootstrap()
        return invocation

    def _parse(self, arguments: list[str]) -> None:
        remaining = iter(arguments)
        for argument in remaining:
            if not argument.startswith("-"):
                self.action = argument
                break
            name, equals, value = argument.lstrip("-").partition("=")
            if name in _SWITCHES:
                setattr(self, _SWITCHES[name], value in ("", "1", "t", "T", "true", "TRUE", "True"))
                continue
            if name not in _FLAGS:
                raise UsageError(f"flag provided but not defined: {argument}")
            if not equals:
                value = next(remaining, "")
            if attribute := _FLAGS[name]:
                setattr(self, attribute, value)
        self.bundle = self.bundle or self.cwd
        if self.info or self.action == "features":
            return
        if self.action not in ("start", "delete"):
            raise UsageError(f"unknown action {self.action!r}: expected start or delete")
        if not self.namespace:
            raise UsageError("shim namespace cannot be empty")
        # The id becomes a path component when the task is deleted.
        if not self.id or "/" in self.id or self.id in (".", ".."):
            raise UsageError(f"invalid task id {self.id!r}")

    def _read_bootstrap(self) -> None:
        """Tell BootstrapParams on stdin from the runtime options that older versions write there.

        Both are protobuf without a type tag, so the parameters count only if they repeat the
        command line.
        """
        if self.action != "start" or not self.stdin:
            return
        params = BootstrapParams()
        try:
            params.ParseFromString(self.stdin)
        except DecodeError:
            return
        if (params.instance_id, params.namespace) != (self.id, self.namespace):
            return
        self.bootstrap = params
        self.ttrpc_address = params.containerd_ttrpc_address or self.ttrpc_address
        self.containerd_address = params.containerd_grpc_address or self.containerd_address
        self.debug = self.debug or params.log_level <= LogLevel.LOG_LEVEL_DEBUG
