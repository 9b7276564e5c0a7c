from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from shim.component.errors import Trap
from shim.wasi.descriptors import inherited
from shim.wasi.program import Program
from tests.shim.wasi.dns import ONE, TWO, World
from tests.shim.wasi.drivers import Failed

from .conftest import Calls

LOCAL = {
    "ipv4": ("ipv4", (0, (127, 0, 0, 1))),
    "ipv6": ("ipv6", (0, 0, (0, 0, 0, 0, 0, 0, 0, 1), 0)),
}
FAMILIES = pytest.mark.parametrize("family", sorted(LOCAL))
CLOSED = ("closed", None)


class Net:
    """Calls of sockets, short."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.network = calls("sockets/instance-network", "instance-network")

    def tcp(self, name: str, *args: Any) -> Any:
        return self.calls("sockets/tcp", f"[method]tcp-socket.{name}", *args)

    def udp(self, name: str, *args: Any) -> Any:
        return self.calls("sockets/udp", f"[method]udp-socket.{name}", *args)

    def datagrams(self, name: str, *args: Any) -> Any:
        return self.calls("sockets/udp", f"[method]{name}", *args)

    def stream(self, name: str, *args: Any) -> Any:
        return self.calls("io/streams", f"[method]{name}", *args)

    def wait(self, pollable: Any) -> None:
        self.calls("io/poll", "[method]pollable.block", pollable)
        pollable.close()

    def new(self, kind: str, family: str = "ipv4") -> Any:
        return self.calls(f"sockets/{kind}-create-socket", f"create-{kind}-socket", family)

    def bound(self, kind: str, family: str = "ipv4") -> tuple[Any, Any]:
        """Return a socket, and its address."""
        made, method = self.new(kind, family), self.tcp if kind == "tcp" else self.udp
        method("start-bind", made, self.network, LOCAL[family])
        method("finish-bind", made)
        return made, method("local-address", made)

    def listener(self, family: str = "ipv4") -> tuple[Any, Any]:
        made, address = self.bound("tcp", family)
        self.tcp("start-listen", made)
        self.tcp("finish-listen", made)
        return made, address

    def connected(self, family: str = "ipv4") -> tuple[Any, ...]:
        """Return a connection from both sides: socket, input and output; and the listener."""
        listener, address = self.listener(family)
        client = self.new("tcp", family)
        self.tcp("start-connect", client, self.network, address)
        self.wait(self.tcp("subscribe", client))
        source, sink = self.tcp("finish-connect", client)
        self.wait(self.tcp("subscribe", listener))
        return client, source, sink, *self.tcp("accept", listener), listener


@pytest.fixture
def net(calls: Calls) -> Net:
    return Net(calls)


def word(call: Any, *args: Any) -> Any:
    with pytest.raises(Failed) as raised:
        call(*args)
    return raised.value.args[0]


@FAMILIES
def test_a_connection(net: Net, family: str) -> None:
    client, source, sink, server, their_source, their_sink, listener = net.connected(family)
    assert net.tcp("remote-address", client) == net.tcp("local-address", server)
    assert net.tcp("address-family", server) == family
    assert net.stream("input-stream.read", their_source, 9) == b""
    net.stream("output-stream.blocking-write-and-flush", sink, memoryview(b"ping"))
    assert net.stream("input-stream.blocking-read", their_source, 9) == b"ping"
    assert net.stream("output-stream.check-write", their_sink) > 0
    net.stream("output-stream.write", their_sink, memoryview(b"pong"))
    net.wait(net.stream("input-stream.subscribe", source))
    assert net.stream("input-stream.read", source, 9) == b"pong"
    assert word(net.tcp, "accept", listener) == "would-block"
    sink.close()  # ends its direction
    assert word(net.stream, "input-stream.blocking-read", their_source, 9) == CLOSED
    for one in (client, source, server, their_source, their_sink, listener):
        one.close()


def test_the_peer_has_gone(net: Net) -> None:
    client, source, sink, *server, _listener = net.connected()
    net.tcp("shutdown", server[0], "both")
    net.wait(net.stream("input-stream.subscribe", source))
    for length in (9, 0):
        assert word(net.stream, "input-stream.read", source, length) == CLOSED
    for one in (*server, client, source, sink):
        one.close()


def test_shutting_down(net: Net) -> None:
    client, source, sink, _, their_source, their_sink, _ = net.connected()
    net.stream("output-stream.blocking-write-and-flush", their_sink, memoryview(b"unread"))
    net.wait(net.stream("input-stream.subscribe", source))
    net.tcp("shutdown", client, "receive")
    assert word(net.stream, "input-stream.read", source, 9) == CLOSED
    permit = net.stream("output-stream.check-write", sink)
    net.stream("output-stream.write", sink, memoryview(bytes(permit)))
    net.tcp("shutdown", client, "send")
    assert word(net.stream, "output-stream.write", sink, memoryview(b"x")) == CLOSED
    assert word(net.stream, "output-stream.check-write", sink) == CLOSED
    assert word(net.stream, "output-stream.flush", sink) == CLOSED
    arrived = 0
    while arrived < permit:  # nothing of what was written is lost
        arrived += len(net.stream("input-stream.blocking-read", their_source, 1 << 20))
    assert word(net.stream, "input-stream.blocking-read", their_source, 9) == CLOSED


def test_a_slow_peer(net: Net) -> None:
    """What the kernel has no room for is kept, and permitted is nothing meanwhile."""
    _, _, sink, _, their_source, _, _ = net.connected()
    written = 0
    while permit := net.stream("output-stream.check-write", sink):
        net.stream("output-stream.write", sink, memoryview(bytes(permit)))
        written += permit
    writable = net.stream("output-stream.subscribe", sink)
    assert not net.calls("io/poll", "[method]pollable.ready", writable)
    arrived = 0
    while arrived < written:
        arrived += len(net.stream("input-stream.blocking-read", their_source, 1 << 20))
        net.stream("output-stream.flush", sink)
    assert net.stream("output-stream.check-write", sink) > 0


def test_the_states_of_tcp(net: Net) -> None:
    local = LOCAL["ipv4"]
    new = net.new("tcp")
    for name in ("finish-bind", "finish-connect", "finish-listen"):
        assert word(net.tcp, name, new) == "not-in-progress"
    for name in ("start-listen", "accept", "local-address", "remote-address"):
        assert word(net.tcp, name, new) == "invalid-state", name
    assert word(net.tcp, "shutdown", new, "both") == "invalid-state"
    assert not net.tcp("is-listening", new)
    net.tcp("start-bind", new, net.network, local)
    assert word(net.tcp, "start-bind", new, net.network, local) == "concurrency-conflict"
    assert word(net.tcp, "start-listen", new) == "concurrency-conflict"
    net.tcp("finish-bind", new)
    assert word(net.tcp, "start-bind", new, net.network, local) == "invalid-state"
    net.tcp("start-listen", new)
    net.tcp("finish-listen", new)
    assert net.tcp("is-listening", new)
    assert word(net.tcp, "start-connect", new, net.network, local) == "invalid-state"
    assert word(net.tcp, "start-listen", new) == "invalid-state"
    client, *_ = net.connected()
    assert word(net.tcp, "start-connect", client, net.network, local) == "invalid-state"
    assert word(net.tcp, "start-bind", client, net.network, local) == "invalid-state"
    assert word(net.tcp, "accept", client) == "invalid-state"


def test_nobody_listens(net: Net) -> None:
    placeholder, address = net.bound("tcp")
    client = net.new("tcp")
    net.tcp("start-connect", client, net.network, address)
    net.wait(net.tcp("subscribe", client))
    assert word(net.tcp, "finish-connect", client) == "connection-refused"
    assert word(net.tcp, "finish-connect", client) == "not-in-progress"
    assert word(net.tcp, "start-connect", client, net.network, address) == "invalid-state"
    placeholder.close()


@pytest.mark.parametrize(
    "address",
    [
        LOCAL["ipv6"],
        ("ipv4", (0, (127, 0, 0, 1))),
        ("ipv4", (80, (0, 0, 0, 0))),
        ("ipv4", (80, (224, 0, 0, 1))),
        ("ipv4", (80, (255, 255, 255, 255))),
    ],
)
def test_addresses_that_nothing_connects_to(net: Net, address: Any) -> None:
    client = net.new("tcp")
    assert word(net.tcp, "start-connect", client, net.network, address) == "invalid-argument"


def test_addresses_that_mix_families(net: Net) -> None:
    for groups in ((0, 0, 0, 0, 0, 0xFFFF, 0x7F00, 1), (0, 0, 0, 0, 0, 0, 0x7F00, 1)):
        for kind, method in (("tcp", net.tcp), ("udp", net.udp)):
            address = ("ipv6", (0, 0, groups, 0))
            made = net.new(kind, "ipv6")
            assert word(method, "start-bind", made, net.network, address) == "invalid-argument"


def test_an_address_in_use(net: Net) -> None:
    _, address = net.listener()
    other = net.new("tcp")
    assert word(net.tcp, "start-bind", other, net.network, address) == "address-in-use"
    foreign = ("ipv4", (0, (192, 0, 2, 1)))
    assert word(net.tcp, "start-bind", other, net.network, foreign) == "address-not-bindable"


@FAMILIES
def test_options_of_tcp(net: Net, family: str) -> None:
    made = net.new("tcp", family)
    for name, value in {
        "hop-limit": 42,
        "keep-alive-enabled": True,
        "keep-alive-idle-time": 7_000_000_000,
        "keep-alive-interval": 8_000_000_000,
        "keep-alive-count": 9,
        "receive-buffer-size": 0x10000,
        "send-buffer-size": 0x10000,
    }.items():
        net.tcp(f"set-{name}", made, value)
        assert net.tcp(name, made) == value, name
        if name != "keep-alive-enabled":
            assert word(net.tcp, f"set-{name}", made, 0) == "invalid-argument", name
    net.tcp("set-keep-alive-idle-time", made, 1)  # less than Linux counts in
    assert net.tcp("keep-alive-idle-time", made) == 1_000_000_000
    net.tcp("set-keep-alive-count", made, (1 << 32) - 1)
    net.tcp("set-receive-buffer-size", made, (1 << 64) - 1)
    assert word(net.tcp, "set-listen-backlog-size", made, 0) == "invalid-argument"
    net.tcp("set-listen-backlog-size", made, (1 << 64) - 1)


@FAMILIES
def test_datagrams(net: Net, family: str) -> None:
    ours, our_address = net.bound("udp", family)
    theirs, their_address = net.bound("udp", family)
    receiving, sending = net.udp("stream", ours, None)
    their_receiving, their_sending = net.udp("stream", theirs, our_address)
    assert net.udp("remote-address", theirs) == our_address
    assert net.datagrams("incoming-datagram-stream.receive", receiving, 9) == []
    readable = net.datagrams("incoming-datagram-stream.subscribe", receiving)
    assert not net.calls("io/poll", "[method]pollable.ready", readable)
    assert net.datagrams("outgoing-datagram-stream.check-send", their_sending) >= 3
    count = net.datagrams(
        "outgoing-datagram-stream.send",
        their_sending,
        [(memoryview(b"one"), None), (memoryview(b""), our_address), (memoryview(b"two"), None)],
    )
    assert count == 3
    net.wait(readable)
    receive = "incoming-datagram-stream.receive"
    assert net.datagrams(receive, receiving, 0) == []
    assert net.datagrams(receive, receiving, 1) == [(b"one", their_address)]
    assert net.datagrams(receive, receiving, 9) == [(b"", their_address), (b"two", their_address)]
    net.datagrams("outgoing-datagram-stream.check-send", sending)
    answer = [(memoryview(b"back"), their_address)]
    assert net.datagrams("outgoing-datagram-stream.send", sending, answer) == 1
    net.wait(net.datagrams("incoming-datagram-stream.subscribe", their_receiving))
    assert net.datagrams(receive, their_receiving, 9) == [(b"back", our_address)]


def test_a_peer_at_a_time(net: Net) -> None:
    made, address = net.bound("udp")
    other, other_address = net.bound("udp")
    receiving, sending = net.udp("stream", made, None)
    with pytest.raises(Trap):
        net.udp("stream", made, None)
    receiving.close()
    sending.close()
    receiving, sending = net.udp("stream", made, other_address)
    net.datagrams("outgoing-datagram-stream.check-send", sending)
    send = "outgoing-datagram-stream.send"
    elsewhere = [(memoryview(b"x"), address)]
    assert word(net.datagrams, send, sending, elsewhere) == "invalid-argument"
    receiving.close()
    sending.close()
    receiving, sending = net.udp("stream", made, None)
    assert word(net.udp, "remote-address", made) == "invalid-state"
    assert net.udp("local-address", made)
    net.datagrams("outgoing-datagram-stream.check-send", sending)
    nowhere = [(memoryview(b"x"), None)]
    assert word(net.datagrams, send, sending, nowhere) == "invalid-argument"
    with pytest.raises(Trap):
        net.datagrams(send, sending, nowhere)
    net.datagrams("outgoing-datagram-stream.check-send", sending)
    large = [(memoryview(bytes(1 << 17)), other_address)]
    assert word(net.datagrams, send, sending, large) == "datagram-too-large"
    other.close()


def test_the_states_of_udp(net: Net) -> None:
    made = net.new("udp")
    assert word(net.udp, "finish-bind", made) == "not-in-progress"
    for name in ("local-address", "remote-address"):
        assert word(net.udp, name, made) == "invalid-state"
    assert word(net.udp, "stream", made, None) == "invalid-state"
    net.udp("start-bind", made, net.network, LOCAL["ipv4"])
    assert word(net.udp, "start-bind", made, net.network, LOCAL["ipv4"]) == "concurrency-conflict"
    net.udp("finish-bind", made)
    assert word(net.udp, "start-bind", made, net.network, LOCAL["ipv4"]) == "invalid-state"
    assert net.calls("io/poll", "[method]pollable.ready", net.udp("subscribe", made))
    net.udp("set-unicast-hop-limit", made, 42)
    assert net.udp("unicast-hop-limit", made) == 42


def test_without_a_network(net: Net, program: Program) -> None:
    program.network = False
    for kind in ("tcp", "udp"):
        assert word(net.new, kind) == "access-denied"
    lookup = ("sockets/ip-name-lookup", "resolve-addresses", net.network, "127.0.0.1")
    assert word(net.calls, *lookup) == "access-denied"


def addresses(net: Net, name: str) -> list[Any]:
    stream = net.calls("sockets/ip-name-lookup", "resolve-addresses", net.network, name)
    assert net.calls(
        "io/poll",
        "[method]pollable.ready",
        net.calls("sockets/ip-name-lookup", "[method]resolve-address-stream.subscribe", stream),
    )
    following = "[method]resolve-address-stream.resolve-next-address"
    found = []
    while (address := net.calls("sockets/ip-name-lookup", following, stream)) is not None:
        found.append(address)
    return found


def test_addresses_in_text(net: Net) -> None:
    assert addresses(net, "192.0.2.7") == [("ipv4", (192, 0, 2, 7))]
    for name in ("2001:db8::1", "[2001:db8::1]"):
        assert addresses(net, name) == [("ipv6", (0x2001, 0xDB8, 0, 0, 0, 0, 0, 1))]


def test_names(net: Net, world: World) -> None:
    def check() -> None:
        a, second = ("ipv4", tuple(ONE)), ("ipv4", tuple(TWO))
        assert addresses(net, "a.test")[:2] == [a, second]
        for name, error in (
            ("nowhere.test", "name-unresolvable"),
            ("circle.test", "name-unresolvable"),
            ("B\u00dccher.test", "name-unresolvable"),
            ("refused.test", "temporary-resolver-failure"),
        ):
            assert word(addresses, net, name) == error

    world(check)
    assert b"xn--bcher-kva" in world.asked()


def test_names_that_nobody_is_asked_for(net: Net) -> None:
    assert addresses(net, "localhost")[0] == ("ipv4", (127, 0, 0, 1))
    for name in ("", "x" * 300):
        lookup = ("sockets/ip-name-lookup", "resolve-addresses", net.network, name)
        assert word(net.calls, *lookup) in ("name-unresolvable", "invalid-argument"), name


def test_a_server_of_ours(net: Net) -> None:
    """The other end is no guest."""
    listener, (_, (port, _)) = net.listener()
    found = []

    def client() -> None:
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(b"x" * 100_000)
            connection.shutdown(socket.SHUT_WR)
            found.append(connection.recv(99))

    thread = threading.Thread(target=client)
    thread.start()
    net.wait(net.tcp("subscribe", listener))
    _, source, sink = net.tcp("accept", listener)
    size = 0
    while size < 100_000:
        size += len(net.stream("input-stream.blocking-read", source, 1 << 20))
    assert word(net.stream, "input-stream.blocking-read", source, 9) == CLOSED
    answer = memoryview(b"%d" % size)
    net.stream("output-stream.blocking-write-and-flush", sink, answer)
    thread.join(10)
    assert found == [b"100000"]


def test_a_listener_that_was_granted(net: Net, program: Program) -> None:
    """Who binds to its address gets it, and that is all the network there is."""
    granted = socket.create_server(("127.0.0.1", 0))
    port = granted.getsockname()[1]
    program.listeners = [inherited(granted.detach())]
    program.network = False
    made = net.new("tcp")
    assert word(net.tcp, "start-bind", made, net.network, LOCAL["ipv4"]) == "access-denied"
    elsewhere = ("ipv4", (port, (127, 0, 0, 1)))
    assert word(net.tcp, "start-connect", made, net.network, elsewhere) == "access-denied"
    assert word(net.new, "udp") == "access-denied"
    net.tcp("start-bind", made, net.network, elsewhere)
    net.tcp("finish-bind", made)
    assert net.tcp("local-address", made) == elsewhere
    net.tcp("start-listen", made)
    net.tcp("finish-listen", made)
    assert word(net.tcp, "accept", made) == "would-block"
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        net.wait(net.tcp("subscribe", made))
        _, source, _ = net.tcp("accept", made)
        client.sendall(b"hello")
        assert net.stream("input-stream.blocking-read", source, 9) == b"hello"
