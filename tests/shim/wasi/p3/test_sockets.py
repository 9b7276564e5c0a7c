"""What only 0.3 has of sockets: connections as a stream."""

from __future__ import annotations

import os
import resource
import socket

from shim.component.streams import COMPLETED, HostBuffer
from shim.wasi.p3 import sockets
from shim.wasi.program import Program
from tests.shim.engines.conftest import in_child


def test_a_listener_outlives_a_lack_of_descriptors() -> None:
    def work() -> None:
        program = Program()
        listener = sockets.create_tcp(program, "ipv4")
        sockets.bind(program, listener, ("ipv4", (0, (127, 0, 0, 1))))
        connections = sockets.listen(program, listener)
        peer = socket.create_connection(listener.socket.local_address()[:2])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 1, hard))
        buffer = HostBuffer(is_bytes=False, length=1)
        assert connections.ask(buffer, reading=True) is None
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert program.reactor.wait(block=True)
        assert connections.ask(buffer, reading=True) == COMPLETED
        peer.close()
        connections.drop()
        assert not program.reactor.wait(block=True)

    ended = in_child(work)
    assert (ended.status, ended.stderr) == (0, b"")
