import socket

import pytest

from proto.bootstrap_pb2 import BootstrapParams, LogLevel
from shim.daemon.invocation import Invocation, UsageError


def receive(*arguments: str, stdin: bytes = b"", max_version: bytes = b"") -> Invocation:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fields = [b"/bundle", b"/run/c.ttrpc", max_version, b"", b"", b"%d" % len(arguments)]
        ours.sendall(b"\0".join([*fields, *(a.encode() for a in arguments), stdin]))
        ours.shutdown(socket.SHUT_WR)
        return Invocation.receive(theirs)


def test_reads_containerds_command_line() -> None:
    invocation = receive(
        "-namespace", "k8s.io", "-address", "/run/c.sock", "-publish-binary", "/usr/bin/containerd",
        "-id", "web", "-debug", "start",
    )  # fmt: skip
    assert invocation.namespace == "k8s.io"
    assert invocation.containerd_address == "/run/c.sock"
    assert invocation.id == "web"
    assert invocation.debug
    assert invocation.action == "start"
    assert invocation.bundle == "/bundle"
    assert invocation.ttrpc_address == "/run/c.ttrpc"


def test_accepts_gos_other_spellings() -> None:
    invocation = receive("--namespace=n", "--id=x", "-debug=false", "-bundle=/b", "delete")
    assert (invocation.namespace, invocation.id, invocation.debug) == ("n", "x", False)
    assert invocation.bundle == "/b"


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["-namespace", "n", "-id", "x", "stop"], "'stop'"),
        (["-namespace", "n", "-id", "x"], "''"),
        (["-id", "x", "start"], "namespace"),
        (["-namespace", "n", "start"], "''"),
        (["-namespace", "n", "-id", "../x", "delete"], "'../x'"),
        (["-colour", "red", "start"], "-colour"),
    ],
)
def test_refuses_what_is_no_command_line(arguments: list[str], culprit: str) -> None:
    with pytest.raises(UsageError, match=culprit.replace(".", r"\.")):
        receive(*arguments)


def test_stdin_may_hold_anything() -> None:
    options = b"\0\0\x01\0options"
    assert receive("-namespace", "n", "-id", "x", "start", stdin=options).stdin == options


def test_bootstrap_parameters_of_2_3() -> None:
    params = BootstrapParams(
        instance_id="x",
        namespace="n",
        log_level=LogLevel.LOG_LEVEL_DEBUG,
        containerd_ttrpc_address="/other.ttrpc",
        containerd_grpc_address="/other.sock",
    )
    invocation = receive("-namespace", "n", "-id", "x", "start", stdin=params.SerializeToString())
    assert invocation.bootstrap == params
    assert invocation.ttrpc_address == "/other.ttrpc"
    assert invocation.containerd_address == "/other.sock"
    assert invocation.debug


def test_runtime_options_are_not_bootstrap_parameters() -> None:
    # An Any's two fields have the numbers and types of instance_id and namespace.
    params = BootstrapParams(instance_id="runtimeoptions.v1.Options", namespace="n")
    invocation = receive("-namespace", "n", "-id", "x", "start", stdin=params.SerializeToString())
    assert invocation.bootstrap is None
